"""Finite scalar quantization: a codebook without anything to learn.

Shape suffixes: b batch, s spatial axes (2 or 3), d code dimension (one scalar a dimension), n vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from monai_vqgen.errors import InputError
from monai_vqgen.networks.quantizers.base import Quantized, Quantizer, rows_to_grid, to_rows

_EDGE = 1e-3  # keeps tanh's image off the half-way points at the ends (Mentzer et al. 2023, appendix A.1)


class FiniteScalarQuantizer(Quantizer):
    """Rounds each latent dimension to a few levels; a code is the mixed-radix number of its digits.

    Mentzer et al. 2023, section 3 and appendix A.1. Embeddings lie in ``[-1, 1]``; the first dimension is the
    least significant digit.

    Args:
        levels: number of levels of each dimension, at least 2; the codebook size is their product.

    Raises:
        InputError: for fewer than two levels in a dimension, or none at all.

    Examples:
        >>> FiniteScalarQuantizer((8, 8, 8)).num_codes
        512
    """

    half_widths_d: Tensor
    offsets_d: Tensor
    shifts_d: Tensor
    levels_d: Tensor
    basis_d: Tensor

    def __init__(self, levels: Sequence[int] = (8, 8, 8)) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise InputError(f"levels={list(levels)}: give at least one dimension, each of at least 2 levels")
        self.levels = tuple(int(level) for level in levels)
        self.num_codes, self.dim = math.prod(self.levels), len(self.levels)
        levels_d = torch.tensor(self.levels)
        half_d = (levels_d - 1) * (1 + _EDGE) / 2
        offset_d = torch.where(levels_d % 2 == 0, 0.5, 0.0)
        basis_d = torch.tensor([math.prod(self.levels[:i]) for i in range(self.dim)])
        self.register_buffer("levels_d", levels_d, persistent=False)
        self.register_buffer("basis_d", basis_d, persistent=False)
        self.register_buffer("half_widths_d", half_d, persistent=False)
        self.register_buffer("offsets_d", offset_d, persistent=False)
        self.register_buffer("shifts_d", torch.atanh(offset_d / half_d), persistent=False)

    def forward(self, latents_bds: Tensor) -> Quantized:
        """Quantize latents ``(b, d, *s)``; pure in both modes."""
        with torch.autocast(latents_bds.device.type, enabled=False):
            rows_nd = to_rows(latents_bds)
            bounded_nd = torch.tanh(rows_nd + self.shifts_d) * self.half_widths_d - self.offsets_d
            rounded_nd = bounded_nd + (bounded_nd.round() - bounded_nd).detach()
            digits_nd = rounded_nd.detach().long() + self.levels_d // 2
            codes_n = (digits_nd * self.basis_d).sum(1)
            embeddings_nd = rounded_nd / (self.levels_d // 2)
        codes_bs = codes_n.reshape(latents_bds.shape[0], *latents_bds.shape[2:])
        return Quantized(rows_to_grid(embeddings_nd, latents_bds), codes_bs, rows_nd.new_zeros(()))

    def lookup(self, codes_bs: Tensor) -> Tensor:
        """Return the embeddings ``(b, d, *s)`` of codes."""
        digits = codes_bs[..., None] // self.basis_d % self.levels_d
        half_d = self.levels_d // 2
        return ((digits - half_d) / half_d).to(self.half_widths_d.dtype).movedim(-1, 1)
