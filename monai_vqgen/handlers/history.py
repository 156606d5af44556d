"""The curves of a run as one small JSON file."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.utils import is_scalar

from monai_vqgen.data.processes import process_rank
from monai_vqgen.files import write_json

__all__ = ["History"]


class History:
    """Write the metrics of every epoch to ``history.json``.

    ``{"train": {"epoch": [...], "iteration": [...], "loss": [...]}, "validation": {"epoch": [...], "loss": [...]}}``

    Attach to the trainer after MONAI's `ValidationHandler`. The file is complete after every epoch.

    Args:
        path: for example ``RUN/history.json``.
        evaluator: whose metrics go under "validation", or None.
        interval: epochs from one validation to the next.
        resume: whether to go on with the file of an interrupted run.

    A value that is not finite is written as null, because JSON has no NaN.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        evaluator: Engine | None = None,
        *,
        interval: int = 1,
        resume: bool = False,
    ) -> None:
        self.path, self.evaluator, self.interval, self.resume = Path(path), evaluator, interval, resume
        self.curves: dict[str, dict[str, list[Any]]] = {"train": {}, "validation": {}}

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; of several processes the first one writes."""
        if process_rank() == 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Add an epoch and write the file."""
        epoch = engine.state.epoch
        if self.resume:
            self._take_back(epoch)
        _append(self.curves["train"], epoch, {"iteration": engine.state.iteration, **engine.state.metrics})
        if self.evaluator is not None and epoch % self.interval == 0:
            _append(self.curves["validation"], epoch, self.evaluator.state.metrics)
        write_json(self.path, self.curves)

    def _take_back(self, first_epoch: int) -> None:
        self.resume = False
        if not self.path.is_file():
            return
        for name, curves in json.loads(self.path.read_text()).items():
            # A run that was killed after writing this file repeats its last epoch.
            kept = sum(epoch < first_epoch for epoch in curves.get("epoch", []))
            self.curves[name] = {metric: values[:kept] for metric, values in curves.items()}


def _append(curves: dict[str, list[Any]], epoch: int, metrics: dict[str, Any]) -> None:
    curves.setdefault("epoch", []).append(epoch)
    for name, value in metrics.items():
        if is_scalar(value):
            number = float(value)
            curves.setdefault(name, []).append(number if math.isfinite(number) else None)
