"""Lookup-free quantization: a code is the signs of its latent, and nothing is searched or learned.

Shape suffixes: b batch, s spatial axes (2 or 3), d code dimension (one bit a dimension), n vectors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_vqgen.errors import InputError
from monai_vqgen.networks.quantizers.base import Quantized, Quantizer, pass_gradient, rows_to_grid, to_rows

_MOST_BITS = 16  # 65,536 codes: priors give each one a logit at every position
_JOINT_BITS = 9  # dimensions whose joint distribution is counted: 512 columns for each latent of a batch


class LookupFreeQuantizer(Quantizer):
    """Takes the sign of each latent dimension; a code is the binary number of the positive ones.

    Yu et al. 2023 (MAGVIT-v2), section 3.1. Embeddings are -1 or 1; the first dimension is the least significant bit.
    With bits drawn independently with ``p = sigmoid(4 sharpness z)``, which is a softmax over all codes of
    ``-sharpness ||z - e||^2``, the loss is ::

        commitment ||z - sg[e]||^2 + entropy_weight (mean H(p) - H(mean p))

    so that each latent is sure of its code and all codes are used alike. Entropies are in nats, of the batch of this
    process. The entropy of the mean is taken over groups of 9 dimensions and added up, exact for up to 9.

    Args:
        dim: code dimension, 1 to 16; the codebook size is two to its power.
        commitment: weight of the commitment term, a mean over elements.
        entropy_weight: weight of the entropy terms; 0 switches them off.
        sharpness: how fast a latent becomes sure of its bits.

    Raises:
        InputError: for a value outside its range.

    Examples:
        >>> quantizer = LookupFreeQuantizer(dim=9)
        >>> quantizer.num_codes, quantizer(torch.randn(2, 9, 8, 8)).codes_bs.shape
        (512, torch.Size([2, 8, 8]))
    """

    powers_d: Tensor

    def __init__(
        self, dim: int = 9, *, commitment: float = 0.25, entropy_weight: float = 0.1, sharpness: float = 1.0
    ) -> None:
        super().__init__()
        if not 1 <= dim <= _MOST_BITS:
            raise InputError(f"dim={dim} must lie in 1..{_MOST_BITS}: there are two to its power codes")
        if commitment < 0 or entropy_weight < 0 or not sharpness > 0:
            raise InputError(
                f"commitment={commitment}, entropy_weight={entropy_weight}, sharpness={sharpness}: weights must not be "
                "negative, and sharpness must be positive"
            )
        self.num_codes, self.dim = 2**dim, dim
        self.commitment, self.entropy_weight, self.sharpness = commitment, entropy_weight, sharpness
        self.register_buffer("powers_d", 2 ** torch.arange(dim), persistent=False)

    def forward(self, latents_bds: Tensor) -> Quantized:
        """Quantize latents ``(b, d, *s)``; pure in both modes."""
        with torch.autocast(latents_bds.device.type, enabled=False):
            rows_nd = to_rows(latents_bds)
            bits_nd = rows_nd.detach() > 0
            signs_nd = bits_nd.float() * 2 - 1
            loss = self._loss(rows_nd, signs_nd) if rows_nd.shape[0] else rows_nd.sum()
            embeddings_nd = pass_gradient(rows_nd, signs_nd, "straight_through")
            codes_n = (bits_nd * self.powers_d).sum(1)
        codes_bs = codes_n.reshape(latents_bds.shape[0], *latents_bds.shape[2:])
        return Quantized(rows_to_grid(embeddings_nd, latents_bds), codes_bs, loss)

    def _loss(self, rows_nd: Tensor, signs_nd: Tensor) -> Tensor:
        loss = self.commitment * F.mse_loss(rows_nd, signs_nd)
        if not self.entropy_weight:
            return loss
        logits_nd = 4 * self.sharpness * rows_nd
        on_nd, off_nd = F.logsigmoid(logits_nd), F.logsigmoid(-logits_nd)
        own = -(on_nd.exp() * on_nd + off_nd.exp() * off_nd).sum(1).mean()
        shared = sum(
            _entropy_of_mean(on, off)
            for on, off in zip(on_nd.split(_JOINT_BITS, 1), off_nd.split(_JOINT_BITS, 1), strict=True)
        )
        return loss + self.entropy_weight * (own - shared)

    def lookup(self, codes_bs: Tensor) -> Tensor:
        """Return the embeddings ``(b, d, *s)`` of codes."""
        bits = codes_bs[..., None] // self.powers_d % 2
        return (bits * 2 - 1).float().movedim(-1, 1)


def _entropy_of_mean(on_nd: Tensor, off_nd: Tensor) -> Tensor:
    """Entropy in nats of the mean over rows of the products of independent bits, from the bits' log-probabilities."""
    joint_nk = on_nd.new_zeros(on_nd.shape[0], 1)
    for on_n, off_n in zip(on_nd.unbind(1), off_nd.unbind(1), strict=True):
        joint_nk = torch.cat([joint_nk + off_n[:, None], joint_nk + on_n[:, None]], 1)
    mean_k = joint_nk.exp().mean(0)
    return -torch.special.xlogy(mean_k, mean_k).sum()
