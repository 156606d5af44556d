"""Handlers that end a training run: at once when loss or gradients are no numbers, in time when nothing improves."""

from __future__ import annotations

import logging
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from monai.engines import IterationEvents
from torch import nn

from monai_vqgen.errors import InputError, VQGenError

__all__ = ["GradientGuard", "Patience"]

logger = logging.getLogger(__name__)


class GradientGuard:
    """Stop when loss or gradients are not finite, before the step, and clip gradients (Pascanu et al. 2013).

    Attach to the trainer. The best checkpoint and the state of the last epoch stay as they are on disk.

    Args:
        module: whose gradients are scaled down, all together.
        max_norm: their largest Euclidean norm; 0 leaves them as they are.

    Raises:
        InputError: a negative norm.
        VQGenError: at a loss or a gradient that is not finite; names the epoch, the iteration and the weight.
    """

    def __init__(self, module: nn.Module, max_norm: float = 0.0) -> None:
        if max_norm < 0:
            raise InputError(f"max_norm={max_norm} must be 0 (no clipping) or positive")
        self.module, self.max_norm = module, max_norm

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.check_loss)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self.check_gradients)

    def check_gradients(self, engine: Engine) -> None:
        """Look at the gradients that were just computed, and clip them."""
        gradients = {name: p.grad for name, p in self.module.named_parameters() if p.grad is not None}
        norm = nn.utils.get_total_norm(gradients.values())
        if not bool(torch.isfinite(norm)):  # as it also is where a square would be, which Adam keeps
            wrong = (name for name, g in gradients.items() if not bool(torch.isfinite(g.square()).all()))
            raise VQGenError(f"the gradient of {next(wrong, 'all weights together')} became {self._told(norm, engine)}")
        if self.max_norm > 0:
            nn.utils.clip_grads_with_norm_(self.module.parameters(), self.max_norm, norm)

    def check_loss(self, engine: Engine) -> None:
        """Look at the loss that was just computed."""
        output: Any = engine.state.output
        loss = output["loss"].detach()
        if not bool(torch.isfinite(loss)):
            raise VQGenError(f"the loss became {self._told(loss, engine)}")

    @staticmethod
    def _told(value: torch.Tensor, engine: Engine) -> str:
        return (
            f"{float(value)} at epoch {engine.state.epoch}, iteration {engine.state.iteration}. "
            "Weights saved so far are untouched. Lower --learning_rate or switch --amp off; if it happens in the "
            "first iterations, look for values that are not numbers in the data"
        )


class Patience:
    """End the training when a validation metric has not fallen for a number of validations.

    Attach to the trainer after MONAI's `ValidationHandler`; ignite's `EarlyStopping` does the counting.

    Args:
        evaluator: whose metrics are looked at.
        metric: name of the metric, smaller is better.
        patience: validations without a new best before the end; 0 never ends early.
        interval: epochs from one validation to the next.

    Raises:
        InputError: negative patience.
    """

    def __init__(self, evaluator: Engine, *, metric: str, patience: int, interval: int = 1) -> None:
        if patience < 0:
            raise InputError(f"patience={patience} must be 0 (never stop early) or a number of validations")
        self.evaluator, self.metric, self.patience, self.interval = evaluator, metric, patience, interval
        self._counter: EarlyStopping | None = None

    def attach(self, engine: Engine) -> None:
        """Register with the trainer that is to be ended."""
        if self.patience == 0:
            return
        self._counter = EarlyStopping(
            self.patience, lambda _: -float(self.evaluator.state.metrics[self.metric]), engine
        )
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)

    def __call__(self, engine: Engine) -> None:
        """Count a validation."""
        if self._counter is not None:
            self._counter(engine)
        if engine.should_terminate:
            logger.info(
                "No better %s for %d validations: stopping after epoch %d.",
                self.metric,
                self.patience,
                engine.state.epoch,
            )

    def state_dict(self) -> dict[str, Any]:
        """The best score and the validations since."""
        return {} if self._counter is None else dict(self._counter.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best score and the validations since."""
        if self._counter is not None and state_dict:
            self._counter.load_state_dict(state_dict)
