"""One code for the cells of a grid in which there is nothing.

Shape suffixes: b batch, d code dimension, n vectors, s spatial axes (2 or 3).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from monai_vqgen.networks.quantizers.base import Quantized, Quantizer, learned


class BlankCells(Quantizer):
    """A quantizer's codes and one more, the last, for blank cells; its vector is a parameter."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.num_codes, self.dim = quantizer.num_codes + 1, quantizer.dim
        self.blank_d = nn.Parameter(torch.randn(quantizer.dim))

    def forward(self, latents_bds: Tensor) -> Quantized:
        """Quantize latents of which no cell is blank."""
        return cast("Quantized", self.quantizer(latents_bds))

    def lookup(self, codes_bs: Tensor) -> Tensor:
        """Return the vectors ``(b, d, *s)`` of codes."""
        known = self.num_codes - 1
        return self._merged(self.quantizer.lookup(codes_bs.clamp(max=known - 1)), codes_bs < known)

    def marked(self, latents_bds: Tensor, filled_bs: Tensor) -> Quantized:
        """Quantize with blank cells marked; changes nothing. The loss counts blank cells like all others."""
        found = self(latents_bds)
        codes_bs = torch.where(filled_bs, found.codes_bs, self.num_codes - 1)
        return Quantized(self._merged(found.embeddings_bds, filled_bs), codes_bs, found.loss)

    def learned(self, latents_bds: Tensor, filled_bs: Tensor) -> Quantized:
        """The same for a training batch, from whose filled cells alone the quantizer learns."""
        found = learned(self.quantizer, latents_bds.movedim(1, -1)[filled_bs])  # embeddings (n, d), codes (n,)
        codes_bs = torch.full_like(filled_bs, self.num_codes - 1, dtype=torch.int64)
        codes_bs[filled_bs] = found.codes_bs
        shape = (*filled_bs.shape, self.dim)
        embeddings_bsd = found.embeddings_bds.new_zeros(shape).masked_scatter(
            filled_bs[..., None], found.embeddings_bds
        )
        return Quantized(self._merged(embeddings_bsd.movedim(-1, 1), filled_bs), codes_bs, found.loss)

    def _merged(self, embeddings_bds: Tensor, filled_bs: Tensor) -> Tensor:
        blank = self.blank_d.view(1, -1, *[1] * (filled_bs.ndim - 1))
        return torch.where(filled_bs[:, None], embeddings_bds, blank)
