"""Codes of the same images computed in other batches, threads or processors: equal but for counted near-ties.

float32 sums depend on the order in which a processor adds, which batch size and threads may change. Where two codes are
equally near to a latent up to that rounding, either may be chosen; such near-ties are rare and are counted here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

MOST_NEAR_TIES = 0.002
"""Share of codes that may differ: rounding is some 1e-6 of a distance, a gap that small is rarer than this by far."""


def assert_same_codes(found: Tensor, expected: Tensor) -> None:
    """Grids of one shape whose codes are equal but for near-ties, of which one may always be."""
    assert found.shape == expected.shape
    allowed = max(1, math.floor(MOST_NEAR_TIES * expected.numel()))
    differing = int((found != expected).sum())
    assert differing <= allowed, f"{differing} of {expected.numel()} codes differ; near-ties would be {allowed} at most"


def assert_same_draws(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Samples, a grid `(n, *s)` a level, that are equal but for one: what follows a near-tie in it may all differ."""
    assert [level.shape for level in found] == [level.shape for level in expected]
    apart = sum((mine != theirs).flatten(1).any(1).int() for mine, theirs in zip(found, expected, strict=True))
    differing = int((apart > 0).sum())
    assert differing <= 1, f"{differing} of {len(expected[0])} samples differ; a near-tie would explain one"
