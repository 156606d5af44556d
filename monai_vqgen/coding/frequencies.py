"""How often each code is expected at the next position: whole numbers, which a range coder turns into bits.

Two ways, and any reader must find the very same numbers as the writer.

Legend of suffixes: b batch, c contexts, d code dimension, k number of codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_vqgen.errors import InputError

__all__ = ["AdaptiveFrequencies", "Frequencies", "PriorFrequencies", "near_codes"]

STEPS = 16  # a logit is rounded to this many steps a unit: costs 0.0002 bits a code
SHIFTS = 8  # where a step may begin, in parts of a step
_MARGIN = 2.0**-33  # around a step's edge; the same sums in another order differ by 2^-43 or so
_TAIL = 64  # logits below the largest, from which on a code has the least frequency that the coder knows
_PEAK_BITS = 40  # of the likeliest code's frequency: 2^40 times 4,096 codes add up without rounding in float64


class Frequencies(Protocol):
    """What the coder goes through, one step a position, or a position of one image."""

    def next(self) -> NDArray[np.float64]:
        """Whole numbers `(b, k)`, not normalized."""
        ...

    def push(self, codes_b: NDArray[np.int32]) -> None:
        """Fix the codes and move on."""
        ...


def _exponentials() -> NDArray[np.float64]:
    """`2^40 exp(-i / 16)`, rounded, by multiplications alone, which every machine rounds alike."""
    factor, term, i = 1.0, 1.0, 0
    while term > 2.0**-60:  # exp(-1 / 16) as its series
        i += 1
        term = term / (i * STEPS)
        factor += term if i % 2 == 0 else -term
    values = [1.0]
    for _ in range(_TAIL * STEPS - 1):
        values.append(values[-1] * factor)
    return np.floor(np.array([*values, 0.0]) * 2.0**_PEAK_BITS)


_WEIGHTS = _exponentials()


def fine_steps(logits_bk: NDArray[np.float64]) -> NDArray[np.int16]:
    """Logits in eighths of a step, rounded down."""
    return np.clip(np.floor(logits_bk * (STEPS * SHIFTS)), -32768, 32767).astype(np.int16)


def spoiled_shifts(logits_bk: NDArray[np.float64]) -> set[int]:
    """The shifts at which some logit lies so near a step's edge that other sums could round it otherwise."""
    fine_bk = logits_bk * (STEPS * SHIFTS)
    edges_bk = np.rint(fine_bk)
    near = np.abs(fine_bk - edges_bk) < _MARGIN * STEPS * SHIFTS
    return {int(edge) % SHIFTS for edge in edges_bk[near]} if near.any() else set()


def step_frequencies(fine_bk: NDArray[np.int16], shift: int) -> NDArray[np.float64]:
    """Frequencies of logits in eighths of a step, where steps begin at a shift."""
    steps_bk = (fine_bk.astype(np.int32) - shift) >> 3
    below_bk = steps_bk.max(1, keepdims=True) - steps_bk
    return _WEIGHTS[np.minimum(below_bk, _TAIL * STEPS)]


class PriorFrequencies:
    """Mode "model": a prior's incremental pass, in float64, its logits rounded to sixteenths.

        logits -> steps = floor(16 logits - shift / 8) -> 2^40 exp((steps - largest) / 16) -> whole numbers

    Sums of floating-point numbers depend on their order, and so on the batch, the threads, the processor and the build
    of torch. The writer therefore chooses a shift at which no logit of its chunk lies within 2^-33 of a step's edge:
    who computes the same logits to that precision rounds them alike. Where another machine does not, the checksum of
    the codes tells.

    Args:
        prior: in float64, on the CPU, in evaluation mode.
        grid: of the level.
        batch_size: images coded together.
        coarser: grids of the coarser levels, coarsest first.
        condition: float64 `(b, f)`, or None.
        shift: from 0 to 7.
    """

    def __init__(
        self,
        prior: Any,
        grid: Sequence[int],
        *,
        batch_size: int,
        coarser: Sequence[Tensor],
        condition: Tensor | None,
        shift: int = 0,
    ) -> None:
        given = condition if prior.condition_dim else None
        self._steps = prior.incremental(grid, batch_size=batch_size, coarser=coarser, condition=given)
        self._shift = shift

    def logits(self) -> NDArray[np.float64]:
        """Of the next position, `(b, k)`."""
        logits_bk: NDArray[np.float64] = self._steps.logits().numpy()
        return logits_bk

    def next(self) -> NDArray[np.float64]:
        """Whole numbers `(b, k)`."""
        return step_frequencies(fine_steps(self.logits()), self._shift)

    def push(self, codes_b: NDArray[np.int32]) -> None:
        """Fix the codes of the batch and move on."""
        self._steps.push(torch.from_numpy(codes_b.astype(np.int64)))


_SCALE_BITS = 20  # of a frequency in "anywhere" mode
_PSEUDO = 16  # occurrences that the frequencies regardless of context count for in each context
_SHELLS = ((0, 1, 8), (1, 5, 2), (5, 17, 1))  # a code counts 8 for itself, 2 for its 4 nearest, 1 for the 12 after them
LARGEST_BOOK = 4096  # codes; a table of so many contexts takes 64 MiB


def near_codes(codebook_kd: Tensor) -> NDArray[np.int64]:
    """What an occurrence of each code counts for every code, `(k, k)`: codes with near vectors occur alike.

    Raises:
        InputError: a codebook too large for tables.
    """
    count = len(codebook_kd)
    if count > LARGEST_BOOK:
        raise InputError(
            f"a codebook of {count} codes: mode 'anywhere' takes {LARGEST_BOOK}; use mode 'model', which needs priors"
        )
    whole = np.rint(codebook_kd.double().cpu().numpy() * 1024).astype(np.int64)  # distances are exact from here on
    squares = (whole**2).sum(1)
    order = np.argsort(squares[:, None] + squares - 2 * whole @ whole.T, axis=1, kind="stable")
    counts = np.zeros((count, count), np.int64)
    for first, last, weight in _SHELLS:
        np.put_along_axis(counts, order[:, first:last], weight, 1)
    counts[np.arange(count), np.arange(count)] = _SHELLS[0][2]  # two codes with one vector
    return counts


class AdaptiveFrequencies:
    """Mode "anywhere": counts of the codes so far, by their neighbors; whole numbers only, so any machine agrees.

        context    the neighbor before it along each axis, the same position of the image before, the coarser code
        frequency  mean over the contexts of (counts in this context + 16 x share of the code so far) / (their sum + 16)

    Images are taken one after the other, so that an image profits from all before it in the chunk.

    Args:
        near: of `near_codes`.
        grid: of the level.
        images: in the chunk.
        coarser: grids `(images, *grid)` of the next coarser level; None at the coarsest.
    """

    def __init__(
        self, near: NDArray[np.int64], grid: Sequence[int], *, images: int, coarser: NDArray[np.int64] | None
    ) -> None:
        self._near, self._codes = near, np.full((images, *grid), len(near), np.int64)
        self._coarser, self._axes = coarser, len(grid)
        self._ratios = (
            [] if coarser is None else [math.ceil(n / m) for n, m in zip(grid, coarser.shape[1:], strict=True)]
        )
        contexts = self._axes + 1 + (coarser is not None)
        self._counts = np.zeros((contexts, len(near) + 1, len(near)), np.int64)
        self._sums = np.full((contexts, len(near) + 1), _PSEUDO, np.int64)
        self._all, self._number = np.ones(len(near), np.int64), np.arange(contexts)
        self._places: Iterator[tuple[int, ...]] = product(*(range(n) for n in self._codes.shape))
        self._move()

    def _move(self) -> None:
        """Go to the next position and find its contexts; one past the last is not looked at."""
        self._place = place = next(self._places, ())
        outside, context = len(self._near), []
        for axis in range(len(place)):
            before = (*place[:axis], place[axis] - 1, *place[axis + 1 :])
            context.append(self._codes[before] if place[axis] else outside)
        if self._coarser is not None and place:
            parent = (place[0], *(i // ratio for i, ratio in zip(place[1:], self._ratios, strict=True)))
            context.append(self._coarser[parent])
        self._context = context

    def next(self) -> NDArray[np.float64]:
        """Whole numbers `(1, k)`."""
        share_k = (self._all << _SCALE_BITS) // self._all.sum()
        counts_ck = self._counts[self._number, self._context]
        mixed_ck = ((counts_ck << _SCALE_BITS) + _PSEUDO * share_k) // self._sums[self._number, self._context][:, None]
        return mixed_ck.sum(0, keepdims=True).astype(np.float64)

    def push(self, codes_b: NDArray[np.int32]) -> None:
        """Count the code and move on."""
        code = int(codes_b[0])
        near_k = self._near[code]
        self._codes[self._place] = code
        self._counts[self._number, self._context] += near_k
        self._sums[self._number, self._context] += near_k.sum()
        self._all += near_k
        self._move()
