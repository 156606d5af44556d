"""What codes cost: how much of a codebook is in use, and the bits that a prior and two simple models pay for a grid.

Shape suffixes: b batch, n grids, p positions of a grid, s spatial axes (2 or 3), k codebook size.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from monai_vqgen.errors import CodesMismatchError, InputError
from monai_vqgen.networks.quantizers.codebooks import all_reduce_sum

# Pseudo-counts per code to choose from; a fair baseline is one whose smoothing was fitted.
_SMOOTHINGS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)


class CodebookUse(NamedTuple):
    """How much of one codebook is in use.

    Attributes:
        size: number of codes K.
        codes_in_use: number of codes that occur.
        usage: part of the codes that occur, 0 to 1.
        perplexity: exp of the entropy of the codes' frequencies, 1 (one code) to K (all equally often).
    """

    size: int
    codes_in_use: int
    usage: float
    perplexity: float


def codebook_use(counts_k: Tensor) -> CodebookUse:
    """Judge a codebook by how often each code occurs; an empty count has perplexity 0.

    Examples:
        >>> codebook_use(torch.tensor([5, 5, 0, 0]))
        CodebookUse(size=4, codes_in_use=2, usage=0.5, perplexity=2.0)
    """
    size, total = counts_k.numel(), float(counts_k.sum())
    codes_in_use = int((counts_k > 0).sum())
    if total == 0:
        return CodebookUse(size, 0, 0.0, 0.0)
    frequencies_k = counts_k.double() / total
    entropy = -torch.special.xlogy(frequencies_k, frequencies_k).sum()
    return CodebookUse(size, codes_in_use, codes_in_use / size, float(entropy.exp()))


class CodebookCounter:
    """Count codes batch by batch; the result is over all processes.

    Args:
        num_codes: codebook size K.

    Raises:
        CodesMismatchError: a code outside the codebook.

    Examples:
        >>> counter = CodebookCounter(4)
        >>> counter.update(torch.tensor([[0, 1], [1, 0]]))
        >>> counter.compute().usage
        0.5
    """

    def __init__(self, num_codes: int) -> None:
        self.num_codes = num_codes
        self.reset()

    def reset(self) -> None:
        """Forget all codes."""
        self.counts_k: Tensor = torch.zeros(self.num_codes, dtype=torch.int64)

    def update(self, codes_bs: Tensor) -> None:
        """Count the codes of a batch."""
        counts_k = torch.bincount(codes_bs.reshape(-1).long(), minlength=self.num_codes)
        if counts_k.numel() > self.num_codes:
            raise CodesMismatchError(
                f"Code {counts_k.numel() - 1} is outside a codebook of {self.num_codes}: made by another autoencoder?"
            )
        self.counts_k = self.counts_k.to(counts_k.device) + counts_k

    def total_counts(self) -> Tensor:
        """How often each code occurred, over all processes."""
        on_gpu = dist.is_available() and dist.is_initialized() and dist.get_backend() == "nccl"
        counts_k = self.counts_k.clone()
        return all_reduce_sum(counts_k.cuda() if on_gpu else counts_k)

    def compute(self) -> CodebookUse:
        """Judge the codebook over all processes."""
        return codebook_use(self.total_counts())


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
            raise InputError(f"smoothing={smoothing} must be positive: an unseen code would cost infinitely many bits")
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
            self.smoothing = min(_SMOOTHINGS, key=lambda value: self._mean_bits(codes_np, value, left_out=1))
        return self

    def bits_per_code(self, codes_ns: Tensor) -> float:
        """Mean bits per code of grids (n, *s) of the training grids' size."""
        if self._counts_pk is None or self.smoothing is None:
            raise InputError("Fit the histogram to training codes first")
        if (grid := tuple(codes_ns.shape[1:])) != self._grid:
            raise CodesMismatchError(f"Grids of {grid} codes, but the histogram is of {self._grid}")
        return self._mean_bits(self._flat(codes_ns), self.smoothing)

    def _mean_bits(self, codes_np: Tensor, smoothing: float, *, left_out: int = 0) -> float:
        """Bits of codes by the training counts, from each of which these grids' own `left_out` are taken."""
        assert self._counts_pk is not None
        counts_np = self._counts_pk.T.gather(0, codes_np).double() - left_out
        total = self._num_grids - left_out + smoothing * self.num_codes
        return float(-torch.log2((counts_np + smoothing) / total).mean())

    def _flat(self, codes_ns: Tensor) -> Tensor:
        if codes_ns.shape[0] == 0:
            raise InputError("No grids of codes were given")
        codes_np = codes_ns.detach().cpu().long().flatten(1)
        if int(codes_np.min()) < 0 or int(codes_np.max()) >= self.num_codes:
            raise CodesMismatchError(f"Codes must lie in 0 to {self.num_codes - 1}: made by another autoencoder?")
        return codes_np
