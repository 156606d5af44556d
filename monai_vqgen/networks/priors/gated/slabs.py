"""Incremental features of the stacks that work on whole slabs: rows in 2D; planes, then rows in 3D.

Legend of suffixes: b batch, c channels, s the axes of a slab, m = b x positions of a slab.

When a slab of codes is complete, the stack's features of the *next* slab can be computed for all its positions at
once, as large matrix products:

    codes of the last slabs -> strict convolution, summed from a table (+ coordinates) -> layer 0 ... layer L-1
    each layer: columns of this and the last slabs @ taps -> gate -> residual, and a link to the next stack's gate
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from monai_vqgen.networks.priors.gated.weights import GatedWeights, StackWeights, at


def patches(padded_bsc: Tensor, *, kernel_size: int) -> Tensor:
    """A view `(b, *positions, *taps, c)` of the neighborhoods in a slab with margins of `kernel_size // 2`."""
    b, *sizes, c = padded_bsc.shape
    strides = padded_bsc.stride()
    return padded_bsc.as_strided(
        (b, *(n - kernel_size + 1 for n in sizes), *[kernel_size] * len(sizes), c),
        (strides[0], *strides[1:-1], *strides[1:-1], strides[-1]),
    )


class ContextRows:
    """The context's part of every gate of one stack, slab by slab, projected once for each coarse slab.

    The context map is channels last, at its own coarse size; `weights` are one `(c, 2c)` matrix a layer; `lead` leading
    axes are fixed within a slab.
    """

    def __init__(self, context_bsc: Tensor, weights: Sequence[Tensor], *, grid: Sequence[int], lead: int) -> None:
        coarse = context_bsc.shape[1:-1]
        self._context_bsc, self._weights = context_bsc, weights
        self._ratios = [math.ceil(n / m) for n, m in zip(grid, coarse, strict=True)]
        self._lead = lead
        self._key: tuple[int, ...] | None = None
        self._projected: list[Tensor] = []
        flat = torch.zeros(1, dtype=torch.long)
        for n, m, ratio in zip(grid[lead:], coarse[lead:], self._ratios[lead:], strict=True):
            flat = (flat[:, None] * m + torch.arange(n) // ratio).flatten()
        self._index = flat.to(context_bsc.device)

    def gates(self, index: Sequence[int]) -> list[Tensor]:
        """What the context adds to each layer's gate in the slab at `index`: `(b, positions, 2c)` a layer."""
        key = tuple(i // ratio for i, ratio in zip(index, self._ratios[: self._lead], strict=True))
        if key != self._key:
            slab = at(self._context_bsc, slice(None), *key).flatten(1, -2)
            self._projected = [(slab @ weight).index_select(1, self._index) for weight in self._weights]
            self._key = key
        return self._projected


class SlabStack:
    """One stack but the last of a gated PixelCNN, advanced one slab at a time; takes the context map channels last."""

    def __init__(
        self, weights: GatedWeights, axis: int, *, grid: Sequence[int], batch_size: int, context_bsc: Tensor | None
    ) -> None:
        self._axis, self._slab = axis, tuple(grid[axis + 1 :])
        self._input, self._outside = weights.inputs[axis], weights.num_codes
        kernel = self._input.kernel.flatten(2, 2 + axis).movedim(2, -1).flatten(2)  # (c, c, k... taps)
        # What each code at each tap adds to the convolution; a code outside of the grid adds nothing.
        terms_ktc = torch.einsum("kc,oct->kto", weights.embedding_kc, kernel)
        self._terms = torch.cat([terms_ktc, torch.zeros_like(terms_ktc[:1])]).flatten(0, 1)
        self._taps = torch.arange(kernel.shape[2], device=kernel.device)
        self._position_sc = self._input.position_sc + self._input.bias
        self._weights = weights.stacks[axis]
        self.biases = [layer.bias for layer in self._weights]
        self._context = None
        if context_bsc is not None:
            contexts = [layer.context for layer in self._weights if layer.context is not None]
            self._context = ContextRows(context_bsc, contexts, grid=grid, lead=axis + 1)
        self._allocate(weights, batch_size=batch_size, like=self._position_sc)

    def _allocate(self, weights: GatedWeights, *, batch_size: int, like: Tensor) -> None:
        b, c, reach, count = batch_size, weights.channels, weights.kernel_size // 2, len(self._weights)
        padded = [n + 2 * reach for n in self._slab]
        taps = len(self._weights[0].taps)
        columns = math.prod([weights.kernel_size] * len(self._slab)) * c
        positions = math.prod(self._slab)
        # One padded slab serves all layers: a layer's input is read into columns before the next layer's overwrites it.
        self._padded_bsc = like.new_zeros(b, *padded, c)
        inner = tuple(slice(reach, reach + n) for n in self._slab)
        self._interior_bsc = at(self._padded_bsc, slice(None), *inner)
        # One row without its margins is a matrix that a product can be added to in place.
        self._interior_mc = self._interior_bsc.flatten(0, -2) if self._interior_bsc.is_contiguous() else None
        self._patches = patches(self._padded_bsc, kernel_size=weights.kernel_size)
        self._columns = [[like.new_zeros(b * positions, columns) for _ in range(taps)] for _ in range(count)]
        self._pre_mc = like.new_empty(b * positions, 2 * c)
        self._gated_mc = like.new_empty(b * positions, c)
        self._residual_mc = like.new_empty(b * positions, c)
        self.links = [like.new_empty(b, *self._slab, 2 * c) for _ in range(count)]

    def reset(self) -> None:
        """Forget all slabs: the next one is the first of its axis."""
        for columns in self._columns:
            for slab in columns:
                slab.zero_()

    def advance(
        self, codes_bs: Tensor, index: Sequence[int], *, links: Sequence[Tensor] | None, biases: Sequence[Tensor]
    ) -> None:
        """Compute the slab at `index` and fill `self.links` with what it adds to the next stack's gates.

        Args:
            codes_bs: codes of the slabs before this one, `(b, 1..., input taps, *slab)`, K outside of the grid.
            index: coordinates of the slab along the axes up to this stack's own.
            links: what the previous stack adds to each layer's gate here, `(b, *slab, 2c)`; None for the first.
            biases: the next stack's biases, which start its links.
        """
        margin = (self._input.reach,) * (2 * len(self._slab))
        padded_bst = F.pad(codes_bs.flatten(1, self._axis + 1), margin, value=self._outside).movedim(1, -1)
        near = patches(padded_bst, kernel_size=2 * self._input.reach + 1).reshape(-1, len(self._taps))
        start_mc = F.embedding_bag(near * len(self._taps) + self._taps, self._terms, mode="sum")
        torch.add(start_mc.view(self._interior_bsc.shape), self._position_sc[tuple(index)], out=self._interior_bsc)
        context = None if self._context is None else self._context.gates(index)
        for layer, weights in enumerate(self._weights):
            source = weights.bias if links is None else links[layer]
            self._layer(layer, weights, source=source, context=None if context is None else context[layer])
            assert weights.link is not None, "every stack but the last has a link"
            torch.addmm(biases[layer], self._gated_mc, weights.link, out=self.links[layer].flatten(0, -2))

    def _layer(self, layer: int, weights: StackWeights, *, source: Tensor, context: Tensor | None) -> None:
        columns = self._columns[layer]
        columns.append(columns.pop(0))  # the oldest slab's memory becomes this one's
        columns[-1].view(self._patches.shape).copy_(self._patches)
        pre_mc, c = self._pre_mc, self._gated_mc.shape[1]
        rest_mc = source if source.ndim == 1 else source.flatten(0, -2)
        if context is not None:
            rest_mc = context.flatten(0, 1).add(rest_mc)
        for slab, tap in zip(columns, weights.taps, strict=True):
            torch.addmm(rest_mc, slab, tap, out=pre_mc)
            rest_mc = pre_mc
        pre_mc.tanh_()
        torch.addcmul(pre_mc[:, :c], pre_mc[:, :c], pre_mc[:, c:], out=self._gated_mc)
        if self._interior_mc is not None:
            self._interior_mc.addmm_(self._gated_mc, weights.residual)
        else:
            torch.mm(self._gated_mc, weights.residual, out=self._residual_mc)
            self._interior_bsc.add_(self._residual_mc.view(self._interior_bsc.shape))
