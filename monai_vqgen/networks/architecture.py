"""What a network was built with, as JSON: recorded beside its weights, and enough to build it again."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from monai_vqgen.errors import CheckpointError, InputError

_HOME = "monai_vqgen.networks"
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


def build(description: Mapping[str, Any]) -> Any:
    """The network that `architecture` described, with fresh weights.

    Only this package's own networks are built: a description comes with weights, and opening weights runs no code of
    theirs.

    Raises:
        CheckpointError: a class of elsewhere, or arguments that its constructor refuses.

    Examples:
        >>> build({"_target_": "monai_vqgen.networks.FiniteScalarQuantizer", "levels": [5, 5]}).num_codes
        25
    """
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
        return build(value) if _TARGET in value else {key: _built(each) for key, each in value.items()}
    return [_built(each) for each in value] if isinstance(value, list) else value
