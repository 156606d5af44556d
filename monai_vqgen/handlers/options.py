"""What decides a training's result and what does not, gathered from its parts: a resumed run is the run it was."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from ignite.engine import Engine
from torch import nn
from torch.optim import Optimizer

from monai_vqgen.engines.distributed import process_count

__all__ = ["differences", "gather_options"]

_HOW_NOT_WHAT = ("foreach", "fused", "capturable", "differentiable")
"""Options of torch's optimizers that choose an implementation."""
_SAID_OF_WEIGHTS = ("format_version", "version", "license", "data", "sampling")
"""Entries of a record that decide nothing in training."""
_PLAIN = (bool, int, float, str, list, tuple, dict)


def gather_options(engine: Engine, parts: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
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


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, as "name value there and value here"; an option that one side does not know stands as "none"."""
    names = [*now, *(name for name in saved if name not in now)]
    return [
        f"{name} {saved.get(name, 'none')!r} there and {now.get(name, 'none')!r} here"
        for name in names
        if saved.get(name, "none") != now.get(name, "none")
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
