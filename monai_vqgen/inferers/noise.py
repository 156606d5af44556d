"""The randomness of sampling, as a function of (seed, sample, level, position).

Legend of suffixes: b batch, n raster positions, k number of codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from monai_vqgen.errors import InputError

__all__ = ["GumbelNoise"]

WORD_BITS = 64
"""Bits of a word that Philox gives and of each half of its key (Salmon et al. 2011, Philox4x64)."""
WORDS_PER_COUNT = 4
"""Words that one step of Philox4x64's counter gives."""
LEVEL_BITS = 16
"""Bits of the key's second half kept for the level; the rest number the sample."""
FRACTION_BITS = 53
"""Bits of a double's fraction: the resolution of the uniform numbers."""


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
