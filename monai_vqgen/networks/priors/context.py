"""What a prior knows beside its own codes: coarser levels and a condition vector, as one map of features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_vqgen.networks.causal import pointwise, spread

__all__ = ["ContextNetwork"]


class _ResidualBlock(nn.Module):
    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        conv = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.conv = conv(channels, channels, 3, padding=1)
        self.output = pointwise(spatial_dims, channels, channels)

    def forward(self, x_bcs: Tensor) -> Tensor:
        return x_bcs + self.output(F.relu(self.conv(F.relu(x_bcs))))


class ContextNetwork(nn.Module):
    """Coarser codes and a condition vector -> features `(b, channels, *grid of the finest coarser level)`.

        coarsest codes -> embedding -> 2 residual blocks -> repeat -> (+) -> 2 residual blocks -> (+) -> context
                                        next coarser codes -> embedding -^        condition -> MLP ^

    Without coarser levels every spatial size of the result is 1. The map depends on none of the prior's own codes, so
    a sampler computes it once.

    Args:
        spatial_dims: 2 or 3.
        channels: channels of the result.
        coarser_codes: codebook sizes of the coarser levels, coarsest first.
        condition_dim: length of the condition vector, 0 for none.
        num_blocks: residual blocks a level.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        *,
        coarser_codes: Sequence[int],
        condition_dim: int,
        num_blocks: int = 2,
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.embeddings = nn.ModuleList(nn.Embedding(num_codes, channels) for num_codes in coarser_codes)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(_ResidualBlock(spatial_dims, channels) for _ in range(num_blocks))) for _ in coarser_codes
        )
        self.vector: nn.Module | None = None
        if condition_dim:
            self.vector = nn.Sequential(
                nn.Linear(condition_dim, channels), nn.SiLU(), nn.Linear(channels, channels), nn.SiLU()
            )

    def forward(self, coarser: Sequence[Tensor], condition: Tensor | None) -> Tensor:
        """The context map; see the class."""
        context_bcs: Tensor | None = None
        for codes_bs, embedding, blocks in zip(coarser, self.embeddings, self.blocks, strict=True):
            embedded_bcs = embedding(codes_bs).movedim(-1, 1)
            if context_bcs is not None:
                embedded_bcs = embedded_bcs + spread(context_bcs, codes_bs.shape[1:])
            context_bcs = blocks(embedded_bcs)
        if self.vector is not None and condition is not None:
            parameter = next(self.vector.parameters())
            vector_bc = self.vector(condition.to(parameter.dtype))
            vector_bcs = vector_bc.view(*vector_bc.shape, *(1,) * self.spatial_dims)
            context_bcs = vector_bcs if context_bcs is None else context_bcs + vector_bcs
        if context_bcs is None:
            raise AssertionError("a ContextNetwork without coarser levels and condition is never built")
        return context_bcs if torch.is_grad_enabled() else context_bcs.contiguous(memory_format=_format(context_bcs))


def _format(x_bcs: Tensor) -> torch.memory_format:
    return torch.channels_last if x_bcs.ndim == 4 else torch.channels_last_3d
