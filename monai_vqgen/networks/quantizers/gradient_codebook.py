"""A codebook trained by gradient descent.

Shape suffixes: b batch, s spatial axes (2 or 3), d code dimension, k codebook size, n vectors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_vqgen.networks.quantizers.base import (
    Quantized,
    Quantizer,
    check_codebook,
    nearest_codes,
    pass_gradient,
    rows_to_grid,
    to_rows,
)

__all__ = ["GradientCodebook"]


class GradientCodebook(Quantizer):
    """Vector quantizer whose codebook is a parameter, pulled to the latents by the codebook loss.

    van den Oord et al. 2017, equation 3: ``||sg[z] - e||^2 + commitment ||z - sg[e]||^2``, means over elements.

    Args:
        num_codes: codebook size K.
        dim: code dimension D.
        commitment: weight of the commitment term.
        gradient_estimator: ``"straight_through"`` or ``"rotation"``.

    Raises:
        InputError: for a value outside its range.

    Examples:
        >>> codebook = GradientCodebook(16, 4)
        >>> codebook(torch.zeros(1, 4, 2, 2)).loss.item() > 0
        True
    """

    def __init__(
        self,
        num_codes: int = 512,
        dim: int = 16,
        *,
        commitment: float = 0.25,
        gradient_estimator: str = "straight_through",
    ) -> None:
        super().__init__()
        check_codebook(num_codes, dim, gradient_estimator)
        self.num_codes, self.dim, self.commitment = num_codes, dim, commitment
        self.gradient_estimator = gradient_estimator
        self.embeddings_kd = nn.Parameter(torch.empty(num_codes, dim).uniform_(-1 / num_codes, 1 / num_codes))

    def forward(self, latents_bds: Tensor) -> Quantized:
        """Quantize latents ``(b, d, *s)``; pure in both modes."""
        with torch.autocast(latents_bds.device.type, enabled=False):
            rows_nd = to_rows(latents_bds)
            codes_n = nearest_codes(rows_nd, self.embeddings_kd.detach())
            chosen_nd = F.embedding(codes_n, self.embeddings_kd)
            loss = rows_nd.sum() * 0
            if rows_nd.shape[0]:
                pull = F.mse_loss(chosen_nd, rows_nd.detach())
                loss = pull + self.commitment * F.mse_loss(rows_nd, chosen_nd.detach())
            embeddings_nd = pass_gradient(rows_nd, chosen_nd, self.gradient_estimator)
        codes_bs = codes_n.reshape(latents_bds.shape[0], *latents_bds.shape[2:])
        return Quantized(rows_to_grid(embeddings_nd, latents_bds), codes_bs, loss)

    def lookup(self, codes_bs: Tensor) -> Tensor:
        """Return the embeddings ``(b, d, *s)`` of codes."""
        return F.embedding(codes_bs, self.embeddings_kd).movedim(-1, 1)
