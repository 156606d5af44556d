"""What a training tells while it runs: a progress bar, and curves as JSON, in TensorBoard and in MLflow."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler, TensorBoardStatsHandler
from monai.utils import is_scalar
from tqdm import tqdm

from monai_vqgen.data.processes import process_rank
from monai_vqgen.files import read_json, write_json

__all__ = ["History", "TensorBoardCurves", "TrainingProgress", "name_tracked"]

_SECONDS_BETWEEN_LINES_IN_FILES = 30.0

logger = logging.getLogger(__name__)


class History:
    """Write the metrics of every epoch to ``history.json``.

    ``{"train": {"epoch": [...], "iteration": [...], "loss": [...]}, "validation": {"epoch": [...], "loss": [...]}}``

    Attach to the trainer after MONAI's `ValidationHandler`. The file is complete after every epoch.

    Args:
        path: for example ``RUN/history.json``.
        evaluator: whose metrics go under "validation", or None.
        interval: epochs from one validation to the next.
        resume: whether to go on with the file of an interrupted run; a damaged one is replaced, with a warning.

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
        try:
            for name, curves in read_json(self.path).items():
                # A run that was killed after writing this file repeats its last epoch.
                kept = sum(epoch < first_epoch for epoch in curves.get("epoch", []))
                self.curves[name] = {metric: [*values[:kept]] for metric, values in curves.items()}
        except (ValueError, AttributeError, TypeError) as error:
            logger.warning("%s is damaged (%s): its curves begin anew with epoch %d", self.path, error, first_epoch)
            self.curves = {"train": {}, "validation": {}}


def _append(curves: dict[str, list[Any]], epoch: int, metrics: dict[str, Any]) -> None:
    curves.setdefault("epoch", []).append(epoch)
    for name, value in metrics.items():
        if is_scalar(value):
            number = float(value)
            curves.setdefault(name, []).append(number if math.isfinite(number) else None)


class TensorBoardCurves:
    """MONAI's `TensorBoardStatsHandler` for a training and its validation: ``step_loss`` and means of each epoch.

    Written to ``folder/train`` and ``folder/validation``, so that both have one chart. Attach to the trainer; of
    several processes the first one writes.

    Args:
        folder: for example ``RUN/tensorboard``.
        evaluator: that validates.
    """

    def __init__(self, folder: str | os.PathLike[str], evaluator: Engine) -> None:
        self.folder, self.evaluator = Path(folder), evaluator
        self._handlers: list[TensorBoardStatsHandler] = []

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if process_rank() == 0:
            engine.add_event_handler(Events.STARTED, self._open)
            engine.add_event_handler(Events.COMPLETED, self._close)

    def _open(self, engine: Engine) -> None:
        options: dict[str, Any] = {"tag_name": "step_loss", "output_transform": lambda output: output[0]["loss"]}
        training = TensorBoardStatsHandler(log_dir=str(self.folder / "train"), **options)
        validation = TensorBoardStatsHandler(log_dir=str(self.folder / "validation"), iteration_log=False)
        training.attach(engine)
        validation.attach(self.evaluator)
        self._handlers = [training, validation]

    def _close(self, engine: Engine) -> None:
        for handler in self._handlers:
            handler.close()


def name_tracked(handlers: Sequence[Any], part: str) -> Sequence[Any]:
    """Have MLflow told of an engine's epochs as ``part/loss``, ``part/psnr`` and so on.

    `--tracking mlflow` adds a handler to the training's list and one to the validation's, which write to one run. By
    themselves they would both call the mean loss of an epoch ``loss``, and one curve would hold the values of both.
    The loss of every step keeps the name ``train_loss`` that MONAI gives it.

    Args:
        handlers: of one engine; those of MLflow are changed in place, but for any that has an ``epoch_logger``.
        part: "train" or "validation".

    Returns:
        The handlers.

    Examples:
        >>> name_tracked([], "train")
        []
    """
    for handler in handlers:
        if isinstance(handler, MLFlowHandler) and handler.epoch_logger is None:
            handler.epoch_logger = partial(_log_epoch, handler, part)
    return handlers


def _log_epoch(handler: MLFlowHandler, part: str, engine: Engine) -> None:
    assert handler.cur_run is not None, "MLflow's handler opens a run when the engine starts"
    for name, value in engine.state.metrics.items():
        if is_scalar(value):
            handler.client.log_metric(
                handler.cur_run.info.run_id, f"{part}/{name}", float(value), step=engine.state.epoch
            )


class TrainingProgress:
    """One bar from the first iteration to the last, with epoch, loss and what remains.

    ignite's own bar starts anew each epoch and so cannot say when the training ends. With a `TimeBudget` that
    ends first the bar shows the time spent, and what remains of it. Attach to the trainer.

    Args:
        description: what stands before the bar.
    """

    def __init__(self, description: str) -> None:
        self.description = description
        self._bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; of several processes the first one has a bar."""
        if process_rank() > 0:
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._open)  # not STARTED, when a resumed run has no place yet
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def _open(self, engine: Engine) -> None:
        if self._bar is not None:
            return
        self._bar = tqdm(
            total=(engine.state.max_epochs or 1) * (engine.state.epoch_length or 1),
            initial=engine.state.iteration,
            desc=self.description,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES_IN_FILES,
        )

    def _advance(self, engine: Engine) -> None:
        if self._bar is None:
            return
        # update() redraws by itself when it is due, with the text that stands then.
        output: Any = engine.state.output
        loss = output[0]["loss"]
        self._bar.set_postfix_str(
            f"epoch {engine.state.epoch}/{engine.state.max_epochs}, loss {loss:.4g}", refresh=False
        )
        ahead = int((self._bar.total or 0) * min(getattr(engine.state, "time_share", 0.0), 1.0))  # of `TimeBudget`
        self._bar.update(max(engine.state.iteration, ahead) - self._bar.n)

    def _close(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
