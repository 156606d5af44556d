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
from tqdm import tqdm

from monai_vqgen.anomaly.healthy import HealthySlices, moved_into_range, score_slices
from monai_vqgen.anomaly.signals import smooth_within
from monai_vqgen.data.io.captures import CaptureLabels
from monai_vqgen.data.io.nifti import nifti_bytes
from monai_vqgen.data.io.segmentations import write_segmentation
from monai_vqgen.engines import encode_records
from monai_vqgen.errors import DatalistError, ScanError
from monai_vqgen.files import write_bytes, write_json
from monai_vqgen.models.loading import weights_file
from monai_vqgen.models.reconstruction_files import plain_stem
from monai_vqgen.models.record import STATISTICS
from monai_vqgen.models.samples import check_names
from monai_vqgen.models.scan_slices import UNSCALED, cut_scan
from monai_vqgen.models.scans import as_volume
from monai_vqgen.models.trained_model import TrainedModel
from monai_vqgen.transforms.intensity import BRAIN_LEVEL, MatchQuantiles

__all__ = [
    "AnomalyScan",
    "anomaly_labels",
    "anomaly_names",
    "anomaly_scan",
    "healthy_beside",
    "write_anomalies",
]

logger = logging.getLogger(__name__)

REPORT = "anomalies.json"


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


def anomaly_labels(found: AnomalyScan, source: str | os.PathLike[str]) -> CaptureLabels:
    """What `write_segmentation` writes beside the unusual places of a DICOM series.

    Args:
        found: with a threshold.
        source: the folder of the series.
    """
    derivation = f"Scores over {found.threshold:.4g} under the priors of a vector-quantized autoencoder; research only"
    return CaptureLabels("Unusual places (monai_vqgen)", derivation, source=Path(source))


def _write_scan(folder: Path, path: Path, found: AnomalyScan) -> list[str]:
    """Write what was found in a scan; returns what could not be written, in words."""
    stem = plain_stem(path)
    write_bytes(folder / f"{stem}_anomaly.nii.gz", nifti_bytes(found.scores_s, found.affine))
    if found.lesions_s is None:
        return []
    write_bytes(folder / f"{stem}_lesions.nii.gz", nifti_bytes(found.lesions_s.astype(np.uint8), found.affine))
    if path.is_dir():
        labels = anomaly_labels(found, path)
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
