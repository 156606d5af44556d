"""One scan's slices, cut and written: what a worker process does."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

from monai_vqgen.data.io.volumes import read_volume
from monai_vqgen.data.io.writing import write_slice_nifti
from monai_vqgen.data.slices.sources import ScanRecord
from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.transforms.cutting import (
    Plane,
    PreparedVolume,
    cut_plane,
    locate_planes,
    outside_message,
    prepare_volume,
)
from monai_vqgen.transforms.fitting import apply_frame, frame_affine, frame_loses, place_frame, trimmed
from monai_vqgen.transforms.intensity import scale_to_window

__all__ = ["ScanOutcome", "SliceOptions", "slices_of_scan"]

logger = logging.getLogger(__name__)


class SliceOptions(NamedTuple):
    """What every scan's slices have in common; see `extract_slices`."""

    plane: str
    positions: tuple[float, ...]
    reference: str
    pixel_mm: float | None
    image_size: tuple[int, int]
    on_trim: str
    lower: float
    upper: float

    def checked(self) -> SliceOptions:
        """Return itself, or raise InputError."""
        if not self.positions:
            raise InputError("no positions are given; name at least one in millimetres.")
        if self.on_trim not in ("error", "warn"):
            raise InputError(f"on_trim is {self.on_trim!r}; choose 'error' or 'warn'.")
        if not 0 <= self.lower < self.upper <= 100:
            raise InputError(f"percentiles are {self.lower} and {self.upper}; 0 <= lower < upper <= 100 is due.")
        if self.pixel_mm is not None and not self.pixel_mm > 0:
            raise InputError(f"pixel_mm is {self.pixel_mm}; give a positive size in millimetres, or None.")
        return self


class ScanOutcome(NamedTuple):
    """A scan's datalist items and what was left out, with reasons."""

    subject: str
    items: list[dict[str, Any]]
    skipped: list[dict[str, str]]
    pixel_mm: tuple[float, float] = (float("nan"), float("nan"))
    """Rows and columns of its slices' pixels; NaN where the scan could not be read."""


def slices_of_scan(record: ScanRecord, options: SliceOptions, images: Path) -> ScanOutcome:
    """Read a scan once, write its slices. A fault is a logged skip, never the end of the run."""
    outcome = ScanOutcome(record.subject, [], [])
    try:
        volume = read_volume(record.path)
        prepared = prepare_volume(
            volume.voxels_s,
            volume.affine,
            options.plane,
            lower=options.lower,
            upper=options.upper,
            name=str(record.path),
        )
        if not prepared.window.high > prepared.window.low:
            raise ScanError(f"{record.path}: the volume is constant; leave the scan out or export it again.")
    except ScanError as error:
        _skip(outcome, record, str(error))
        return outcome
    own = prepared.view.spacing[:2]
    outcome = outcome._replace(pixel_mm=own if options.pixel_mm is None else (options.pixel_mm, options.pixel_mm))
    planes = locate_planes(prepared, options.positions, reference=options.reference)
    used: set[str] = set()
    for position, plane in zip(options.positions, planes, strict=True):
        if plane is None:
            _skip(outcome, record, outside_message(prepared, position, unit="mm", reference=options.reference))
            continue
        name = f"{record.name}_{options.plane}_{plane.position_mm:06.2f}mm.nii.gz"
        if name in used:
            _skip(outcome, record, f"{record.path}: position {position:g} mm falls on a plane already taken.")
            continue
        used.add(name)
        try:
            _write(prepared, plane, record, options, images / name)
        except ScanError as error:
            _skip(outcome, record, str(error))
            continue
        about = {"subject": record.subject, "plane": options.plane, "position_mm": round(plane.position_mm, 2)}
        outcome.items.append({"image": f"images/{name}", **about, **record.columns})
    return outcome


def _write(prepared: PreparedVolume, plane: Plane, record: ScanRecord, options: SliceOptions, path: Path) -> None:
    cut = cut_plane(prepared, plane, pixel_mm=options.pixel_mm)
    frame = place_frame(cut.box, options.image_size)
    if frame_loses(frame, cut.box) and trimmed(cut.pixels, frame, prepared.threshold):
        message = (
            f"{prepared.name}: the brain does not fit into {options.image_size[0]} x {options.image_size[1]} pixels "
            f"at {plane.position_mm:.1f} mm; take a larger image_size or pixel_mm, or on_trim='warn' to crop it."
        )
        if options.on_trim == "error":
            raise ScanError(message)
        logger.warning("%s Cropped.", message)
    scaled = scale_to_window(apply_frame(cut.pixels, frame, fill=prepared.window.low), prepared.window)
    about = {"subject": record.subject, "plane": options.plane, "position_mm": round(plane.position_mm, 2)}
    write_slice_nifti(path, scaled, frame_affine(cut.affine, frame), about)


def _skip(outcome: ScanOutcome, record: ScanRecord, reason: str) -> None:
    logger.warning("skipped: %s", reason)
    outcome.skipped.append({"file": record.path.name, "reason": reason})
