"""Names under which MLflow is told of the epochs: those of training and of validation apart."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ignite.engine import Engine
from monai.handlers import MLFlowHandler
from monai.utils import is_scalar

__all__ = ["name_tracked"]


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
