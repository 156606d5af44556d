"""How well anomaly maps find lesions, beside what needs no priors: `metrics.json` of `evaluate_anomaly.json`.

    training slices  --> HealthySlices, mean images, principal components
    validation       --> thresholds: the share of healthy pixels that may lie above them
    test             --> synthetic lesions by seed, all scores; scans with masks likewise

Shape legend: b slices, h w rows and columns, k components.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import Dataset
from numpy.typing import NDArray
from tqdm.auto import tqdm

from monai_vqgen.anomaly.healthy import STEP_MM, HealthySlices, model_fingerprint
from monai_vqgen.anomaly.signals import Signals, anomaly_signals, smooth_within
from monai_vqgen.engines import encode_records
from monai_vqgen.errors import DatalistError, InputError, ScanError
from monai_vqgen.evaluation.evaluator import split_records
from monai_vqgen.files import write_json
from monai_vqgen.metrics import count_pixels, lesion_scores, lesions_found
from monai_vqgen.models.record import STATISTICS
from monai_vqgen.models.scan_slices import brain_extent, cut_scan
from monai_vqgen.models.scans import BUNDLE_PIXEL_MM, as_volume
from monai_vqgen.transforms.intensity import BRAIN_LEVEL, MatchQuantiles, brain_quantiles
from monai_vqgen.transforms.lesions import LESION_KINDS, draw_lesion, place_lesion
from monai_vqgen.transforms.resampling import resample_plane
from monai_vqgen.transforms.size import apply_frame

__all__ = ["AnomalyEvaluation", "every_slice"]

logger = logging.getLogger(__name__)

COMPONENTS = 64  # principal components of the baseline
METRICS = "metrics.json"
SEED_STEP = 100_003  # between the lesions of two seeds; more than a test set has slices
MASK_LEVEL = 0.5  # share of a pixel that is a lesion


class _Slices(NamedTuple):
    """Slices, what is known of them, and which pixels are lesions."""

    images_bhw: NDArray
    records: Sequence[Mapping[str, Any]]
    masks_bhw: NDArray

    @property
    def brain_bhw(self) -> NDArray:
        return self.images_bhw > BRAIN_LEVEL


def every_slice(dataset_dir: str | Path, preprocessing: Any, every: int = 1) -> dict[str, Dataset]:
    """Data sets of all three splits, of every so many slices.

    Raises:
        InputError: `every` is below 1.
        DatalistError: there are no training slices.
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise InputError(f"every is {every!r}; give a whole number, 1 for all slices")
    return {split: Dataset(records[::every], preprocessing) for split, records in split_records(dataset_dir).items()}


class AnomalyEvaluation:
    """Measure anomaly maps on lesions with masks.

    Writes `metrics.json`, and `healthy.safetensors`, which `anomaly.json` takes as `--healthy`.

    Args:
        model: a `TrainedModel` of slices with priors.
        datasets: MONAI data sets of slices by split: "training", "validation", "test"; records with positions.
        output_dir: where the results go.
        scans: folder of scans `NAME_T1.nii.gz` with their masks `NAME_lesion.nii.gz`, or None.
        seeds: how many times the test slices get lesions.
        draws: restorations a slice as a further signal; 0 saves most of the time.
        share: of healthy validation pixels that the threshold lies above.

    Raises:
        DatalistError: an empty split, or no scan with a mask.
        InputError: numbers out of range.
        ScanError: masks of another size or place than their scans, or of no pixel in the slices that are looked at.
    """

    def __init__(
        self,
        model: Any,
        datasets: Mapping[str, Any],
        *,
        output_dir: str | Path,
        scans: str | Path | None = None,
        seeds: int = 1,
        draws: int = 0,
        share: float = 0.98,
    ) -> None:
        if empty := [split for split in ("training", "validation", "test") if not len(datasets[split])]:
            raise DatalistError(f"split {empty[0]!r} holds no slices: give slices of all three splits")
        for name, value, least in (("seeds", seeds, 1), ("draws", draws, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} is {value!r}; give a whole number, at least {least}")
        if not isinstance(share, int | float) or not 0 < share < 1:
            raise InputError(f"share is {share!r}; give a number between 0 and 1, such as 0.98")
        self.model, self.datasets, self.folder = model, datasets, Path(output_dir)
        self.pairs = [] if scans is None else _pairs(Path(scans))
        self.seeds, self.draws, self.share = seeds, draws, share

    def run(self) -> dict[str, Any]:
        """Measure, write, and return the content of `metrics.json`."""
        scans = self._scans() if self.pairs else None  # before the long part: what is wrong with them is told at once
        training, validation = self._slices("training"), self._slices("validation")
        brain_mm = _mean_brain(training, self.model.record.pixel_mm or BUNDLE_PIXEL_MM)
        scaled = None if scans is None else self._scans(brain_mm)
        signals = self._signals(training, "statistics of healthy slices")
        healthy = HealthySlices.fit(
            [(signals, _positions(training))],
            quantiles=brain_quantiles(training.images_bhw),
            fingerprint=model_fingerprint(self.model),
            brain_mm=brain_mm,
        )
        components_khw = _components(training.images_bhw)
        scores = self._scores(validation, healthy, components_khw)
        brain_bhw = validation.brain_bhw
        thresholds = {name: float(np.quantile(map_bhw[brain_bhw], self.share)) for name, map_bhw in scores.items()}
        healthy = healthy._replace(threshold=thresholds["anomaly_map"])
        self.folder.mkdir(parents=True, exist_ok=True)
        healthy.save(self.folder / STATISTICS)
        test = self._slices("test")
        rounds = [_with_lesions(test, seed) for seed in range(self.seeds)]
        pooled = _Slices(*(np.concatenate(parts) for parts in zip(*rounds, strict=True)))  # type: ignore[arg-type]
        results = self._figures(pooled, healthy, components_khw, thresholds)
        metrics: dict[str, Any] = {
            "share": self.share,
            "seeds": self.seeds,
            "draws": self.draws,
            "synthetic": results,
        }
        if scans is not None and scaled is not None:
            for name, shown in {
                "scans": _matched(scaled, healthy.quantiles),
                "scans_matched_alone": _matched(scans, healthy.quantiles),
                "scans_as_they_are": scans,
            }.items():
                metrics[name] = self._figures(shown, healthy, components_khw, thresholds)
        write_json(self.folder / METRICS, metrics)
        best = results["methods"]["anomaly_map"]
        logger.info("Synthetic lesions: pixel AP %.3f (no knowledge %.3f)", best["ap"], results["prevalence"])
        return metrics

    def _slices(self, split: str) -> _Slices:
        data = self.datasets[split]
        images_bhw = np.stack([np.asarray(data[i]["image"], dtype=np.float32)[0] for i in range(len(data))])
        return _Slices(images_bhw, list(data.data), np.zeros(images_bhw.shape, dtype=bool))

    def _batches(self, slices: _Slices, told: str) -> Iterator[Signals]:
        size = self.model.batch_size
        for start in tqdm(range(0, len(slices.images_bhw), size), desc=told, unit="batch", leave=False):
            rows = slice(start, start + size)
            encoder = self.model.condition
            known = None if encoder is None else encode_records(encoder, slices.records[rows])
            images = torch.from_numpy(slices.images_bhw[rows])[:, None]
            yield anomaly_signals(self.model, images, condition=known, draws=self.draws, first_slice=start)

    def _signals(self, slices: _Slices, told: str) -> Signals:
        parts = list(self._batches(slices, told))
        values, brains = ([getattr(part, name) for part in parts] for name in ("values_bnhw", "brain_bhw"))
        return Signals(parts[0].names, np.concatenate(values), np.concatenate(brains))

    def _scores(self, slices: _Slices, healthy: HealthySlices, components_khw: NDArray) -> dict[str, NDArray]:
        """Each method's map."""
        signals = self._signals(slices, "scoring")
        found = healthy.score(signals, _positions(slices))
        of = dict(zip(found.names, np.moveaxis(found.distances_bnhw, 1, 0), strict=True))
        raw = dict(zip(signals.names, np.moveaxis(signals.values_bnhw, 1, 0), strict=True))
        smooth = lambda map_bhw: smooth_within(map_bhw, slices.brain_bhw)  # noqa: E731
        levels = [name for name in of if name.startswith("bits")]
        means = dict(enumerate(healthy.mean_pnhw[:, healthy.names.index("intensity")]))
        nearest_b = np.abs(np.asarray(_positions(slices))[:, None] - healthy.positions_p).argmin(1)
        mean_bhw = np.stack([means[i] for i in nearest_b.tolist()])
        return {
            "anomaly_map": found.scores_bhw,
            "bits": sum(raw[name] for name in levels),
            "bits_z": sum(of[name] for name in levels),
            **({"restoration": raw["restoration"]} if "restoration" in raw else {}),
            "without_priors": np.sqrt(sum(of[name] ** 2 for name in ("intensity", "detail", "residual"))),
            "without_model": np.hypot(of["intensity"], of["detail"]),
            "position_z": np.abs(of["intensity"]),
            "reconstruction_error": raw["residual"],
            "reconstruction_error_z": np.abs(of["residual"]),
            "mean_image": smooth(np.abs(slices.images_bhw - mean_bhw)),
            "pca": smooth(np.abs(slices.images_bhw - _projected(slices.images_bhw, components_khw))),
            "dark": -raw["intensity"],
            "bright": raw["intensity"],
        }

    def _figures(
        self, slices: _Slices, healthy: HealthySlices, components_khw: NDArray, thresholds: Mapping[str, float]
    ) -> dict[str, Any]:
        scores, brain_bhw = self._scores(slices, healthy, components_khw), slices.brain_bhw
        subjects = [str(record.get("subject")) for record in slices.records]
        names = {str(record[key]): key for record in slices.records for key in ("lesion", "seed") if key in record}
        parts = {
            name if key == "lesion" else f"seed_{name}": np.array(
                [str(record[key]) == name for record in slices.records]
            )
            for name, key in names.items()
        }
        methods: dict[str, Any] = {}
        for name, map_bhw in scores.items():
            counts = count_pixels(map_bhw, slices.masks_bhw, brain_bhw, subjects)
            called_bhw = (map_bhw > thresholds[name]) & brain_bhw
            methods[name] = {
                **lesion_scores(counts, threshold=thresholds[name])._asdict(),
                "threshold": thresholds[name],
                "lesions_found": lesions_found(called_bhw, slices.masks_bhw),
            }
            for part, of in parts.items():
                counts = count_pixels(map_bhw[of], slices.masks_bhw[of], brain_bhw[of], [""] * int(of.sum()))
                methods[name][f"ap_{part}"] = lesion_scores(counts, threshold=thresholds[name], resamples=1).ap
        prevalence = float(slices.masks_bhw[brain_bhw].mean())
        return {"slices": len(subjects), "subjects": len(set(subjects)), "prevalence": prevalence, "methods": methods}

    def _scans(self, brain_mm: NDArray | None = None) -> _Slices:
        """The slices of all scans with masks, their brains of this size or their own."""
        images, records, masks = [], [], []
        for scan, mask in self.pairs:
            image, label = as_volume(scan), as_volume(mask)
            affine = np.asarray(image.affine.cpu(), dtype=np.float64)
            cut = cut_scan(self.model, image.as_tensor()[0].numpy(), affine, step_mm=STEP_MM, brain_mm=brain_mm)
            if label.shape != image.shape:
                shapes = f"shape {tuple(label.shape[1:])}, its scan {tuple(image.shape[1:])}"
                raise ScanError(f"{mask} has the {shapes}: resample the mask")
            view = cut.prepared.view._replace(volume_s=_seen(label, affine, cut.prepared.plane))
            for plane in cut.planes:
                pixels = resample_plane(view.volume_s[:, :, plane.number].astype(np.float32), view.affine, cut.pixel_mm)
                masks.append(apply_frame(pixels.pixels, cut.frame) >= MASK_LEVEL)
            images.append(cut.images_nhw)
            records += [{"subject": scan.name, "position_mm": position} for position in cut.positions_mm]
        if not np.any(masks):
            raise ScanError(f"the masks in {self.pairs[0][1].parent} mark nothing in the slices that are looked at")
        return _Slices(np.concatenate(images), records, np.stack(masks))


def _mean_brain(slices: _Slices, pixel_mm: float) -> NDArray | None:
    """Rows and columns of the brain in mm, the mean of all subjects; None where slices do not tell theirs."""
    if any(record.get("subject") is None for record in slices.records):
        return None
    whose = np.array([str(record["subject"]) for record in slices.records])
    extents = [brain_extent(slices.images_bhw[whose == subject]) for subject in np.unique(whose)]
    return np.asarray(np.mean(extents, axis=0) * pixel_mm)


def _matched(slices: _Slices, quantiles: NDArray) -> _Slices:
    """Each scan's slices with the intensities of the training data."""
    match, images_bhw = MatchQuantiles(quantiles), np.empty_like(slices.images_bhw)
    subjects = np.array([record["subject"] for record in slices.records])
    for subject in np.unique(subjects):
        images_bhw[subjects == subject] = np.asarray(match(slices.images_bhw[subjects == subject]))
    return slices._replace(images_bhw=images_bhw)


def _seen(label: Any, affine: NDArray, plane: str) -> NDArray:
    from monai_vqgen.transforms.geometry import view_plane

    own = np.asarray(label.affine.cpu(), dtype=np.float64)
    if not np.allclose(own, affine, atol=1e-3):
        raise ScanError(f"a mask has the affine {own.tolist()}, its scan {affine.tolist()}: resample the mask")
    return view_plane(label[0].as_tensor().numpy() > 0, affine, plane).volume_s


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Scans and their masks: `NAME_T1.nii.gz`, `NAME_lesion.nii.gz`."""
    masks = sorted(folder.glob("*_lesion.nii*"))
    pairs = [(mask.with_name(mask.name.replace("_lesion.", "_T1.")), mask) for mask in masks]
    missing = [scan for scan, _ in pairs if not scan.is_file()]
    if not pairs or missing:
        what = f"{missing[0].name} is not" if missing else "no NAME_lesion.nii.gz is"
        raise DatalistError(f"{what} in {folder}: give scans NAME_T1.nii.gz with masks NAME_lesion.nii.gz")
    return pairs


def _positions(slices: _Slices) -> list[float]:
    return [float(record.get("position_mm", float("nan"))) for record in slices.records]


def _with_lesions(slices: _Slices, seed: int) -> _Slices:
    """One lesion a slice, kinds in turn; a slice without room for one is left out."""
    images, records, masks = [], [], []
    for i, (image_hw, record) in enumerate(zip(slices.images_bhw, slices.records, strict=True)):
        kind = LESION_KINDS[(i + seed) % len(LESION_KINDS)]
        try:
            lesion = draw_lesion(image_hw, seed=seed * SEED_STEP + i, kind=kind)
        except ScanError:
            continue
        changed_hw, mask_hw = place_lesion(image_hw, lesion)
        images.append(changed_hw)
        masks.append(mask_hw)
        records.append({**record, "lesion": kind, "seed": seed})
    return _Slices(np.stack(images), records, np.stack(masks))


def _components(images_bhw: NDArray) -> NDArray:
    """The mean image, then the principal components of the slices, orthonormal."""
    mean_hw = images_bhw.mean(0)
    centered_bn = (images_bhw - mean_hw).reshape(len(images_bhw), -1)
    values, vectors = np.linalg.eigh(centered_bn @ centered_bn.T)
    kept = [i for i in np.argsort(-values)[:COMPONENTS] if values[i] > 1e-6 * values.max()]
    axes_kn = (vectors[:, kept] / np.sqrt(values[kept])).T @ centered_bn
    return np.stack([mean_hw, *axes_kn.reshape(-1, *mean_hw.shape)])


def _projected(images_bhw: NDArray, components_khw: NDArray) -> NDArray:
    """The slices as the components show them."""
    mean_hw, axes_kn = components_khw[0], components_khw[1:].reshape(len(components_khw) - 1, -1)
    weights_bk = (images_bhw - mean_hw).reshape(len(images_bhw), -1) @ axes_kn.T
    shown_bhw: NDArray = (weights_bk @ axes_kn).reshape(images_bhw.shape) + mean_hw
    return shown_bhw
