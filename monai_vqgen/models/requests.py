"""What is asked of the priors: a list of samples, each with its number and its condition.

Shape legend: b batch, f condition features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.engines.utils import PrepareBatch
from torch import Tensor

from monai_vqgen.errors import InputError
from monai_vqgen.models.priors import TrainedPriors

__all__ = ["PrepareRequests", "draw_conditions", "join_conditions", "sampling_requests"]

CONDITION_STREAM = 0xC0DE  # keeps the draws of conditions apart from the sampler's noise of the same seed


def join_conditions(*parts: Mapping[str, Any] | None) -> dict[str, Any]:
    """One condition of several that were given apart; a value of None counts as not given.

    Raises:
        InputError: two parts give different values of one name.

    Example:
        >>> join_conditions({"sex": "F"}, {"position_mm": None})
        {'sex': 'F'}
    """
    joined: dict[str, Any] = {}
    for part in parts:
        for name, value in (part or {}).items():
            if value is None:
                continue
            if joined.setdefault(name, value) != value:
                raise InputError(f"{name} is given twice, as {joined[name]} and as {value}: leave one out")
    return joined


def draw_conditions(
    priors: TrainedPriors,
    *,
    num_samples: int,
    seed: int = 0,
    given: Mapping[str, Any] | None = None,
    like: Sequence[Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """The condition of each sample: what is given, and for every other name a draw from what the priors were taught.

    With `like`, records of slices, all names of a sample are drawn together: those of one of the records.

    A sample's draw depends on the seed and its own number, not on how many samples there are.

    Raises:
        InputError: no sample is asked for, or a given name or value that the priors do not know.
    """
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise InputError(f"num_samples is {num_samples}; ask for at least 1 sample")
    given = {name: value for name, value in (given or {}).items() if value is not None}
    if priors.condition is None:
        if given:
            raise InputError(f"these priors take no condition, {sorted(given)} was given: leave it out")
        return [{} for _ in range(num_samples)]
    spec = priors.condition.to_dict()
    continuous, categorical = spec.get("continuous", {}), spec.get("categorical", {})
    unknown = sorted(set(given) - set(continuous) - set(categorical))
    if unknown:
        known = sorted([*continuous, *categorical])
        raise InputError(f"these priors know nothing of {', '.join(unknown)}: they are conditioned on {known}")
    conditions = []
    for sample in range(num_samples):
        rng = np.random.Generator(np.random.Philox(key=[seed % 2**64, CONDITION_STREAM + sample]))
        drawn: dict[str, Any] = {
            name: round(float(rng.uniform(*limits)), 3) for name, limits in sorted(continuous.items())
        }
        drawn.update({name: values[int(rng.integers(len(values)))] for name, values in sorted(categorical.items())})
        if like:
            drawn = priors.condition.select(like[int(rng.integers(len(like)))])
        conditions.append({**drawn, **given})
    priors.condition.encode(conditions)  # refuses a given value outside the trained range before any work
    return conditions


def sampling_requests(priors: TrainedPriors, conditions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The samples to draw as a data set for MONAI: `{"sample": number, "condition": features (f,)}`, one a condition.

    Args:
        priors: they know what a condition is made of; f is 0 where they take none.
        conditions: values by name, see `draw_conditions`.

    Raises:
        InputError: a condition that the priors do not know.
    """
    features_nf = torch.zeros(len(conditions), 0)
    if priors.condition is not None:
        features_nf = priors.condition.encode(conditions)
    return [{"sample": number, "condition": features_f} for number, features_f in enumerate(features_nf)]


class PrepareRequests(PrepareBatch):
    """Take the numbers (b,) and the conditions (b, f) of a batch of requests; no features are no condition."""

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, None, tuple[Any, ...], dict[str, Any]]:
        """Return the numbers, no target, and the condition as a further argument of the inferer."""
        condition_bf = batchdata["condition"]
        condition = condition_bf.to(device=device, non_blocking=non_blocking) if condition_bf.shape[1] else None
        return batchdata["sample"], None, (), {"condition": condition}
