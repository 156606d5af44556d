"""How much of a codebook is in use.

Shape suffixes: b batch, k codebook size, s spatial axes (2 or 3).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from monai_vqgen.errors import CodesMismatchError

__all__ = ["CodebookCounter", "CodebookUse", "codebook_use"]


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
        counts_k = self.counts_k.clone()
        if dist.is_available() and dist.is_initialized():
            if dist.get_backend() == "nccl":
                counts_k = counts_k.cuda()
            dist.all_reduce(counts_k)
        return counts_k

    def compute(self) -> CodebookUse:
        """Judge the codebook over all processes."""
        return codebook_use(self.total_counts())
