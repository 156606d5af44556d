"""The slices of one scan, or all of it as a volume, extracted and written: the work of one worker process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from monai_vqgen.data.io.nifti import write_slice_nifti
from monai_vqgen.data.io.volume import read_volume
from monai_vqgen.data.slices.sources import ScanRecord
from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.transforms.foreground import Window
from monai_vqgen.transforms.geometry import VOLUME
from monai_vqgen.transforms.intensity import check_window, scale_to_window
from monai_vqgen.transforms.size import (
    apply_frame,
    check_on_trim,
    check_size,
    frame_affine,
    frame_loses,
    place_frame,
    trimmed,
)
from monai_vqgen.transforms.volume_slicing import (
    PreparedVolume,
    SlicePixels,
    check_position_options,
    check_positions,
    cut_plane,
    cut_volume,
    locate_planes,
    outside_message,
    prepare_volume,
)

__all__ = ["ScanOutcome", "SliceOptions", "position_range", "slices_of_scan"]

logger = logging.getLogger(__name__)


def position_range(start_mm: float, stop_mm: float, step_mm: float) -> list[float]:
    """Positions from start, below stop, every step (all mm).

    Examples:
        >>> position_range(40, 50, 3)
        [40, 43, 46, 49]
    """
    if not step_mm > 0 or not stop_mm > start_mm:
        raise InputError(f"positions from {start_mm} to {stop_mm} by {step_mm} mm; expected start < stop and step > 0")
    count = int((stop_mm - start_mm) / step_mm - 1e-9) + 1
    return [round(start_mm + i * step_mm, 6) for i in range(count)]


class SliceOptions(NamedTuple):
    """Which slices of a scan are extracted, and how; or, in three dimensions, how it becomes one volume.

    A volume has its axes to the right, to the front and to the top (RAS+), whatever the scan's order; plane, positions
    and reference do not matter to it.

    Attributes:
        plane: "axial", "coronal" or "sagittal".
        positions: one or several, in millimeters from the reference; default the range.
        start_mm: first position where none are given; the default is 40 mm below the top of the brain.
        stop_mm: these positions stay below it.
        step_mm: distance between these positions.
        reference: "brain_edge" (top, front or left of the brain's box), "brain_center" or "volume_center".
        pixel_mm: size of a pixel or voxel (antialiased), or None for the scan's own.
        image_size: rows and columns, or the three axes of a volume, or one number for all; padded or cropped around the
            brain's box.
        on_trim: "error" skips a slice whose brain does not fit, "warn" crops it; both are logged.
        lower: percentile of the volume's foreground that becomes 0.
        upper: percentile that becomes 1.
        window: (low, high) in the scans' own units in place of percentiles, such as Hounsfield units of CT.
        dimensions: 2 for slices, 3 for whole volumes.
    """

    plane: str = "axial"
    positions: float | Sequence[float] | None = None
    start_mm: float = 40.0
    stop_mm: float = 100.0
    step_mm: float = 3.0
    reference: str = "brain_edge"
    pixel_mm: float | None = 1.736
    image_size: int | Sequence[int] = (128, 128)
    on_trim: str = "error"
    lower: float = 0.5
    upper: float = 99.5
    window: Sequence[float] | None = None
    dimensions: int = 2

    @property
    def positions_mm(self) -> tuple[float, ...]:
        """All positions; raises InputError for what is not a position."""
        if self.positions is not None:
            return check_positions(self.positions)
        return tuple(position_range(self.start_mm, self.stop_mm, self.step_mm))

    @property
    def size(self) -> tuple[int, ...]:
        """Rows and columns, or three axes; raises InputError for what is not a size."""
        return check_size(self.image_size, axes=self.dimensions)

    @property
    def view(self) -> str:
        """What scans are cut into: the plane of the slices, or "volume"."""
        return VOLUME if self.dimensions == 3 else self.plane

    def check(self) -> None:
        """Raise InputError for an option that cannot work."""
        if self.dimensions not in (2, 3):
            raise InputError(f"dimensions is {self.dimensions!r}; give 2 for slices or 3 for volumes")
        check_position_options(self.plane, "mm", self.reference)
        check_on_trim(self.on_trim)
        if not 0 <= self.lower < self.upper <= 100:
            raise InputError(f"percentiles are {self.lower} and {self.upper}; expected 0 <= lower < upper <= 100")
        check_window(self.window)
        if self.pixel_mm is not None and not self.pixel_mm > 0:
            raise InputError(f"pixel_mm is {self.pixel_mm}; give a positive size in millimeters, or None")
        _ = self.positions_mm, self.size


class ScanOutcome(NamedTuple):
    """A scan's datalist items, and what was skipped for which reason."""

    subject: str
    items: list[dict[str, Any]]
    skipped: list[dict[str, str]]
    pixel_mm: tuple[float, ...] = (float("nan"), float("nan"))
    """Of its slices' rows and columns, or its volume's axes; NaN where the scan could not be read."""


def slices_of_scan(record: ScanRecord, options: SliceOptions, images: Path) -> ScanOutcome:
    """Read a scan once and write its slices. A fault is a skip, logged once a scan, and does not end the run."""
    cropped: list[str] = []
    outcome = _slices_of_scan(record, options, images, cropped)
    for kind, reasons in (("skipped", [entry["reason"] for entry in outcome.skipped]), ("cropped", cropped)):
        if reasons:
            others = f" (and {len(reasons) - 1} more of this scan)" if len(reasons) > 1 else ""
            logger.warning("%s: %s%s", kind, reasons[0], others)
    return outcome


def _slices_of_scan(record: ScanRecord, options: SliceOptions, images: Path, cropped: list[str]) -> ScanOutcome:
    outcome = ScanOutcome(record.subject, [], [])
    try:
        prepared = _prepare(record, options)
    except Exception as error:  # a file from anywhere can raise anything in a reader, and costs no more than itself
        known = isinstance(error, ScanError)
        _skip(outcome, record, str(error) if known else f"{record.path}: cannot be read ({error!r}); exclude the scan")
        return outcome
    own = prepared.view.spacing[: options.dimensions]
    outcome = outcome._replace(pixel_mm=own if options.pixel_mm is None else (options.pixel_mm,) * len(own))
    for name, about, cut in _cuts(record, prepared, options, outcome):
        try:
            cropped += _write(prepared, cut(), options, images / name, about)
        except ScanError as error:
            _skip(outcome, record, str(error))
            continue
        outcome.items.append({"image": f"images/{name}", **about, **record.columns})
    return outcome


def _cuts(
    record: ScanRecord, prepared: PreparedVolume, options: SliceOptions, outcome: ScanOutcome
) -> Iterator[tuple[str, dict[str, Any], Callable[[], SlicePixels]]]:
    """File, record and maker of each slice, or of the volume; positions that give none are noted as skips."""
    if options.dimensions == 3:
        cut_all = partial(cut_volume, prepared, pixel_mm=options.pixel_mm)
        yield f"{record.name}_{VOLUME}.nii.gz", {"subject": record.subject}, cut_all
        return
    planes = locate_planes(prepared, options.positions_mm, reference=options.reference)
    used: set[str] = set()
    for position, plane in zip(options.positions_mm, planes, strict=True):
        if plane is None:
            _skip(outcome, record, outside_message(prepared, position, unit="mm", reference=options.reference))
            continue
        name = f"{record.name}_{options.plane}_{plane.position_mm:06.2f}mm.nii.gz"
        if name in used:
            _skip(outcome, record, f"{record.path}: position {position:g} mm falls on a plane already taken")
            continue
        used.add(name)
        about = {"subject": record.subject, "plane": options.plane, "position_mm": round(plane.position_mm, 2)}
        yield name, about, partial(cut_plane, prepared, plane, pixel_mm=options.pixel_mm)


def _prepare(record: ScanRecord, options: SliceOptions) -> PreparedVolume:
    volume = read_volume(record.path)
    prepared = prepare_volume(
        volume.voxels_s,
        volume.affine,
        options.view,
        lower=options.lower,
        upper=options.upper,
        name=str(record.path),
    )
    if options.window is not None:
        return prepared._replace(window=Window(*map(float, options.window)))
    if not prepared.window.high > prepared.window.low:
        raise ScanError(f"{record.path}: the volume is constant; exclude the scan or export it again")
    return prepared


def _write(
    prepared: PreparedVolume, cut: SlicePixels, options: SliceOptions, path: Path, about: dict[str, Any]
) -> list[str]:
    """Write a slice or volume; what was cropped."""
    cropped = []
    frame = place_frame(cut.box, options.size)
    if frame_loses(frame, cut.box) and trimmed(cut.pixels, frame, prepared.threshold):
        size, place = " x ".join(map(str, options.size)), about.get("position_mm")
        extent = " x ".join(str(round(last) - round(first) + 1) for first, last in cut.box)
        where = f"pixels at {place:.1f} mm" if place is not None else f"voxels: it takes {extent}"
        message = (
            f"{prepared.name}: the brain does not fit into {size} {where}; give a larger image_size or pixel_mm, or "
            "on_trim='warn' to crop it"
        )
        if options.on_trim == "error":
            raise ScanError(message)
        cropped.append(message)
    scaled = scale_to_window(apply_frame(cut.pixels, frame, fill=prepared.window.low), prepared.window)
    write_slice_nifti(path, scaled[None], frame_affine(cut.affine, frame), about)
    return cropped


def _skip(outcome: ScanOutcome, record: ScanRecord, reason: str) -> None:
    told = reason.replace(str(record.path), record.path.name)  # the list may leave this machine
    outcome.skipped.append({"file": record.path.name, "reason": told})
