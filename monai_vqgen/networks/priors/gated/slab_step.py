"""A gated PixelCNN one slab of its grid at a time, as a function of tensors alone, of which graphs are exported.

Legend of suffixes: b batch, c channels, d channels of a head, h heads, k number of codes, l layers, n raster positions,
p position features, r rows (slabs) that a kernel looks back, s spatial axes, t a slab's axes, with one index along the
first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_vqgen.networks.priors.gated.network import GatedPixelCNN
from monai_vqgen.networks.priors.layers import CausalAttention

__all__ = ["GatedSlabStep"]


class GatedSlabStep(nn.Module):
    """The logits of one slab, a row of a grid of two axes, from the codes so far and what was kept of earlier slabs.

    ::

        index, codes, coarser codes, condition ─┐
        features of the slabs just before ──────┼─> logits of the slab
        keys and values of all slabs before ────┘   features, keys and values for the next slab

    Each call computes the whole slab, and the logits of a position depend on the codes before it alone. So a caller
    draws a slab's codes one by one, with the caches that the slab began with, and hands those of the last call to the
    next slab: a position costs a slab rather than a grid. `GatedPixelCNN.incremental` computes each feature once, but
    writes into memory, which no exported graph does.

    Args:
        prior: whose weights are used.
        grid: sizes of the axes of the codes.

    Attributes:
        caches: the shape of each cache by name, without the batch; zeros before the first slab.

    Shapes:
        index `(1,)`, the slab's along the first axis; codes `(b, *grid)`, those not drawn yet anything in range; then
        the coarser grids, the condition `(b, f)` where the prior takes one, and the caches `(b, ...)` -> logits
        `(b, k, 1, *slab)`, and the caches.

    Examples:
        >>> prior = GatedPixelCNN(8, channels=8, num_layers=2, attention_every=2).eval()
        >>> step, codes = GatedSlabStep(prior, (3, 4)), torch.zeros(5, 3, 4, dtype=torch.long)
        >>> caches = [torch.zeros(5, *shape) for shape in step.caches.values()]
        >>> logits, *caches = step(torch.tensor([0]), codes, *caches)
        >>> logits.shape
        torch.Size([5, 8, 1, 4])
    """

    def __init__(self, prior: GatedPixelCNN, grid: Sequence[int]) -> None:
        super().__init__()
        self.prior, self.grid = prior, tuple(grid)
        slab = self.grid[1:]
        self.caches: dict[str, tuple[int, ...]] = {
            "features": (len(prior.layers), prior.channels, prior.kernel_size // 2, *slab)
        }
        if prior.attentions:
            first: Any = next(iter(prior.attentions.values()))
            size = first.width // first.num_heads
            self.caches["attended"] = (len(prior.attentions), 2, first.num_heads, math.prod(grid), size)

    def forward(self, index: Tensor, codes_bs: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        prior, levels = self.prior, len(self.prior.coarser_codes)
        coordinates_pt = prior.coordinates(self.grid).index_select(1, index)
        context_bct = self._context(index, given[:levels], given[levels] if prior.condition_dim else None)
        features_blcrt, *rest = given[len(given) - len(self.caches) :]
        attended = list(rest[0].unbind(1)) if rest else []  # (b, 2, h, n, d) each

        stacks = self._inputs(index, codes_bs, coordinates_pt)
        features, kept = [], list[Tensor]()
        for number, layer in enumerate(prior.layers):
            window_bct = torch.cat([features_blcrt[:, number], stacks[0]], dim=2)
            features.append(window_bct[:, :, 1:])
            stacks = layer(stacks, context_bct, window_bct)
            if str(number) in prior.attentions:
                attention: Any = prior.attentions[str(number)]
                attend = _attend(attention, stacks[-1], coordinates_pt, index=index, kept=attended[len(kept)])
                stacks[-1] = attend[0]
                kept.append(attend[1])
        features_bct = stacks[-1]
        for block in prior.output_blocks:
            features_bct = block(features_bct)
        caches = [torch.stack(features, dim=1), *([torch.stack(kept, dim=1)] if kept else [])]
        return prior.head(features_bct), *caches

    def _context(self, index: Tensor, coarser: Sequence[Tensor], condition: Tensor | None) -> Tensor | None:
        """The slab of the context map that lies under the slab of codes."""
        if self.prior.context is None:
            return None
        context_bcs: Tensor = self.prior.context(coarser, condition)
        ratio = math.ceil(self.grid[0] / context_bcs.shape[2])
        return context_bcs.index_select(2, index // ratio)

    def _inputs(self, index: Tensor, codes_bs: Tensor, coordinates_pt: Tensor) -> list[Tensor]:
        prior = self.prior
        positions = prior.position(coordinates_pt[None]).chunk(prior.spatial_dims, dim=1)
        convolutions: list[Any] = list(prior.inputs)
        first, *others = convolutions
        before = index + torch.arange(-first.taps, 0, device=index.device)
        known_bct = prior.embedding(codes_bs.index_select(1, before.clamp(min=0))).movedim(-1, 1)
        inside = (before >= 0).to(known_bct.dtype).view(-1, *(1,) * (prior.spatial_dims - 1))
        here_bct = prior.embedding(codes_bs.index_select(1, index)).movedim(-1, 1)
        inputs = [first.last_of(known_bct * inside), *(conv(here_bct) for conv in others)]
        return [conv + position for conv, position in zip(inputs, positions, strict=True)]


def _attend(
    attention: CausalAttention, features_bct: Tensor, coordinates_pt: Tensor, *, index: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """What `CausalAttention` gives for one slab; and the keys and values, with the slab's own in their place."""
    heads = attention.heads(features_bct, coordinates_pt)  # (3, b, h, positions of the slab, d)
    positions, total = heads.shape[3], kept.shape[3]
    place_n = torch.arange(total, device=index.device)
    own = (place_n // positions == index)[:, None]
    kept = torch.where(own, heads[1:].transpose(0, 1).repeat(1, 1, 1, total // positions, 1), kept)
    query = index * positions + torch.arange(positions, device=index.device)
    attended = F.scaled_dot_product_attention(heads[0], kept[:, 0], kept[:, 1], attn_mask=place_n <= query[:, None])
    return attention.after(features_bct, attended), kept
