"""Bits per code: what a prior pays for a grid, and what two simple models would pay.

Shape suffixes: n grids, p positions of a grid, s spatial axes (2 or 3), k codebook size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from monai_vqgen.errors import CodesMismatchError, InputError

__all__ = ["PositionHistogram", "bits_per_code", "uniform_bits_per_code"]

# Pseudo-counts per code to choose from; a fair baseline is one whose smoothing was fitted.
_SMOOTHINGS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)


def bits_per_code(log_prob_n: Tensor, num_positions: int) -> float:
    """Mean bits per code of grids with log-probabilities in nats.

    Examples:
        >>> bits_per_code(torch.tensor([-4 * math.log(2)], dtype=torch.float64), 4)
        1.0
    """
    if log_prob_n.numel() == 0 or num_positions < 1:
        raise InputError("Bits per code need at least one grid of at least one position")
    return float(-log_prob_n.double().mean() / (num_positions * math.log(2)))


def uniform_bits_per_code(num_codes: int) -> float:
    """Bits per code when all codes are equally likely: log2 K."""
    return math.log2(num_codes)


class PositionHistogram:
    """A model that knows how often each code stands at each position, and nothing about neighbors.

    p(code at position) = (count + smoothing) / (n + smoothing * K), additive (Lidstone) smoothing.

    Args:
        num_codes: codebook size K.
        smoothing: pseudo-count of each code; None takes the value under which each training grid is likeliest given
            the others (leave-one-out), the fairest that the training split can tell.

    Examples:
        >>> codes = torch.zeros(8, 2, 2, dtype=torch.int64)
        >>> PositionHistogram(4, smoothing=1.0).fit(codes).bits_per_code(codes)  # -log2(9 / 12)
        0.415...
    """

    def __init__(self, num_codes: int, *, smoothing: float | None = None) -> None:
        if smoothing is not None and not smoothing > 0:
            raise InputError(
                f"smoothing={smoothing} must be positive, or a code not seen would cost infinitely many bits"
            )
        self.num_codes, self.smoothing = num_codes, smoothing
        self._counts_pk: Tensor | None = None
        self._grid: tuple[int, ...] = ()
        self._num_grids = 0

    def fit(self, codes_ns: Tensor) -> PositionHistogram:
        """Count the codes of training grids (n, *s) at each position; returns itself."""
        codes_np = self._flat(codes_ns)
        self._grid, self._num_grids = tuple(codes_ns.shape[1:]), codes_ns.shape[0]
        positions = codes_np.shape[1]
        index = codes_np + torch.arange(positions) * self.num_codes
        counts = torch.bincount(index.reshape(-1), minlength=positions * self.num_codes)
        self._counts_pk = counts.reshape(positions, self.num_codes)
        if self.smoothing is None:
            self.smoothing = min(_SMOOTHINGS, key=lambda smoothing: self._leave_one_out_bits(codes_np, smoothing))
        return self

    def bits_per_code(self, codes_ns: Tensor) -> float:
        """Mean bits per code of grids (n, *s) of the training grids' size."""
        if self._counts_pk is None or self.smoothing is None:
            raise InputError("Fit the histogram to training codes first")
        if tuple(codes_ns.shape[1:]) != self._grid:
            raise CodesMismatchError(
                f"Grids of {tuple(codes_ns.shape[1:])} codes, but the histogram is of {self._grid}"
            )
        counts_np = self._counts_of(self._flat(codes_ns)).double()
        total = self._num_grids + self.smoothing * self.num_codes
        return float(-torch.log2((counts_np + self.smoothing) / total).mean())

    def _leave_one_out_bits(self, codes_np: Tensor, smoothing: float) -> float:
        counts_np = self._counts_of(codes_np).double() - 1
        total = self._num_grids - 1 + smoothing * self.num_codes
        return float(-torch.log2((counts_np + smoothing) / total).mean())

    def _counts_of(self, codes_np: Tensor) -> Tensor:
        """How often each given code stood at its position in training."""
        assert self._counts_pk is not None
        return self._counts_pk.T.gather(0, codes_np)

    def _flat(self, codes_ns: Tensor) -> Tensor:
        if codes_ns.shape[0] == 0:
            raise InputError("No grids of codes were given")
        codes_np = codes_ns.detach().cpu().long().flatten(1)
        if int(codes_np.min()) < 0 or int(codes_np.max()) >= self.num_codes:
            raise CodesMismatchError(f"Codes must lie in 0 to {self.num_codes - 1}: made by another autoencoder?")
        return codes_np
