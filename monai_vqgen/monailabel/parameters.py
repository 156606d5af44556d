"""What a client may ask for: each value checked against its type and range before any work, and capped.

The server is open to whoever reaches it: a request must not be able to fill its memory or keep it busy for hours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from monai_vqgen.errors import InputError

__all__ = ["MAX_EPOCHS", "MAX_SAMPLES", "choice", "conditions", "flag", "number", "whole"]

MAX_SAMPLES = 64
"""Slices in one answer: about four minutes of the demo's priors on one core."""
MAX_EPOCHS = 10_000


def whole(request: Mapping[str, Any], name: str, default: int, *, low: int, high: int) -> int:
    """An integer between two limits, both allowed; viewers send numbers as text, so "4" is one too.

    Raises:
        InputError: it is no integer, or outside.

    Example:
        >>> whole({"num_samples": "4"}, "num_samples", 1, low=1, high=64)
        4
    """
    given = request.get(name)
    if given is None or given == "":
        return default
    value = _as_whole(given)
    if value is None or not low <= value <= high:
        raise InputError(f"{name} is {given!r}; give a whole number from {low} to {high}")
    return value


def number(request: Mapping[str, Any], name: str, default: float | None, *, low: float, high: float) -> float | None:
    """A number between two limits, both allowed.

    Raises:
        InputError: it is no finite number, or outside.
    """
    given = request.get(name)
    if given is None or given == "":
        return default
    value = _as_float(given)
    if value is None or not low <= value <= high:
        raise InputError(f"{name} is {given!r}; give a number from {low:g} to {high:g}")
    return value


def flag(request: Mapping[str, Any], name: str, default: bool) -> bool:
    """True or false, also as text.

    Raises:
        InputError: it is neither.
    """
    given = request.get(name)
    if given is None or given == "":
        return default
    text = str(given).strip().lower()
    if text not in ("true", "false"):
        raise InputError(f"{name} is {given!r}; give true or false")
    return text == "true"


def choice(request: Mapping[str, Any], name: str, default: str, *, options: Sequence[str]) -> str:
    """One of a few words.

    Raises:
        InputError: it is none of them.
    """
    given = request.get(name)
    if given is None or given == "":
        return default
    if given not in options:
        raise InputError(f"{name} is {given!r}; choose one of {', '.join(options)}")
    return str(given)


def conditions(request: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The values of the names that the priors are conditioned on; which values are allowed, the priors know.

    Args:
        request: what the client sent.
        names: of the conditions.

    Raises:
        InputError: a condition that these priors do not know.
    """
    asked = {
        name: request[name] for name in ("position_mm", "age", "sex", *names) if request.get(name) not in (None, "")
    }
    unknown = sorted(set(asked) - set(names))
    if unknown:
        known = ", ".join(names) if names else "nothing"
        raise InputError(f"the served priors know nothing of {', '.join(unknown)}, only of {known}: leave it out")
    return asked


def _as_float(given: Any) -> float | None:
    """The finite number that a value of JSON stands for, or None."""
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        return None
    try:
        value = float(given)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _as_whole(given: Any) -> int | None:
    """The integer that a value of JSON stands for, or None; not by way of a float, which rounds large seeds."""
    value = _as_float(given)
    if value is None:
        return None
    if isinstance(given, float) or not str(given).strip().lstrip("+-").isdecimal():
        return int(value) if value.is_integer() else None
    return int(given)
