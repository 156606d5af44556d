"""Handlers that end a training: where loss or gradients are no numbers, nothing improves, or its time is up."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from monai.engines import IterationEvents
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from monai_vqgen.errors import InputError, VQGenError

__all__ = ["GradientGuard", "Patience", "TimeBudget", "check_time_budget"]

logger = logging.getLogger(__name__)

SECONDS_A_MINUTE = 60.0


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
            "Weights saved so far are untouched. Start anew in a new output_dir with a lower --learning_rate or "
            "without --amp; if it happens in the first iterations, look for values that are not numbers in the data"
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

    def __init__(self, evaluator: Engine, metric: str, *, patience: int, interval: int = 1) -> None:
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
                "%s has not improved for %d validations: stopping after epoch %d",
                self.metric,
                self.patience,
                engine.state.epoch,
            )

    def state_dict(self) -> dict[str, Any]:
        """The best score and the validations since."""
        return {} if self._counter is None else dict(self._counter.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best score and the validations since; a trainer that starts ends at once where they are too many."""
        if self._counter is not None and state_dict:
            self._counter.load_state_dict(state_dict)
            if self._counter.counter >= self.patience:
                self._counter.trainer.terminate()


def check_time_budget(minutes: object, clock: object = "wall") -> None:
    """Refuse a budget of time that `TimeBudget` could not hold a training to, before anything is removed for it.

    Args:
        minutes: the budget; None for no limit.
        clock: "wall", the seconds that a step counts for, or a function that gives seconds.

    Raises:
        InputError: a budget that is not positive, or no such clock.
    """
    if minutes is not None and not _is_positive(minutes):
        raise InputError(f"max_minutes is {minutes!r}; give a number above 0, or leave it out for no limit")
    if not (clock == "wall" or callable(clock) or _is_positive(clock)):
        raise InputError(f"the budget's clock is {clock!r}; give 'wall', or the seconds that a step counts for")


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


class TimeBudget:
    """End the training after some minutes, on machines whose speed nobody knows beforehand.

        place in the schedule = max(steps done / steps in all, time spent / budget)

    so a slow machine takes fewer steps, yet goes through the whole schedule of the learning rate; a fast one is not
    affected. The epoch in which the time runs out is cut short, validated and saved as any other. What a run with a
    budget learns depends on the machine's speed. Time spent on validation counts. A run that is resumed with another
    budget or number of epochs goes on at the place that the formula gives; time spent without a budget was not counted.

    Attach to the trainer after MONAI's `LrScheduleHandler` and `ValidationHandler`, before `TrainingState`.

    Args:
        minutes: the budget; None for no limit.
        lr_scheduler: stepped once an iteration.
        total_steps: length of its schedule.
        evaluator: validates the last epoch where `interval` would leave it out.
        interval: epochs from one validation to the next.
        clock: what counts: "wall", the time that passes; or a number, the seconds that each step counts for, however
            long it takes (measured elsewhere, so that the speed of the day does not decide; validation then is free);
            or a function that gives seconds from any start.

    Raises:
        InputError: a budget that is not positive, or no such clock.
    """

    def __init__(
        self,
        minutes: float | None,
        lr_scheduler: LRScheduler,
        *,
        total_steps: int,
        evaluator: Any = None,
        interval: int = 1,
        clock: Literal["wall"] | float | Callable[[], float] = "wall",
    ) -> None:
        check_time_budget(minutes, clock)
        self.minutes = minutes
        self.budget_s = None if minutes is None else minutes * SECONDS_A_MINUTE
        self.lr_scheduler, self.total_steps = lr_scheduler, total_steps
        self.clock = self._clock(clock)
        self.evaluator, self.interval = evaluator, interval
        self._spent_before_s, self._start_s, self._counted_s = 0.0, 0.0, 0.0
        self._trainer: Engine | None = None

    def _clock(self, clock: Literal["wall"] | float | Callable[[], float]) -> Callable[[], float]:
        """The function that gives seconds."""
        self.seconds_a_step = 0.0
        if callable(clock):
            return clock
        if isinstance(clock, str):
            return time.monotonic
        self.seconds_a_step = float(clock)
        return lambda: self._counted_s

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if self.budget_s is None:
            return
        self._trainer = engine
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._check)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._validate_the_last)

    def spent_s(self) -> float:
        """Seconds of training so far, those before an interruption included; the longest of all processes."""
        spent_s = self._own_spent_s()
        return float(idist.all_reduce(spent_s, "MAX")) if idist.get_world_size() > 1 else spent_s

    def _own_spent_s(self) -> float:
        """This process's, for a state that the first process saves alone: the others would not join in a reduction."""
        return self._spent_before_s + self.clock() - self._start_s

    def _begin(self, engine: Engine) -> None:
        self._start_s = self.clock()

    def _check(self, engine: Engine) -> None:
        assert self.budget_s is not None, "attached with a budget only"
        self._counted_s += self.seconds_a_step
        spent = self.spent_s() / self.budget_s
        engine.state.time_share = spent  # type: ignore[attr-defined]  # for the bar
        place = min(int(spent * self.total_steps), self.total_steps)
        self.lr_scheduler.last_epoch = max(self.lr_scheduler.last_epoch, place)
        last = engine.state.iteration >= (engine.state.max_epochs or 0) * (engine.state.epoch_length or 0)
        if spent >= 1 and not last:
            minutes = self.budget_s / SECONDS_A_MINUTE
            logger.info("The time budget of %.1f minutes ran out in epoch %d", minutes, engine.state.epoch)
            self._spent_before_s += spent * self.budget_s - self._own_spent_s()  # another process may have spent more
            engine.state.max_epochs = engine.state.epoch
            engine.terminate_epoch()

    def _validate_the_last(self, engine: Engine) -> None:
        left_out = engine.state.epoch == engine.state.max_epochs and engine.state.epoch % self.interval
        if left_out and self.evaluator is not None:
            self.evaluator.run(engine.state.epoch)

    def state_dict(self) -> dict[str, float | None]:
        """The time spent, and the schedule's length in steps and seconds."""
        return self._lengths() if self.budget_s is None else {**self._lengths(), "spent_s": self._own_spent_s()}

    def _lengths(self) -> dict[str, float | None]:
        return {"total_steps": self.total_steps, "budget_s": self.budget_s}

    def load_state_dict(self, state_dict: Mapping[str, float | None]) -> None:
        """Take the time spent before; where the schedule has another length now, find the place in it.

        A trainer that starts ends at once where no time is left.
        """
        self._spent_before_s = state_dict.get("spent_s") or 0.0
        if any(state_dict.get(name, length) != length for name, length in self._lengths().items()):
            self._find_place()
        if self._trainer is not None and self.budget_s is not None and self._spent_before_s >= self.budget_s:
            logger.info("The %s minutes of max_minutes were over before: nothing is trained.", self.minutes)
            self._trainer.terminate()

    def _find_place(self) -> None:
        """Steps done, or time spent if that is more, in this run's schedule; its rate holds from the next step on."""
        steps = self.lr_scheduler._step_count - 1  # torch counts a first step when it makes a schedule
        spent = 0.0 if self.budget_s is None else self._spent_before_s / self.budget_s
        self.lr_scheduler.last_epoch = min(max(steps, int(spent * self.total_steps)), self.total_steps)
        if isinstance(self.lr_scheduler, LambdaLR):  # others have no rate of a place
            place, bases = self.lr_scheduler.last_epoch, self.lr_scheduler.base_lrs
            rates = [base * share(place) for base, share in zip(bases, self.lr_scheduler.lr_lambdas, strict=True)]
            self.lr_scheduler._last_lr = rates
            for group, rate in zip(self.lr_scheduler.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
