"""What a draw takes: priors and codes that fit one another, truncated logits, noise of a fixed place, and a thread.

    code = argmax over k of (truncated, tempered logits + Gumbel noise of (seed, sample, level, position))

Legend of suffixes: b batch, f condition features, k number of codes, n raster positions, s spatial axes.
"""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from monai_vqgen.errors import InputError
from monai_vqgen.networks.priors.base import Prior

T = TypeVar("T")
logger = logging.getLogger(__name__)

WORD_BITS = 64  # of a word that Philox gives and of each half of its key (Salmon et al. 2011, Philox4x64)
WORDS_PER_COUNT = 4  # words that one step of Philox4x64's counter gives
LEVEL_BITS = 16  # of the key's second half, kept for the level; the rest number the sample
FRACTION_BITS = 53  # of a double: the resolution of the uniform numbers


class GumbelNoise:
    """Standard Gumbel noise, one row of `num_codes` a raster position, from a counter-based generator.

        key = (seed, sample * 2^16 + level)      counter = the position's first word / 4
        u = word / 2^64 in (0, 1)                noise = -log(-log u), in float64, then rounded to float32

    Adding it to logits and taking the largest draws a code from their softmax (the Gumbel-max trick; Maddison et al.,
    "A* Sampling", 2014). A row depends on nothing but the key and its position, so a sample does not change with the
    batch it is drawn in, the order of drawing, or the number of processes. Drawn on the CPU, so that every device
    draws the same codes.

    Args:
        seed: any integer in [0, 2^64).
        level: index of the level, 0 the coarsest.
        num_codes: length of a row.

    Raises:
        InputError: a seed, level or sample out of range.

    Examples:
        >>> noise = GumbelNoise(7, level=0, num_codes=512)
        >>> noise.rows([3, 4], first=10, count=2).shape
        torch.Size([2, 2, 512])
        >>> bool((noise.rows([4], first=11, count=1) == noise.rows([3, 4], first=10, count=2)[1:, 1:]).all())
        True
    """

    def __init__(self, seed: int, *, level: int, num_codes: int) -> None:
        if not 0 <= seed < 2**WORD_BITS:
            raise InputError(f"seed is {seed}; give an integer of at least 0 and below 2^{WORD_BITS}")
        if not 0 <= level < 2**LEVEL_BITS:
            raise InputError(f"level is {level}; give at least 0 and below {2**LEVEL_BITS}")
        self.seed, self.level, self.num_codes = seed, level, num_codes
        self._counts_per_row = -(-num_codes // WORDS_PER_COUNT)

    def rows(self, samples: Sequence[int], *, first: int, count: int) -> Tensor:
        """Noise of `count` positions from `first` on, float32 `(b, count, k)`, one row of the result a sample."""
        noise_bnk = np.empty((len(samples), count, self.num_codes), dtype=np.float32)
        for row, sample in enumerate(samples):
            noise_bnk[row] = self._one(sample, first=first, count=count)
        return torch.from_numpy(noise_bnk)

    def _one(self, sample: int, *, first: int, count: int) -> np.ndarray:
        if not 0 <= sample < 2 ** (WORD_BITS - LEVEL_BITS):
            raise InputError(f"sample index is {sample}; give at least 0 and below 2^{WORD_BITS - LEVEL_BITS}")
        key = np.array([self.seed, (sample << LEVEL_BITS) | self.level], dtype=np.uint64)
        generator = np.random.Philox(counter=first * self._counts_per_row, key=key)
        words = generator.random_raw(count * self._counts_per_row * WORDS_PER_COUNT)
        words = words.reshape(count, self._counts_per_row * WORDS_PER_COUNT)[:, : self.num_codes]
        # The top 53 bits; a zero, which would give -inf, becomes half of the smallest step.
        uniform = (words >> np.uint64(WORD_BITS - FRACTION_BITS)) * 2.0**-FRACTION_BITS
        np.maximum(uniform, 2.0 ** -(FRACTION_BITS + 1), out=uniform)
        return -np.log(-np.log(uniform))


class Truncation:
    """Divides logits by the temperature, then keeps the `top_k` largest, then the nucleus `top_p` of what is left.

    The nucleus is the smallest set of most probable codes whose probability reaches `top_p` (Holtzman et al., "The
    Curious Case of Neural Text Degeneration", 2020); at least one code always remains. Codes that fall out get -inf.
    Of equal logits at the edge, the smaller code stays.

    Args:
        temperature: above 0; below 1 sharpens.
        top_k: keep this many codes, at least 1; None keeps all.
        top_p: keep this much probability, above 0 and at most 1; None keeps all.

    Raises:
        InputError: an argument out of range.

    Examples:
        >>> import torch
        >>> Truncation(top_k=2).apply(torch.tensor([[1.0, 3.0, 2.0]]))
        tensor([[-inf, 3., 2.]])
    """

    def __init__(self, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> None:
        if not (isinstance(temperature, Real) and 0 < float(temperature) < math.inf):
            raise InputError(
                f"temperature is {temperature}; give a number above 0. For the most probable code at every position "
                "(temperature 0) use top_k=1"
            )
        if top_k is not None and (top_k < 1 or top_k != int(top_k)):
            raise InputError(f"top_k is {top_k}; give a whole number of at least 1, or leave it out to keep all codes")
        if top_p is not None and not 0 < top_p <= 1:
            raise InputError(f"top_p is {top_p}; give a number above 0 and at most 1, or leave it out")
        self.temperature: float = temperature
        self.top_p: float | None = top_p
        self.top_k: int | None = None if top_k is None else int(top_k)  # 3.0 is a whole number too, but no index

    def apply(self, logits_bk: Tensor) -> Tensor:
        """Truncated, tempered logits `(b, k)`; the input itself where nothing is to be done."""
        if self.temperature != 1:
            logits_bk = logits_bk / self.temperature
        top_k = logits_bk.shape[1] if self.top_k is None else self.top_k
        top_p = 1.0 if self.top_p is None else self.top_p
        if top_k >= logits_bk.shape[1] and top_p >= 1:
            return logits_bk
        ordered_bk, order_bk = logits_bk.sort(dim=1, descending=True, stable=True)
        ordered_bk[:, top_k:] = -torch.inf
        if top_p < 1:
            probability_bk = ordered_bk.softmax(1)
            before_bk = probability_bk.cumsum(1) - probability_bk
            outside_bk = before_bk >= top_p
            outside_bk[:, 0] = False
            ordered_bk = ordered_bk.masked_fill(outside_bk, -torch.inf)
        return torch.empty_like(ordered_bk).scatter_(1, order_bk, ordered_bk)


def device_of(prior: Prior) -> torch.device:
    """Where a prior's weights are."""
    return next(prior.parameters()).device


def check_priors(priors: Sequence[Prior]) -> None:
    """Raise InputError unless the priors are one a level of the same codes, coarsest first."""
    if not priors:
        raise InputError("no priors given; give one a level, coarsest first")
    sizes: list[int] = []
    for level, prior in enumerate(priors):
        coarser = list(prior.coarser_codes)
        if coarser != sizes:
            raise InputError(
                f"the prior of level {level} is for coarser codebooks of sizes {coarser}, but the priors before it "
                f"have {sizes}. Give all levels' priors, coarsest first"
            )
        sizes.append(prior.num_codes)


def check_grids(grids: Sequence[Sequence[int]], priors: Sequence[Prior]) -> None:
    """Raise InputError unless the grids are one a prior, of its number of axes, none smaller than a coarser one."""
    if len(grids) != len(priors):
        raise InputError(f"{len(grids)} grids given for {len(priors)} priors; give one grid a level")
    for level, (grid, prior) in enumerate(zip(grids, priors, strict=True)):
        if len(grid) != prior.spatial_dims or any(size < 1 for size in grid):
            wanted = f"give {prior.spatial_dims} sizes of at least 1"
            raise InputError(f"the grid of level {level} is {tuple(grid)}; {wanted}")
        coarser = grids[level - 1] if level else grid
        if any(m > n for m, n in zip(coarser, grid, strict=True)):
            raise InputError(
                f"the grid of level {level}, {tuple(grid)}, is smaller than that of the coarser level {level - 1}, "
                f"{tuple(coarser)}; give the grids coarsest first"
            )


def check_codes(codes: Sequence[Tensor], priors: Sequence[Prior]) -> None:
    """Raise InputError unless codes `(b, *grid)`, one a prior, fit the priors and one another."""
    if len(codes) != len(priors):
        raise InputError(f"{len(codes)} levels of codes given for {len(priors)} priors; give one a level")
    check_grids([tuple(codes_bs.shape[1:]) for codes_bs in codes], priors)
    counts = [codes_bs.shape[0] for codes_bs in codes]
    if len(set(counts)) > 1 or counts[0] < 1:
        raise InputError(f"the levels hold {counts} samples; give the same number at each, at least 1")
    for level, (codes_bs, prior) in enumerate(zip(codes, priors, strict=True)):
        low, high = int(codes_bs.min()), int(codes_bs.max())
        if low < 0 or high >= prior.num_codes:
            raise InputError(
                f"codes of level {level} reach from {low} to {high}; its prior knows 0 to {prior.num_codes - 1}. "
                "Were they made by another autoencoder?"
            )


def check_masks(masks: Sequence[Tensor], codes: Sequence[Tensor]) -> None:
    """Raise InputError unless the masks are booleans of the codes' shapes, with or without the batch."""
    if len(masks) != len(codes):
        raise InputError(f"{len(masks)} masks and {len(codes)} levels of codes given; give one mask a level")
    for level, (codes_bs, mask) in enumerate(zip(codes, masks, strict=True)):
        if mask.dtype != torch.bool or tuple(mask.shape) not in (tuple(codes_bs.shape), tuple(codes_bs.shape[1:])):
            raise InputError(
                f"the mask of level {level} has shape {tuple(mask.shape)} and type {mask.dtype}; give booleans of "
                f"the codes' shape {tuple(codes_bs.shape)}, with or without the batch"
            )


def checked_condition(condition: Tensor | None, priors: Sequence[Prior], *, count: int) -> Tensor | None:
    """The condition `(count, f)` on the priors' device, None where no prior takes one; InputError for another shape."""
    dims = sorted({prior.condition_dim for prior in priors} - {0})
    if not dims:
        if condition is not None and condition.shape[-1]:
            raise InputError("a condition is given, but no prior was trained with one; leave it out")
        return None
    if condition is None:
        raise InputError(f"the priors need a condition of {dims} features; make it with their ConditionEncoder")
    if condition.ndim != 2 or condition.shape[0] not in (1, count) or dims != [condition.shape[1]]:
        given = tuple(condition.shape)
        raise InputError(f"the condition has shape {given}; give ({count}, {dims[0]}) or (1, {dims[0]})")
    return condition.to(device_of(priors[0])).expand(count, -1)


def in_memory(work: Callable[[slice], T], part: slice) -> list[T]:
    """Do work on a batch, the part of a whole; where memory runs out, once more on the batch's two halves.

    Args:
        work: called with the part; what it did before it failed is done again.
        part: with its start and stop.

    Returns:
        One result, or one of each half.

    Raises:
        InputError: memory ran out again; what the batch took is free by then.

    Examples:
        >>> in_memory(lambda part: list(range(10))[part], slice(2, 5))
        [[2, 3, 4]]
    """
    count, middle = part.stop - part.start, (part.start + part.stop + 1) // 2
    told = ""
    for parts in ([part], [slice(part.start, middle), slice(middle, part.stop)] if count > 1 else [part]):
        try:
            return [work(each) for each in parts]
        except (MemoryError, RuntimeError) as error:
            told = str(error).split("\n")[0]  # the error itself holds the frames, and with them the memory
            scarce = ("out of memory", "can't allocate memory", "not enough memory")
            if not (isinstance(error, MemoryError) or any(words in told.lower() for words in scarce)):
                raise
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning("Memory ran out with a batch of %d", parts[0].stop - parts[0].start)
    raise InputError(
        f"memory ran out with a batch of {count}, and with {'its halves' if count > 1 else 'it again'} ({told}): "
        "give a smaller batch_size, smaller images, or a device with more memory"
    )


def finished_time(device: torch.device | str) -> float:
    """Seconds of a monotonic clock, read once the device has done all that was asked of it.

    A GPU returns before it has computed: a clock read at once would measure how long it took to ask.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work on one CPU thread inside, and on as many as before afterwards.

    A position of cached sampling is some hundred products of a few microseconds. Threads that share such a product
    wait for each other longer than they compute: on two idle cores one thread took two thirds of the time of two, and
    beside other work two threads took many times as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
