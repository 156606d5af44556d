"""What a network was built with, as JSON: recorded beside its weights, and enough to build it again."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch

from monai_vqgen.errors import CheckpointError, InputError

_HOME = "monai_vqgen.networks"
_LARGEST_COUNT = 1000  # of layers, blocks or entries of a list; the networks of this package have tens
_TARGET = "_target_"  # MONAI's key for a class in a config: a recorded architecture can be pasted into one
Self = TypeVar("Self", bound="Recorded")


class Recorded:
    """Mixin of modules that remember the arguments of their constructor; see `architecture`."""

    _recorded: dict[str, Any]

    def __new__(cls: type[Self], *args: Any, **kwargs: Any) -> Self:
        """Note the arguments before the constructor runs."""
        instance = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(instance, *args, **kwargs)
        except TypeError:  # copying and unpickling give none; wrong ones are the constructor's to refuse
            return instance
        bound.apply_defaults()
        arguments = dict(list(bound.arguments.items())[1:])
        object.__setattr__(instance, "_recorded", {name: _noted(value) for name, value in arguments.items()})
        return instance

    def _told(self, name: str, value: Any) -> Any:
        """Record what an argument that was left out has become; returns it."""
        if name in self._recorded:
            self._recorded[name] = _noted(value)
        return value


def architecture(module: Recorded) -> dict[str, Any]:
    """The class and constructor arguments of a network, as JSON takes them.

    Raises:
        InputError: an argument that JSON cannot hold.

    Examples:
        >>> from monai_vqgen.networks import FiniteScalarQuantizer
        >>> architecture(FiniteScalarQuantizer([5, 5]))
        {'_target_': 'monai_vqgen.networks.FiniteScalarQuantizer', 'levels': [5, 5]}
    """
    cls = type(module)
    home = _HOME if getattr(importlib.import_module(_HOME), cls.__name__, None) is cls else cls.__module__
    for name, value in module._recorded.items():
        if isinstance(value, _NotJSON):
            raise InputError(f"{cls.__name__} was built with {name}={value.value!r}, which JSON cannot hold")
    return {_TARGET: f"{home}.{cls.__qualname__}", **module._recorded}


def build(description: Mapping[str, Any], *, max_bytes: float = math.inf) -> Any:
    """The network that `architecture` described, with fresh weights.

    Only this package's own networks are built: a description comes with weights, and opening weights runs no code of
    theirs. Nothing is allocated before its size is known.

    Args:
        description: class and arguments.
        max_bytes: the network may have weights of this many bytes.

    Raises:
        CheckpointError: a class of elsewhere, arguments that its constructor refuses, or a network that is too large.

    Examples:
        >>> build({"_target_": "monai_vqgen.networks.FiniteScalarQuantizer", "levels": [5, 5]}).num_codes
        25
    """
    _check_counts(description)
    if max_bytes < math.inf:
        with torch.device("meta"):  # shapes without memory
            network = _made(description)
        size = sum(each.numel() * each.element_size() for each in (*network.parameters(), *network.buffers()))
        if size > max_bytes:
            raise CheckpointError(
                f"the recorded architecture has weights of {size / 2**20:.1f} MiB, and the file beside it holds fewer: "
                "copy both files from the same place"
            )
    return _made(description)


def _check_counts(described: Any, name: str = "") -> None:
    """Refuse lists and numbers of layers that would keep a constructor busy for hours."""
    entries = list(described.items()) if isinstance(described, Mapping) else []
    entries = [(name, each) for each in described] if isinstance(described, list) else entries
    counted = name.startswith("num_") and name != "num_codes"
    count = described if counted and isinstance(described, int) else len(entries)
    if count > _LARGEST_COUNT:
        raise CheckpointError(f"the recorded architecture has {name or 'arguments'} of {count}: at most 1000 are built")
    for key, each in entries:
        _check_counts(each, str(key))


def _made(description: Mapping[str, Any]) -> Any:
    target = str(description.get(_TARGET, ""))
    home, _, name = target.rpartition(".")
    networks = importlib.import_module(_HOME)
    cls = getattr(networks, name, None) if home == _HOME and name in networks.__all__ else None
    if not (isinstance(cls, type) and issubclass(cls, Recorded)):
        raise CheckpointError(
            f"the recorded architecture {target!r} is none of {_HOME}: build that network and pass it as an argument"
        )
    arguments = {key: _built(value) for key, value in description.items() if key != _TARGET}
    try:
        return cls(**arguments)
    except Exception as error:  # a record from anywhere can make a constructor raise anything
        raise CheckpointError(f"the recorded architecture of {name} cannot be built: {error}") from error


class _NotJSON:
    def __init__(self, value: object) -> None:
        self.value = value


def _noted(value: Any) -> Any:
    if isinstance(value, Recorded):
        return architecture(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _noted(each) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [_noted(each) for each in value]
    return _NotJSON(value)


def _built(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _made(value) if _TARGET in value else {key: _built(each) for key, each in value.items()}
    return [_built(each) for each in value] if isinstance(value, list) else value
