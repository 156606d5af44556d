"""Residual quantization: each codebook writes what the ones before it left over.

Shape suffixes: b batch, s spatial axes (2 or 3), d code dimension, n vectors.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from monai_vqgen.errors import InputError
from monai_vqgen.networks.quantizers.base import Quantized, Quantizer, pass_gradient, rows_to_grid, to_rows
from monai_vqgen.networks.quantizers.codebooks import EMACodebook

_MOST_CODES = 1 << 16  # priors give each code a logit at every position


class ResidualQuantizer(Quantizer):
    """A few small codebooks in place of a large one: an embedding is the sum of one vector of each.

    ::

        latent ── stage 0 ──> e0     latent - e0 ── stage 1 ──> e1     latent - e0 - e1 ── stage 2 ──> ...
        embedding = e0 + e1 + ...                 code = digit0 + stage_codes digit1 + stage_codes^2 digit2 + ...

    Zeghidour et al. 2021 (SoundStream), section III-C; Lee et al. 2022 (RQ-VAE), section 3.1. A position has one code
    here, as everywhere in this package, and not one a stage: the mixed-radix number of the stages' digits. So
    ``stage_codes ** num_stages`` may be at most 65,536, and stages are fewer than in the papers. Only
    ``stage_codes * num_stages`` vectors are learned, each from many latents.

    The loss is the sum over stages of ``commitment`` times the mean squared distance of the latent to the sum of
    vectors so far (section 3.1 of RQ-VAE).

    Args:
        stage_codes: codes of each stage.
        num_stages: how many codebooks.
        dim: code dimension D.
        decay: of each stage's `EMACodebook`, as the next two.
        commitment: weight of the commitment loss.
        restart_below: EMA count under which a code of a stage restarts; 0 switches restarts off.
        kmeans: initialize each stage from what the first training batch leaves to it.
        warm_up: of each stage's `EMACodebook`.

    Raises:
        InputError: for a value outside its range, or more than 65,536 codes.

    Examples:
        >>> quantizer = ResidualQuantizer(32, 2, dim=16)
        >>> quantizer.num_codes, quantizer(torch.randn(2, 16, 8, 8)).codes_bs.shape
        (1024, torch.Size([2, 8, 8]))
    """

    def __init__(
        self,
        stage_codes: int = 32,
        num_stages: int = 2,
        *,
        dim: int = 16,
        decay: float = 0.99,
        commitment: float = 0.25,
        restart_below: float = 0.1,
        kmeans: bool = True,
        warm_up: bool = True,
    ) -> None:
        super().__init__()
        if num_stages < 1 or stage_codes**num_stages > _MOST_CODES:
            raise InputError(
                f"stage_codes={stage_codes}, num_stages={num_stages}: give at least 1 stage, and at most "
                f"{_MOST_CODES:,} codes in all, which is stage_codes to the power of num_stages"
            )
        options: dict[str, Any] = {
            "decay": decay,
            "commitment": commitment,
            "restart_below": restart_below,
            "kmeans": kmeans,
            "warm_up": warm_up,
        }
        self.stages = nn.ModuleList(EMACodebook(stage_codes, dim, **options) for _ in range(num_stages))
        self.stage_codes, self.num_codes, self.dim = stage_codes, stage_codes**num_stages, dim

    @property
    def _stages(self) -> list[EMACodebook]:
        return cast("list[EMACodebook]", list(self.stages))

    def forward(self, latents_bds: Tensor) -> Quantized:
        """Quantize latents ``(b, d, *s)``; pure in both modes."""
        with torch.autocast(latents_bds.device.type, enabled=False):
            rows_nd = to_rows(latents_bds)
            left_nd, codes_n, loss = rows_nd, torch.zeros_like(rows_nd[:, 0], dtype=torch.int64), rows_nd.sum() * 0
            for place, stage in enumerate(self._stages):
                found = stage(left_nd)  # rows are latents without spatial axes
                codes_n = codes_n + found.codes_bs * self.stage_codes**place
                loss = loss + found.loss
                left_nd = left_nd - found.embeddings_bds.detach()
            embeddings_nd = pass_gradient(rows_nd, self.lookup(codes_n), "straight_through")
        codes_bs = codes_n.reshape(latents_bds.shape[0], *latents_bds.shape[2:])
        return Quantized(rows_to_grid(embeddings_nd, latents_bds), codes_bs, loss)

    def lookup(self, codes_bs: Tensor) -> Tensor:
        """Return the embeddings ``(b, d, *s)`` of codes, the sums of the stages' vectors."""
        vectors = [stage.lookup(self._digits(codes_bs, place)) for place, stage in enumerate(self._stages)]
        return torch.stack(vectors).sum(0)

    def _digits(self, codes_bs: Tensor, place: int) -> Tensor:
        return codes_bs // self.stage_codes**place % self.stage_codes

    def prepare(self, latents_bds: Tensor) -> None:
        """Initialize each stage by k-means over what the stages before it leave of the first training batch."""
        left_bds = latents_bds.detach().float()
        for stage in self._stages:
            stage.prepare(left_bds)
            left_bds = left_bds - stage(left_bds).embeddings_bds

    def update(self, latents_bds: Tensor, codes_bs: Tensor) -> None:
        """Let every stage follow what it was given to write."""
        left_bds = latents_bds.detach().float()
        for place, stage in enumerate(self._stages):
            digits_bs = self._digits(codes_bs, place)
            vectors_bds = stage.lookup(digits_bs)  # before the stage moves, as the later stages saw it
            stage.update(left_bds, digits_bs)
            left_bds = left_bds - vectors_bds
