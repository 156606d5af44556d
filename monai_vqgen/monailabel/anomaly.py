"""Where a volume is unlikely: a segmentation that a reader can correct, and the map that it was cut from.

volume -> slices -> scores (`anomaly_scan`, kept for the next request) -> over the threshold -> segmentation
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from monai_vqgen.anomaly import HealthySlices
from monai_vqgen.errors import InputError
from monai_vqgen.models.anomaly_scans import AnomalyScan, anomaly_scan
from monai_vqgen.monailabel.answers import answer_nifti
from monai_vqgen.monailabel.interfaces import InferTask, InferType
from monai_vqgen.monailabel.knobs import AnomalyKnobs, asked_conditions
from monai_vqgen.monailabel.served_bundle import ServedBundle

__all__ = ["AnomalyMapTask", "AnomalyTask", "LatestScores"]

LABELS = {"unusual": 1}
CONDITIONS = {"age": "", "sex": ""}  # those of the weights that ship; the position is known


class LatestScores:
    """Scores of the scan that was asked for last: another threshold, or its map, costs no second computation.

    Args:
        bundle: with priors and statistics of healthy slices.
    """

    def __init__(self, bundle: ServedBundle) -> None:
        self.bundle = bundle
        self._latest: tuple[Any, AnomalyScan] | None = None

    def __call__(self, request: Mapping[str, Any]) -> tuple[AnomalyScan, dict[str, Any]]:
        """The scores of the request's image, whose threshold is the one asked for; and what every answer says.

        Raises:
            InputError: a knob outside its range, an image that is no volume, or no threshold anywhere.
            ScanError: the image cannot be used.
            CheckpointError: there are no priors or no statistics, or the statistics are of other weights.
            CodesMismatchError: the priors are of another autoencoder.
        """
        knobs, path, device = AnomalyKnobs.of(request), Path(str(request["image"])), request["device"]
        with self.bundle.lock:
            model = self.bundle.model(device)
            names = [name for name in (model.condition.names if model.condition else ()) if name != "position_mm"]
            condition = asked_conditions(request, names)
            healthy = HealthySlices.load(self.bundle.statistics, model=model)
            threshold = healthy.threshold if knobs.threshold is None else knobs.threshold
            if threshold != threshold:
                raise InputError("the statistics of healthy slices name no threshold: give threshold, such as 3")
            seen = _version(path)
            options: dict[str, Any] = {"match": knobs.match, "scale": knobs.scale, "condition": condition}
            key = (path, seen, healthy.fingerprint, _version(self.bundle.statistics), options)
            if seen is None or self._latest is None or self._latest[0] != key:
                self._latest = key, anomaly_scan(model, path, healthy, **options)
            found = self._latest[1]
            about = self.bundle.about(device)
        about |= {"threshold": threshold, **options, "scaled": list(found.scaled), "notes": list(found.notes)}
        found = found._replace(threshold=threshold, lesions_s=found.scores_s > threshold)
        return found, {**about, "synthetic": False}


def _version(path: Path) -> tuple[int, int] | None:
    """What changes with a file's content; None for a folder."""
    return (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None


class _ScoreTask(InferTask):
    """A task that answers with a volume of the study's geometry."""

    def __init__(self, scores: LatestScores, *, type: Any, labels: Mapping[str, int], description: str) -> None:
        super().__init__(type, labels, 3, description, {**AnomalyKnobs.defaults(), **CONDITIONS})
        self.scores = scores

    def is_valid(self) -> bool:
        """Whether the bundle has priors and statistics of healthy slices."""
        return self.scores.bundle.has_priors() and self.scores.bundle.statistics.is_file()


class AnomalyTask(_ScoreTask):
    """Voxels whose scores lie above the threshold, as a segmentation in the study's geometry (1 is unusual, else 0).

    Knobs: those of `AnomalyKnobs`, and what the priors are conditioned on but for the position (`age`, `sex`).
    """

    def __init__(self, scores: LatestScores) -> None:
        super().__init__(
            scores,
            type=InferType.SEGMENTATION,
            labels=LABELS,
            description="Unusual places of a volume, to be corrected",
        )

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the path of the segmentation and what it is; raises what `LatestScores` raises."""
        found, about = self.scores(request)
        mask_s = cast("NDArray[np.bool_]", found.lesions_s)
        about |= {"label_names": LABELS, "voxels": int(mask_s.sum())}
        return answer_nifti(mask_s, found.affine, about), about


class AnomalyMapTask(_ScoreTask):
    """The scores themselves: distances from healthy slices in deviations, 0 where nothing was looked at.

    Knobs: those of `AnomalyTask`.
    """

    def __init__(self, scores: LatestScores) -> None:
        super().__init__(
            scores,
            type=InferType.OTHERS,
            labels={},
            description="The scores that the segmentation of `anomaly` is cut from",
        )

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the path of the map and what it is; raises what `LatestScores` raises."""
        found, about = self.scores(request)
        return answer_nifti(found.scores_s, found.affine, about), about
