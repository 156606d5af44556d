"""Anomaly maps of whole scans, slice by slice, in their own geometry; `anomaly.json` writes them as NIfTI.

Shape legend: n slices, h w rows and columns, s the scan's three axes as stored.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from monai_vqgen.anomaly.healthy import HealthySlices, moved_into_range, score_slices
from monai_vqgen.anomaly.signals import smooth_within
from monai_vqgen.data.io.captures import CaptureLabels
from monai_vqgen.data.io.nifti import nifti_bytes
from monai_vqgen.data.io.segmentations import write_segmentation
from monai_vqgen.engines import encode_records
from monai_vqgen.errors import DatalistError, InputError, ScanError
from monai_vqgen.files import write_bytes, write_json
from monai_vqgen.models.loading import weights_file
from monai_vqgen.models.reconstruction_files import plain_stem
from monai_vqgen.models.record import STATISTICS
from monai_vqgen.models.samples import check_names
from monai_vqgen.models.scans import BUNDLE_PIXEL_MM, as_volume
from monai_vqgen.models.trained_model import TrainedModel
from monai_vqgen.transforms.geometry import PlaneView, view_plane
from monai_vqgen.transforms.intensity import BRAIN_LEVEL, MatchQuantiles, scale_to_window
from monai_vqgen.transforms.resampling import restore_plane
from monai_vqgen.transforms.size import Frame, apply_frame, frame_loses, place_frame, trimmed
from monai_vqgen.transforms.volume_slicing import Plane, PreparedVolume, cut_plane, locate_planes, prepare_volume

__all__ = [
    "AnomalyScan",
    "ScanSlices",
    "anomaly_names",
    "anomaly_scan",
    "brain_extent",
    "cut_scan",
    "healthy_beside",
    "write_anomalies",
]

logger = logging.getLogger(__name__)

REPORT = "anomalies.json"
UNSCALED = (1.0, 1.0, 1.0)
MOST_SCALED, MOST_STRETCHED = 1.35, 1.15  # chosen by us: beyond, it is not the brain alone, or not an adult's
MOST_SLICES = 1024  # of a scan


class ScanSlices(NamedTuple):
    """Slices of a scan as the model was trained on them, and how they lie.

    Attributes:
        images_nhw: float32 in [0, 1].
        positions_mm: of each.
        left_out: slices of the brain outside the trained positions.
        cropped: slices that show brain outside the model's image size; it is not looked at.
        prepared: the volume they were cut from.
        planes: of each slice.
        frame: of the model's image size in the resampled planes, whose size is `shown`.
        shown: rows and columns of a resampled plane.
        pixel_mm: of the slices.
        scaled: factors by which the brain was enlarged along rows, columns and normal.
        kept: why the brain's size was left as it is although another was asked for; else empty.
    """

    images_nhw: NDArray
    positions_mm: list[float]
    left_out: int
    cropped: int
    prepared: PreparedVolume
    planes: list[Plane]
    frame: Frame
    shown: tuple[int, ...]
    pixel_mm: float
    scaled: tuple[float, float, float] = UNSCALED
    kept: str = ""

    def back(self, maps_nhw: NDArray, shape: Sequence[int], affine: NDArray) -> NDArray:
        """Maps in the scan's geometry, `(X, Y, Z)` float32; 0 where there was no slice."""
        volume_s = np.zeros(tuple(shape), dtype=np.float32)
        view = view_plane(volume_s, affine, self.prepared.plane)
        grid = scaled_view(view, self.scaled).affine
        outside = Frame(tuple(-start for start in self.frame.start), tuple(self.shown))
        inner_nhw = apply_frame(maps_nhw.astype(np.float32), outside)
        own_nhw = restore_plane(inner_nhw, view.volume_s.shape[:2], grid, self.pixel_mm).clip(0)
        for plane, own_hw in zip(self.planes, own_nhw, strict=True):
            view.volume_s[:, :, plane.number] = own_hw
        return volume_s


class AnomalyScan(NamedTuple):
    """What was found in a scan.

    Attributes:
        scores_s: float32 in the scan's geometry; without statistics, bits of all levels.
        lesions_s: scores above the threshold; None while there is no threshold.
        affine: of the scan.
        threshold: that was used.
        notes: slices left out or cropped, values moved into the trained range, a brain of a size that is left as it is;
            empty where there was nothing to say.
        scaled: factors by which the brain was enlarged along rows, columns and normal.
    """

    scores_s: NDArray
    lesions_s: NDArray | None
    affine: NDArray
    threshold: float | None
    notes: tuple[str, ...]
    scaled: tuple[float, float, float] = UNSCALED


def cut_scan(
    model: Any,
    values_s: NDArray,
    affine: NDArray,
    *,
    plane: str | None = None,
    step_mm: float | None = None,
    brain_mm: NDArray | None = None,
) -> ScanSlices:
    """Every plane of a scan at a position that the priors know, extracted as `extract_slices.json` does.

    A brain of another size shows other anatomy at the same distance below its top, and other folds: with `brain_mm` the
    scan is cut as if its voxels had the size with which its brain measures that, and the geometric mean of both factors
    holds along the normal. It is left as it is where a factor would be above 1.35 or below 1 / 1.35, one factor 1.15
    times the other, or no slice would be left.

    Args:
        model: a `TrainedModel` of slices.
        values_s: the scan.
        affine: 4x4, voxel centers to RAS+ millimeters.
        plane: of the slices; by default the model's.
        step_mm: between slices; by default every plane of the scan.
        brain_mm: rows and columns of the brain, as `brain_extent` measures it; by default the scan's own.

    Raises:
        ScanError: nothing to see, or no plane at a trained position.
        InputError: a model whose image size is not known.
    """
    cut = _cut(model, values_s, affine, plane, step_mm)
    if brain_mm is None:
        return cut
    own_mm = brain_extent(cut.images_nhw) * cut.pixel_mm
    told = (
        f"the brain measures {_size(own_mm)}, those of the training data {_size(brain_mm)}; its size is left as it is"
    )
    if plane not in (None, model.record.plane or "axial"):
        return cut._replace(kept=f"the size of the training data's brains in {plane} slices is not known")
    rows, columns = np.asarray(brain_mm) / np.maximum(own_mm, cut.pixel_mm)
    factors = (float(rows), float(columns), float(np.sqrt(rows * columns)))
    alike = max(rows / columns, columns / rows) <= MOST_STRETCHED
    if not alike or not all(1 / MOST_SCALED <= factor <= MOST_SCALED for factor in factors):
        return cut._replace(kept=told)
    try:
        return _cut(model, values_s, affine, plane, step_mm, factors)
    except ScanError as error:
        return cut._replace(kept=f"{told} ({error})")


def _size(sides_mm: NDArray) -> str:
    return " x ".join(f"{side:.0f}" for side in sides_mm) + " mm"


def brain_extent(images_nhw: NDArray) -> NDArray:
    """Rows and columns, in pixels, from the first to the last of the largest part that is brain in any slice."""
    parts_hw, count = ndimage.label(np.any(np.asarray(images_nhw) > BRAIN_LEVEL, axis=0))
    sizes = np.bincount(parts_hw.ravel(), minlength=2)[1:]
    brain_hw = parts_hw == 1 + int(sizes.argmax()) if count else np.zeros(parts_hw.shape, dtype=bool)
    spans = [np.flatnonzero(brain_hw.any(1)), np.flatnonzero(brain_hw.any(0))]
    return np.array([span[-1] - span[0] + 1 if span.size else 0 for span in spans], dtype=float)


def scaled_view(view: PlaneView, scaled: Sequence[float]) -> PlaneView:
    """The view as if its voxels were so many times as large along rows, columns and normal."""
    rows, columns, normal = (size * factor for size, factor in zip(view.spacing, scaled, strict=True))
    return view._replace(affine=view.affine @ np.diag([*scaled, 1.0]), spacing=(rows, columns, normal))


def _cut(
    model: Any,
    values_s: NDArray,
    affine: NDArray,
    plane: str | None,
    step_mm: float | None,
    scaled: tuple[float, float, float] = UNSCALED,
) -> ScanSlices:
    if not model.record.image_size:
        raise InputError("the record of these weights does not tell their image size: use anomaly_map on slices")
    lower, upper = model.record.percentiles
    values_s = np.nan_to_num(values_s, nan=0.0, posinf=0.0, neginf=0.0)
    prepared = prepare_volume(values_s, affine, plane or model.record.plane or "axial", lower=lower, upper=upper)
    if not prepared.window.high > prepared.window.low:
        raise ScanError("the scan has no contrast; export it again")
    prepared = prepared._replace(view=scaled_view(prepared.view, scaled))
    spacing, pixel_mm = prepared.view.spacing[2], model.record.pixel_mm or BUNDLE_PIXEL_MM
    count = prepared.box.stop[2] - prepared.box.start[2]
    step_mm = max(step_mm or spacing, spacing)
    placed = locate_planes(prepared, np.arange(0, count * spacing, step_mm).tolist())
    found = [plane for plane in placed if plane is not None]  # rounding may ask for one more than there are
    low, high = (model.condition.continuous if model.condition else {}).get("position_mm", (-np.inf, np.inf))
    planes = [plane for plane in found if low <= plane.position_mm <= high]
    if len(planes) > MOST_SLICES:
        raise ScanError(
            f"{len(planes)} slices {spacing:g} mm apart; at most {MOST_SLICES} are looked at in a scan: fix the "
            "spacing in the header, or resample the scan"
        )
    if not planes:
        raise ScanError(
            f"no slice of the scan lies {low:g} to {high:g} mm from the brain's edge, as the trained ones do"
        )
    cuts = [cut_plane(prepared, plane, pixel_mm=pixel_mm) for plane in planes]
    frame = place_frame(cuts[0].box, model.record.image_size)
    images = [scale_to_window(apply_frame(c.pixels, frame, fill=prepared.window.low), prepared.window) for c in cuts]
    cropped = sum(trimmed(c.pixels, frame, prepared.threshold) for c in cuts) if frame_loses(frame, cuts[0].box) else 0
    return ScanSlices(
        np.stack(images),
        [plane.position_mm for plane in planes],
        len(found) - len(planes),
        cropped,
        prepared,
        planes,
        frame,
        cuts[0].pixels.shape,
        pixel_mm,
        scaled,
    )


def anomaly_scan(
    model: Any,
    scan: Any,
    healthy: HealthySlices | None = None,
    *,
    threshold: float | None = None,
    match: bool = True,
    scale: bool = True,
    plane: str | None = None,
    condition: Mapping[str, Any] | None = None,
) -> AnomalyScan:
    """Where a scan is unlikely.

    Args:
        model: a `TrainedModel` of slices with priors.
        scan: as in `TrainedModel.reconstruct`: a NIfTI file, a folder with a DICOM series, a MetaTensor or an array.
        healthy: statistics of healthy slices; without them the scores are bits.
        threshold: of the segmentation; by default the statistics' own.
        match: bring the scan's intensities to the quantiles of the training data, where there are statistics.
        scale: bring the brain to the mean size of the training data's, where the statistics know it.
        plane: of the slices; by default the model's.
        condition: values by name, for all slices; the position is known.

    Raises:
        InputError, ScanError: a scan or an argument that cannot be used.

    Examples:
        >>> from monai_vqgen import TrainedModel
        >>> anomaly_scan(TrainedModel.from_bundle("faithful"), "scan.nii.gz").scores_s.shape  # doctest: +SKIP
        (160, 200, 145)
    """
    image = as_volume(scan)
    plain = image.as_tensor() if image.ndim == 3 else image.as_tensor()[0]
    values_s = np.asarray(plain.cpu(), dtype=np.float32)
    affine = np.asarray(image.affine.cpu(), dtype=np.float64)
    brain_mm = healthy.brain_mm if healthy is not None and scale else None
    cut = cut_scan(model, values_s, affine, plane=plane, brain_mm=brain_mm)
    images_nhw = cut.images_nhw
    if healthy is not None and match:
        images_nhw = np.asarray(MatchQuantiles(healthy.quantiles)(images_nhw))
    images = torch.from_numpy(images_nhw)[:, None]
    check_names(model.condition, condition or {})
    notes = [f"{cut.left_out} slices of the brain outside the trained positions are left out"] if cut.left_out else []
    if cut.cropped:
        notes.append(f"{cut.cropped} slices show more than the model's {cut.frame.size} pixels; the rest is left out")
    notes += [cut.kept] if cut.kept else []
    if healthy is None:
        scores_nhw = _bits(model, images, cut.positions_mm, condition)
        notes += moved_into_range(model.condition, [condition or {}] * len(images))
    else:
        found = score_slices(model, images, healthy, positions_mm=cut.positions_mm, condition=condition)
        scores_nhw, notes = found.scores_bhw, [*notes, *found.outside]
        threshold = healthy.threshold if threshold is None else threshold
    scores_s = cut.back(scores_nhw, values_s.shape, affine)
    usable = threshold is not None and np.isfinite(threshold)
    return AnomalyScan(scores_s, scores_s > threshold if usable else None, affine, threshold, tuple(notes), cut.scaled)


def _bits(model: Any, images: torch.Tensor, positions_mm: list[float], condition: Mapping[str, Any] | None) -> NDArray:
    """Bits of all levels, smoothed within the brain."""
    from monai_vqgen.anomaly.maps import nll_maps

    records, parts = [{**(condition or {}), "position_mm": position} for position in positions_mm], []
    for start in range(0, len(images), model.batch_size):
        rows = slice(start, start + model.batch_size)
        features = None if model.condition is None else encode_records(model.condition, records[rows])
        brain_bhw = images[rows, 0].numpy() > BRAIN_LEVEL
        bits_bhw = torch.stack(nll_maps(model, images[rows], condition=features)).sum(0).numpy()
        parts.append(smooth_within(bits_bhw, brain_bhw) * brain_bhw)
    return np.concatenate(parts)


def anomaly_names(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Files that `write_anomalies` may write.

    Raises:
        DatalistError: two scans would be written under one name.
    """
    paths = [Path(record["image"]) for record in records]
    stems = [plain_stem(path) for path in paths]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise DatalistError(f"several scans are named {twice[0]}: rename them, or give their folders one by one")
    series = [f"{plain_stem(path)}_lesions.dcm" for path in paths if path.is_dir()]
    return [REPORT, *(f"{stem}_{kind}.nii.gz" for stem in stems for kind in ("anomaly", "lesions")), *series]


def healthy_beside(
    model: str | os.PathLike[str] | None = None, priors_dir: str | os.PathLike[str] | None = None
) -> HealthySlices | None:
    """The statistics of healthy slices that lie beside weights; None where there are none.

    Args:
        model: where the weights are, as `TrainedModel.from_bundle` takes it; None for those of the package.
        priors_dir: of priors that lie elsewhere, to which no statistics beside the autoencoder belong: gives None.

    Raises:
        InputError: no weights are there.
        CheckpointError: damaged statistics.

    Examples:
        >>> round(healthy_beside("faithful").threshold, 1)
        3.3
    """
    if priors_dir is not None:
        return None
    with weights_file(None if model is None else os.fspath(model)) as weights:
        path = weights.with_name(STATISTICS)
        return HealthySlices.load(path) if path.is_file() else None


def _write_scan(folder: Path, path: Path, found: AnomalyScan) -> list[str]:
    """Write what was found in a scan; returns what could not be written, in words."""
    stem = plain_stem(path)
    write_bytes(folder / f"{stem}_anomaly.nii.gz", nifti_bytes(found.scores_s, found.affine))
    if found.lesions_s is None:
        return []
    write_bytes(folder / f"{stem}_lesions.nii.gz", nifti_bytes(found.lesions_s.astype(np.uint8), found.affine))
    if path.is_dir():
        derivation = (
            f"Scores over {found.threshold:.4g} under the priors of a vector-quantized autoencoder; research only"
        )
        labels = CaptureLabels("Unusual places (monai_vqgen)", derivation, source=path)
        try:
            write_segmentation(folder / f"{stem}_lesions.dcm", found.lesions_s, affine=found.affine, labels=labels)
        except ScanError as error:
            return [f"no DICOM segmentation is written: {error}"]
    return []


def write_anomalies(
    model: TrainedModel,
    records: Sequence[Mapping[str, Any]],
    output_dir: str | os.PathLike[str],
    *,
    healthy: HealthySlices | str | os.PathLike[str] | None = None,
    **options: Any,
) -> None:
    """Write each scan's map `NAME_anomaly.nii.gz` and segmentation `NAME_lesions.nii.gz`, and notes on all.

    The segmentation of a DICOM series is written as `NAME_lesions.dcm`, too.

    Args:
        model: a `TrainedModel` with priors.
        records: with the path of each scan.
        output_dir: where they go.
        healthy: statistics, or the file that `evaluate_anomaly.json` writes; None for bits.
        options: of `anomaly_scan`.

    Raises:
        ScanError: none of the scans could be used; any other that cannot is a logged skip.
    """
    folder = Path(output_dir)
    report: list[dict[str, Any]] = []
    statistics = HealthySlices.load(healthy, model=model) if isinstance(healthy, str | os.PathLike) else healthy
    for record in tqdm(records, desc="scans", unit="scan"):
        path = Path(record["image"])
        try:
            found = anomaly_scan(model, path, statistics, **options)
        except ScanError as error:
            logger.warning("skipped: %s: %s", path, error)
            report.append({"scan": path.name, "skipped": str(error)})
            continue
        notes = [*found.notes, *_write_scan(folder, path, found)]
        for note in notes:
            logger.warning("%s: %s", path.name, note)
        known = None if found.lesions_s is None else found.threshold
        scaled = [round(factor, 3) for factor in found.scaled]
        report.append({"scan": path.name, "threshold": known, "scaled": scaled, "notes": notes})
    if all("skipped" in entry for entry in report):
        raise ScanError(f"none of the {len(report)} scans could be used: {report[0]['skipped'] if report else ''}")
    write_json(folder / REPORT, {"scans": report})
