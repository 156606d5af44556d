"""What signals of healthy slices are like at each position, and how far a slice is from it.

    score = sqrt( sum over bits of max(z, 0)^2 + sum over the others of z^2 ),   z = (signal - mean) / deviation

Mean and deviation are those of healthy slices around the same position (the distance of Mahalanobis with a diagonal
covariance; arXiv 2407.12474 judges restorations by it). Few bits are no lesion; a dark or a smooth
place may be one.

Shape legend: b batch, h w rows and columns, n signals, p positions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from scipy import ndimage

from monai_vqgen.anomaly.signals import Signals, anomaly_signals
from monai_vqgen.engines import encode_records
from monai_vqgen.errors import CheckpointError, InputError
from monai_vqgen.files import write_bytes
from monai_vqgen.weights import fingerprint

__all__ = ["AnomalyMaps", "HealthySlices"]

STEP_MM = 3.0  # between positions whose statistics are kept
NEIGHBORS_MM = 3.0  # sigma with which slices of other positions count
DEVIATION_SIGMA = 1.5  # pixels over which deviations are shared; few subjects make them rough
DEVIATION_FLOOR = 0.3  # of the deviation over the whole brain, added to each pixel's own
RESTORATIONS = 3  # a slice, where the statistics have that signal
STORED = np.float16  # half the file
FORMAT_VERSION = 1


class AnomalyMaps(NamedTuple):
    """How far slices are from healthy ones.

    Attributes:
        scores_bhw: 0 outside the brain.
        distances_bnhw: in deviations, a signal.
        names: of the signals.
        outside: what lay outside the trained or known range and was moved into it, in words; empty where nothing did.
    """

    scores_bhw: NDArray
    distances_bnhw: NDArray
    names: tuple[str, ...]
    outside: tuple[str, ...] = ()


class HealthySlices(NamedTuple):
    """Statistics of healthy slices by position; `fit` makes them, `score` uses them.

    Attributes:
        names: of the signals.
        positions_p: in mm, ascending.
        mean_pnhw: float32.
        deviation_pnhw: float32, above 0.
        quantiles: intensities of the brain that a share 0, 1/64 ... 1 lies below, for `MatchQuantiles`.
        fingerprint: of the autoencoder and priors that the signals come from; empty for signals without a model.
        threshold: score that a chosen share of healthy pixels stays below; NaN while there is none.
        brain_mm: rows and columns of the brain, the mean of the healthy subjects; None where it is not known.
    """

    names: tuple[str, ...]
    positions_p: NDArray
    mean_pnhw: NDArray
    deviation_pnhw: NDArray
    quantiles: NDArray
    fingerprint: str = ""
    threshold: float = float("nan")
    brain_mm: NDArray | None = None

    @classmethod
    def fit(
        cls,
        batches: Iterable[tuple[Signals, Sequence[float]]],
        *,
        quantiles: NDArray | None = None,
        fingerprint: str = "",
        brain_mm: NDArray | None = None,
    ) -> HealthySlices:
        """Statistics of batches of signals and their positions in mm, one pass.

        Raises:
            InputError: no slices, or a position that is not known.
        """
        kept = [(signals, np.asarray(positions, dtype=float)) for signals, positions in batches]
        if not kept:
            raise InputError("there are no healthy slices: give a folder with a split of training slices")
        places = np.concatenate([positions for _, positions in kept])
        if not np.isfinite(places).all():
            raise InputError("healthy slices need their positions: extract them with extract_slices.json")
        values_bnhw = np.concatenate([signals.values_bnhw for signals, _ in kept])
        brain_bhw = np.concatenate([signals.brain_bhw for signals, _ in kept])
        positions_p = np.arange(places.min(), places.max() + STEP_MM / 2, STEP_MM)
        floor_n = [float(values_bnhw[:, n][brain_bhw].std()) for n in range(values_bnhw.shape[1])]
        means, deviations = [], []
        for position in positions_p:
            weight_b = np.exp(-0.5 * ((places - position) / NEIGHBORS_MM) ** 2)
            near = weight_b > 1e-3 * weight_b.max()
            weight_b, values = (weight_b[near] / weight_b[near].sum()).astype(np.float32), values_bnhw[near]
            means.append(np.tensordot(weight_b, values, 1))
            spread_nhw = np.sqrt(np.tensordot(weight_b, (values - means[-1]) ** 2, 1))
            blurred_nhw = ndimage.gaussian_filter(spread_nhw, (0, DEVIATION_SIGMA, DEVIATION_SIGMA))
            deviations.append(blurred_nhw + DEVIATION_FLOOR * np.maximum(floor_n, 1e-6)[:, None, None])
        mean, deviation = (np.stack(kind).astype(STORED).astype(np.float32) for kind in (means, deviations))
        quantiles = np.linspace(0, 1, 65) if quantiles is None else quantiles
        return cls(kept[0][0].names, positions_p, mean, deviation, quantiles, fingerprint, brain_mm=brain_mm)

    def score(self, signals: Signals, positions_mm: Sequence[float]) -> AnomalyMaps:
        """The maps of slices at these positions; one out of the known range is judged by the nearest known one.

        Raises:
            InputError: other signals, slices of another size, or another number of positions than slices.
        """
        if signals.names != self.names or signals.values_bnhw.shape[1:] != self.mean_pnhw.shape[1:]:
            raise InputError(
                f"signals {', '.join(signals.names)} of {signals.values_bnhw.shape[2:]} pixels, and statistics of "
                f"{', '.join(self.names)} of {self.mean_pnhw.shape[2:]}: make the statistics with the same options"
            )
        places_b = np.asarray(positions_mm, dtype=float)
        if places_b.shape != (len(signals.values_bnhw),) or not np.isfinite(places_b).all():
            raise InputError(f"positions {positions_mm}: give one number in mm for each of {len(places_b)} slices")
        nearest_b = np.abs(places_b[:, None] - self.positions_p).argmin(1)
        distances_bnhw = (signals.values_bnhw - self.mean_pnhw[nearest_b]) / self.deviation_pnhw[nearest_b]
        one_sided_n = np.array([name.startswith(("bits", "restoration")) for name in self.names])
        counted_bnhw = np.where(one_sided_n[:, None, None], distances_bnhw.clip(0), distances_bnhw)
        scores_bhw = np.sqrt((counted_bnhw**2).sum(1)) * signals.brain_bhw
        low, high = self.positions_p[0] - STEP_MM, self.positions_p[-1] + STEP_MM
        beyond = int(((places_b < low) | (places_b > high)).sum())
        told = f"{beyond} slices lie outside {low:g} to {high:g} mm and are judged by the nearest known position"
        return AnomalyMaps(scores_bhw, distances_bnhw, self.names, (told,) if beyond else ())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `.safetensors` file, means and deviations in half precision, in which `fit` made them."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        arrays |= {name: arrays[name].astype(STORED) for name in _ROUNDED}
        about = {"names": self.names, "fingerprint": self.fingerprint, "threshold": self.threshold}
        about |= {} if self.brain_mm is None else {"brain_mm": [float(side) for side in self.brain_mm]}
        write_bytes(Path(path), save(arrays, {"monai_vqgen": json.dumps({"version": FORMAT_VERSION, **about})}))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, model: Any = None) -> HealthySlices:
        """Read what `save` wrote.

        Args:
            path: of the file.
            model: whose fingerprint must be that of the statistics.

        Raises:
            CheckpointError: no such file, a damaged one, or one of other weights.
        """
        try:
            content = Path(path).read_bytes()
            arrays = load(content)
            arrays |= {name: arrays[name].astype(np.float32) for name in _ROUNDED}
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            about = json.loads(header["__metadata__"]["monai_vqgen"])
            found = cls(
                tuple(about["names"]),
                **{name: arrays[name] for name in _ARRAYS},
                fingerprint=about["fingerprint"],
                threshold=float(about["threshold"]),
                brain_mm=_known_size(about.get("brain_mm")),
            )
            if not all(np.isfinite(array).all() for array in arrays.values()) or (found.deviation_pnhw <= 0).any():
                raise ValueError("values that are not finite, or deviations that are not above 0")
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise CheckpointError(f"{path} holds no statistics of healthy slices ({error}): make them again") from error
        if model is not None and found.fingerprint != model_fingerprint(model):
            raise CheckpointError(f"{path} was made with other weights: make the statistics again with these")
        return found


def score_slices(
    model: Any,
    images: Any,
    healthy: HealthySlices,
    *,
    positions_mm: Sequence[float],
    seed: int = 0,
    condition: Mapping[str, Any] | None = None,
) -> AnomalyMaps:
    """The maps of slices, batch by batch; see `TrainedModel.anomaly_map`."""
    draws = RESTORATIONS if "restoration" in healthy.names else 0
    records = [{**(condition or {}), "position_mm": float(position)} for position in positions_mm]
    if len(records) != len(images):
        raise InputError(f"{len(records)} positions for {len(images)} slices: give one in mm for each")
    if healthy.fingerprint not in ("", model_fingerprint(model)):
        raise CheckpointError(
            "the statistics were made with other weights: make them again with these, or give none (--healthy '$None') "
            "for a map of bits"
        )
    found = []
    for start in range(0, len(images), model.batch_size):
        rows = slice(start, start + model.batch_size)
        features = None if model.condition is None else encode_records(model.condition, records[rows])
        signals = anomaly_signals(model, images[rows], condition=features, draws=draws, seed=seed, first_slice=start)
        found.append(healthy.score(signals, positions_mm[rows]))
    told = list(dict.fromkeys(text for maps in found for text in maps.outside))
    told += moved_into_range(model.condition, records)
    return AnomalyMaps(
        np.concatenate([maps.scores_bhw for maps in found]),
        np.concatenate([maps.distances_bnhw for maps in found]),
        healthy.names,
        tuple(told),
    )


def moved_into_range(encoder: Any, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What of the records `encode_records` moves into the trained range, in words."""
    told: list[str] = []
    known = [] if encoder is None else [encoder.read(record) for record in records]
    for name, (low, high) in encoder.continuous.items() if known else ():
        moved = sum(record.get(name) is not None and not low <= record[name] <= high for record in known)
        told += [f"{name} of {moved} slices lies outside {low:g} to {high:g} and was moved into it"] if moved else []
    return told


def _known_size(sides: Any) -> NDArray | None:
    if sides is None:
        return None
    numbers = isinstance(sides, list) and not any(isinstance(side, bool | str) for side in sides)
    brain_mm = np.asarray(sides if numbers else [], dtype=float)
    if brain_mm.shape != (2,) or not (np.isfinite(brain_mm) & (brain_mm > 0)).all():
        raise ValueError(f"the brain's rows and columns are {sides!r}, not two lengths in mm")
    return brain_mm


_ROUNDED = ("mean_pnhw", "deviation_pnhw")
_ARRAYS = ("positions_p", "quantiles", *_ROUNDED)


def model_fingerprint(model: Any) -> str:
    """Of all weights that signals depend on."""
    return "-".join([str(model.record.fingerprint)[:16], *(fingerprint(prior)[:16] for prior in model.priors)])
