"""From named values (position, age, sex, plane) to the condition vector of a prior, and the ranges it was made for.

Legend of suffixes: b batch, f features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from monai_vqgen.errors import InputError

LABEL = "label"  # the condition that is a category even where it is written in digits
MISSING = ("", "n/a")  # "not known" in participants.tsv (BIDS 1.9, section "Tabular files"), as is None


class ConditionEncoder:
    """Turns named values into a float vector, and refuses what the prior was not trained on.

        continuous  position_mm = 40 in (20, 60)   ->  [scaled to -1 ... 1, known = 1]   unknown: [0, 0]
        categorical sex = "F" of ["F", "M"]        ->  [1, 0]                            unknown: [0, 0]

    Features are ordered as the names are given, continuous first.

    Args:
        continuous: name -> (lowest, highest) value allowed, in the value's own unit (mm, years).
        categorical: name -> the values allowed.

    Attributes:
        dim: length of the vector, two a continuous name and one a categorical value.
        names: all names, in the order of their features.

    Raises:
        InputError: a name or value that is not known, a number outside its range or not finite.

    Examples:
        >>> encoder = ConditionEncoder({"position_mm": (20, 60)}, {"sex": ["F", "M"]})
        >>> encoder.encode({"position_mm": 40.0, "sex": "M"})
        tensor([[0., 1., 0., 1.]])
        >>> encoder.encode({"sex": "F"})
        tensor([[0., 0., 1., 0.]])
    """

    def __init__(
        self,
        continuous: Mapping[str, Sequence[float]] | None = None,
        categorical: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        self.continuous = {name: _checked_range(name, limits) for name, limits in (continuous or {}).items()}
        self.categorical = {name: tuple(str(value) for value in values) for name, values in (categorical or {}).items()}
        for name, values in self.categorical.items():
            if not values or len(set(values)) < len(values):
                given = f"condition {name!r} has the values {list(values)}"
                raise InputError(f"{given}; give each value once, at least one")
        twice = sorted(set(self.continuous) & set(self.categorical))
        if twice:
            raise InputError(f"conditions {twice} are both continuous and categorical; name each once")
        self.names = (*self.continuous, *self.categorical)
        self.dim = 2 * len(self.continuous) + sum(len(values) for values in self.categorical.values())

    def encode(self, values: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Tensor:
        """The vectors `(b, f)` of one mapping (b = 1) or of several; a name left out, None or "n/a" is unknown.

        Every key must be one of `names`; choose them from a longer record with `select`.
        """
        records = [values] if isinstance(values, Mapping) else list(values)
        rows = [self._encode_one(record) for record in records]
        return torch.tensor(rows, dtype=torch.float32).view(len(rows), self.dim)

    def decode(self, features_bf: Tensor) -> list[dict[str, Any]]:
        """The values by name that vectors stand for; what is unknown is left out.

        Examples:
            >>> encoder = ConditionEncoder({"age": (20, 60)}, {"sex": ["F", "M"]})
            >>> encoder.decode(encoder.encode([{"age": 30.0, "sex": "M"}, {}]))
            [{'age': 30.0, 'sex': 'M'}, {}]
        """
        records = []
        for row in features_bf.tolist():
            record: dict[str, Any] = {}
            for i, (name, (low, high)) in enumerate(self.continuous.items()):
                if row[2 * i + 1]:
                    record[name] = round(low + (row[2 * i] + 1) / 2 * (high - low), 3)
            first = 2 * len(self.continuous)
            for name, options in self.categorical.items():
                known = [option for option, value in zip(options, row[first:], strict=False) if value]
                record |= {name: known[0]} if known else {}
                first += len(options)
            records.append(record)
        return records

    def select(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The entries of a record that this encoder knows by name."""
        return {name: record[name] for name in self.names if name in record}

    def read(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A record that can be encoded, with numbers for numbers in text, and None for what is not known.

        Examples:
            >>> ConditionEncoder({"age": (20, 60)}, {"sex": ["F", "M"]}).read({"age": "30", "sex": "n/a"})
            {'age': 30.0, 'sex': None}
        """
        texts = {name for name, value in record.items() if isinstance(value, str) and name in self.continuous}
        return {
            name: None if _is_missing(value) else _as_number(value) if name in texts else value
            for name, value in record.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able description, from which `from_dict` makes the same encoder."""
        return {
            "continuous": {name: list(limits) for name, limits in self.continuous.items()},
            "categorical": {name: list(values) for name, values in self.categorical.items()},
        }

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> ConditionEncoder:
        """The encoder that `to_dict` described."""
        return cls(spec.get("continuous"), spec.get("categorical"))

    @classmethod
    def fit(cls, records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> ConditionEncoder:
        """Ranges and values from records: numbers become continuous, anything else and labels categorical (sorted).

        Args:
            records: one mapping a slice, such as the entries of a datalist.
            names: the names to condition on; each must be known in at least one record.
        """
        continuous: dict[str, tuple[float, float]] = {}
        categorical: dict[str, list[str]] = {}
        for name in names:
            known = [record[name] for record in records if not _is_missing(record.get(name))]
            if not known:
                available = sorted({key for record in records for key in record})
                raise InputError(f"no record has a value for condition {name!r}; the records have {available}")
            numbers = [number for value in known if (number := _as_number(value)) is not None]
            plain = sum(isinstance(value, int | float) and not isinstance(value, bool) for value in known)
            if len(numbers) == len(known) and name != LABEL:
                continuous[name] = (min(numbers), max(numbers))
            elif 2 * plain > len(known) and name != LABEL:
                odd = next(value for value in known if _as_number(value) is None)
                raise InputError(f"condition {name!r} is {odd!r} in a record and a number in most: correct it, or n/a")
            else:
                categorical[name] = sorted({str(value) for value in known})
        return cls(continuous, categorical)

    def _encode_one(self, record: Mapping[str, Any]) -> list[float]:
        unknown = sorted(set(record) - set(self.names))
        if unknown:
            raise InputError(f"conditions {unknown} are not known to this prior; it takes {list(self.names)}")
        features: list[float] = []
        for name, (low, high) in self.continuous.items():
            features += _scaled(name, record.get(name), low=low, high=high)
        for name, allowed in self.categorical.items():
            value = record.get(name)
            if not _is_missing(value) and str(value) not in allowed:
                raise InputError(f"condition {name}={value!r} is not one of {list(allowed)}, the values trained on")
            features += [float(not _is_missing(value) and str(value) == option) for option in allowed]
        return features


def _checked_range(name: str, limits: Sequence[float]) -> tuple[float, float]:
    numbers = [_as_number(limit) for limit in limits]
    low, high = (*numbers, None, None)[:2]
    if len(numbers) != 2 or low is None or high is None or low > high or not math.isfinite(high - low):
        raise InputError(f"condition {name!r} has the range {limits!r}; give two finite numbers, the lower one first")
    return low, high


def _scaled(name: str, value: Any, *, low: float, high: float) -> list[float]:
    if _is_missing(value):
        return [0.0, 0.0]
    number = _as_number(value)
    if number is None or not low <= number <= high:
        wanted = f"a number between {low:g} and {high:g}, the range trained on"
        raise InputError(f"condition {name}={value!r} is not {wanted}")
    return [2 * (number - low) / (high - low) - 1 if high > low else 0.0, 1.0]


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in MISSING)


def _as_number(value: Any) -> float | None:
    """The finite number that a value (also a string of a table) stands for, or None."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
