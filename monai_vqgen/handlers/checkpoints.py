"""The best weights of a training, and the state that a later process resumes from."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from monai_vqgen.data.processes import process_count, process_rank, wait_for_all
from monai_vqgen.errors import CheckpointError, InputError
from monai_vqgen.files import forget_earlier, previous_path, read_json, write_json
from monai_vqgen.weights import fingerprint, plain_state, read_state, save_weights, write_state

__all__ = ["BestCheckpoint", "MovingAverage", "TrainingState"]

_PLACE_IN_SCHEDULE = ("last_epoch", "_step_count", "_last_lr")
_HOW_NOT_WHAT = ("foreach", "fused", "capturable", "differentiable")
"""Options of torch's optimizers that choose an implementation."""
_SAID_OF_WEIGHTS = ("format_version", "version", "license", "data", "sampling")
"""Entries of a record that decide nothing in training."""
_PLAIN = (bool, int, float, str, list, tuple, dict)

logger = logging.getLogger(__name__)


class Stateful(Protocol):
    """Whatever can be saved and restored: networks, optimizers, schedulers, counters."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take the state back."""


class BestCheckpoint:
    """Keep the weights with the lowest value of a validation metric, and what to know about them beside them.

    Attach to the evaluator. ``path`` always holds a complete state dict: it is written under a temporary name in the
    same folder and renamed, so a full disk or a kill leaves the previous best. The record comes first, and until the
    weights are there names those that it ``replaces``: a kill between the two leaves a pair that belongs together.

    Args:
        module: the network whose weights are saved (not the objective around it).
        path: for example ``RUN/model.pt``.
        metric: name in the evaluator's metrics, smaller is better; None keeps the newest weights.
        description: written to ``path`` with suffix ``.json``, with ``validation_<metric>`` and the
            ``fingerprint`` added; None writes no such file.

    Raises:
        CheckpointError: the metric is not among the evaluator's.

    Examples:
        >>> saver = BestCheckpoint(nn.Linear(1, 1), "out/model.pt", metric="loss")
    """

    def __init__(
        self,
        module: nn.Module,
        path: str | os.PathLike[str],
        *,
        metric: str | None,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        self.module, self.path, self.metric = module, Path(path), metric
        self.description = description
        self.best = float("inf")

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save when the metric is the lowest so far."""
        if self.metric and self.metric not in engine.state.metrics:
            raise CheckpointError(f"There is no metric {self.metric!r}, only {sorted(engine.state.metrics)}")
        # Without a metric the newest is the best: the epoch's number with a minus sign falls.
        value = float(engine.state.metrics[self.metric] if self.metric else -engine.state.epoch)
        if not value < self.best:
            return
        self.best = value
        if process_rank() > 0:
            return
        record, replaced = self.path.with_suffix(".json"), self._fingerprints()
        figures = {f"validation_{self.metric}": value} if self.metric else {}
        known = {**(self.description or {}), "fingerprint": fingerprint(self.module), **figures}
        if self.description is not None:
            write_json(record, {**known, "replaces": replaced} if replaced else known, sealed=True)
        save_weights(self.module, self.path)
        if replaced:
            write_json(record, known, sealed=True)
        name = self.metric or "minus the epoch"
        logger.info("Epoch %d: %s %.6g is the best so far, saved %s", engine.state.epoch, name, value, self.path)

    def _fingerprints(self) -> list[str]:
        """Of the weights that may lie at the path: those of the record, or, after a kill, those that they replace."""
        if self.description is None or not self.path.is_file():
            return []
        with contextlib.suppress(OSError, ValueError, TypeError):  # damaged, or none
            record = read_json(self.path.with_suffix(".json"))
            return list(dict.fromkeys([*record.get("replaces", []), str(record.get("fingerprint"))]))
        return []

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best value so far."""
        self.best = float(state_dict["best"])


class MovingAverage(EMAHandler):
    """Ignite's moving average of weights; frozen parameters stay bit for bit what they are.

    A mean of equal numbers is not always that number in float32, and priors fit only the very encoder they know.

    Examples:
        >>> MovingAverage(nn.Linear(1, 1), momentum=0.005).attach(Engine(lambda engine, batch: None))
    """

    def _update_ema_model(self, engine: Engine, name: str) -> None:
        super()._update_ema_model(engine, name)
        for averaged, own in zip(self.ema_model.parameters(), self.model.parameters(), strict=True):
            if not own.requires_grad:
                averaged.copy_(own)


class TrainingState:
    """Save at the start and after every epoch what a later process needs to go on, and go on from there where asked.

    Attach to the trainer as its last handler. With `EpochSeeding`, on the same machine with the same number of
    processes and threads, a resumed run equals one that was never interrupted. The state before the last is kept
    (``training_state.previous.pt``), and taken with a warning where the last one is damaged. That of the start makes
    sure that weights never lie in a folder without a state: a kill at any moment leaves a run that can be resumed.

    Args:
        path: for example ``RUN/training_state.pt``.
        parts: what to save by name: objective, optimizer, scheduler, and any handler with a state.
        resume: whether to go on from ``path`` when the run starts; a missing file starts from the beginning.
        must_match: what decides what a run learns, beyond the parts: the options of modules and optimizers among them,
            the batch size of all processes and the record of the weights are saved with the state as it is, and a run
            that differs in one of these is not the same run, and is refused. Values, optimizers, functions with some
            arguments set, and objects with options as attributes.

    What a later process may change, limits and machine, is said in the log where it has changed.

    Raises:
        CheckpointError: at the start, both states are damaged or of another kind of run, or something that must match
            does not: names it with both values; after an epoch, the state has values that are not finite, and the last
            one stays.
        InputError: more epochs are done than the run is to have.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        parts: Mapping[str, Stateful],
        *,
        resume: bool = False,
        must_match: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.parts, self.resume = Path(path), dict(parts), resume
        self.must_match = dict(must_match or {})
        self.options: dict[str, dict[str, Any]] = {"must_match": {}, "may_differ": {}}
        self.previous = previous_path(self.path)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self._gather)
        engine.add_event_handler(Events.STARTED, self.restore if self.resume else self._begin)
        if process_rank() == 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
            engine.add_event_handler(Events.COMPLETED, lambda: forget_earlier(self.path.parent))

    def _gather(self, engine: Engine) -> None:
        self.options = _gather_options(engine, self.parts, self.must_match)

    def save(self, engine: Engine) -> None:
        """Write the state of all parts and the trainer's place."""
        place = {"epoch": engine.state.epoch, "iteration": engine.state.iteration}
        states = {
            name: plain_state(part) if isinstance(part, nn.Module) else part.state_dict()
            for name, part in self.parts.items()
        }
        content = {"place": place, "run": self.options, "parts": states}
        write_state(content, self.path, keep_previous=True)

    def _begin(self, engine: Engine) -> None:
        """Write the state of the start, and forget those of an earlier run."""
        if process_rank() == 0:
            self.previous.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
            self.save(engine)

    def _read(self) -> dict[str, Any] | None:
        """The last state, or the one before it where the last is damaged or a kill came while they changed places."""
        fault: CheckpointError | None = None
        for path in filter(Path.is_file, (self.path, self.previous)):
            try:
                saved: dict[str, Any] = read_state(path)
            except CheckpointError as error:
                fault = fault or error
                continue
            if path == self.previous:
                why = fault or f"{self.path} is missing"
                logger.warning("Resuming from the state before the last one, %s: %s", self.previous, why)
            return saved
        if fault is not None:
            raise fault
        return None

    def _compare(self, saved: Mapping[str, Mapping[str, Any]] | None) -> None:
        """Refuse a state that was made with other options, and say which of those that may differ do."""
        if saved is None:
            logger.warning("%s is of an earlier version: its options are not compared with this run's", self.path)
            return
        others = _differences(saved["must_match"], self.options["must_match"])
        if others:
            raise CheckpointError(
                f"{self.path} was made with other options, {', '.join(others)}: resume with the same, or start anew in "
                "another output_dir"
            )
        for change in _differences(saved["may_differ"], self.options["may_differ"]):
            logger.info("Resuming with a change: %s", change)

    def restore(self, engine: Engine) -> None:
        """Take the saved state back, where there is one."""
        saved = self._read()
        wait_for_all()  # before the first process writes a state that another would then take for an earlier run's
        if saved is None:
            logger.info("Nothing to resume at %s: starting from the beginning", self.path)
            return self._begin(engine)
        missing = sorted(set(self.parts) ^ set(saved.get("parts", {})))
        if missing:
            raise CheckpointError(f"{self.path} is of another kind of run: it differs in {missing}")
        self._compare(saved.get("run"))
        done, wanted = saved["place"]["epoch"], engine.state.max_epochs
        if wanted is not None and done > wanted:
            raise InputError(f"max_epochs={wanted}, and {done} epochs are done in {self.path}: give as many or more")
        engine.state.epoch, engine.state.iteration = done, saved["place"]["iteration"]
        for name, part in self.parts.items():
            target = part.module if isinstance(part, nn.parallel.DistributedDataParallel) else part
            state = saved["parts"][name]
            if isinstance(part, LRScheduler):
                # Its place only: the length of the schedule is this run's, which may be longer.
                state = {**part.state_dict(), **{key: state[key] for key in _PLACE_IN_SCHEDULE}}
            try:
                target.load_state_dict(state)
            except (RuntimeError, ValueError, KeyError) as error:
                raise CheckpointError(
                    f"{self.path} does not fit this run's {name}: resume with the options it was started with"
                ) from error
        logger.info("Resumed from %s after epoch %d", self.path, engine.state.epoch)


def _gather_options(engine: Engine, parts: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of a trainer that starts: what "must_match", and what "may_differ", by the keys that lead to each value.

    Args:
        engine: the trainer, MONAI's or one of ignite.
        parts: modules and optimizers among them are described, and so is the record of the weights to keep
            (``best_checkpoint``); the limits of ``time_budget`` and ``patience`` may differ.
        given: what else must match: values, optimizers, objects with options as attributes, functions with arguments.
    """
    record = getattr(parts.get("best_checkpoint"), "description", None) or {}
    must_match = {name: value for name, value in record.items() if name not in _SAID_OF_WEIGHTS}
    must_match |= {name: part for name, part in parts.items() if isinstance(part, nn.Module | Optimizer)}
    if batch_size := getattr(getattr(engine, "data_loader", None), "batch_size", None):
        must_match["global_batch_size"] = batch_size * process_count()
    patience = parts.get("patience")
    may_differ = {
        "max_epochs": engine.state.max_epochs,
        "max_minutes": getattr(parts.get("time_budget"), "minutes", None),
        "patience": getattr(patience, "patience", None),
        "val_interval": getattr(patience, "interval", None),
        "processes": process_count(),
        "accumulation_steps": getattr(engine._process_function, "steps", 1),
        "device": str(getattr(engine.state, "device", "cpu")),
    }
    return {"must_match": _leaves({**must_match, **given}), "may_differ": _leaves(may_differ)}


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, as "name value there and value here"; an option that one side does not know counts as None."""
    names = [*now, *(name for name in saved if name not in now)]
    return [
        f"{name} {saved.get(name)!r} there and {now.get(name)!r} here"
        for name in names
        if saved.get(name) != now.get(name)
    ]


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Options by the keys that lead to them, with values as JSON has them."""
    if isinstance(value, Optimizer):
        kept = {key: option for key, option in value.defaults.items() if key not in _HOW_NOT_WHAT}
        kept["learning_rate"] = kept.pop("lr", None)
        return {name: type(value).__name__, **_leaves(kept, name)}
    if isinstance(value, partial):
        value = {key: parameter.default for key, parameter in inspect.signature(value).parameters.items()}
    elif value is not None and not isinstance(value, _PLAIN):
        options = {key: option for key, option in vars(value).items() if key[0] != "_" and key != "training"}
        value = {key: option for key, option in options.items() if isinstance(option, (*_PLAIN, Optimizer))}
    if isinstance(value, Mapping) and (value or not name):
        pairs: Any = value.items()
    elif isinstance(value, list | tuple) and any(isinstance(entry, Mapping) for entry in value):
        pairs = enumerate(value)
    else:
        return {name: json.loads(json.dumps(value, default=str))}
    leaves = [_leaves(entry, f"{name}.{key}" if name else str(key)) for key, entry in pairs]
    return {key: entry for leaf in leaves for key, entry in leaf.items()}
