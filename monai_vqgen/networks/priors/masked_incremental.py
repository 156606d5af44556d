"""Sampling a masked PixelCNN one position at a time, computing every feature once.

Legend of suffixes: b batch, c channels, k number of codes, s spatial axes, w positions of a row.

Each masked convolution keeps its input features of the whole grid. When a row begins, all taps in earlier rows and
planes are applied to the row at once; at a position only the taps in this row are left, one product over a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from monai_vqgen.networks.causal import MaskedConv
from monai_vqgen.networks.priors.base import IncrementalPass, check_prior_inputs
from monai_vqgen.networks.priors.gated.weights import at, matrix

if TYPE_CHECKING:
    from monai_vqgen.networks.priors.masked import MaskedPixelCNN

__all__ = ["MaskedIncremental"]


class _MaskedCache:
    """Input features of one masked convolution, and its sums over the taps before the current row."""

    def __init__(self, conv: MaskedConv, *, grid: Sequence[int], batch_size: int, extra_bcs: Tensor | None) -> None:
        weight = conv.masked_weight().detach()  # (out, in, reach + 1, k, ...)
        reach, dims = conv.reach, len(grid)
        self._reach, self._bias = reach, conv.conv.bias
        own: tuple[Any, ...] = (slice(None), slice(None), reach, *(reach,) * (dims - 2))
        here = weight[own]  # this row's taps: (out, in, k)
        self._window_taps = reach + int(conv.include_center)
        self._here = here[..., : self._window_taps].permute(2, 1, 0).flatten(0, 1).contiguous()
        # Taps before this row: whole planes and rows; this row's own are set to zero, or in 2D cropped.
        before = weight.clone()
        before[own] = 0
        self._planes = reach if dims == 2 else reach + 1
        self._before = before[:, :, : self._planes].contiguous()
        margins = [grid[0] + reach, *(n + 2 * reach for n in grid[1:])]
        self._features = weight.new_zeros(batch_size, *margins, weight.shape[1])
        self._extra = None if extra_bcs is None else extra_bcs.movedim(1, -1)

    def begin_row(self, index: Sequence[int]) -> None:
        """Apply the taps before the row at `index`."""
        reach = self._reach
        ranges = [slice(index[0], index[0] + self._planes), *(slice(i, i + 2 * reach + 1) for i in index[1:])]
        region = at(self._features, slice(None), *ranges).movedim(-1, 1)
        convolve = F.conv2d if region.ndim == 4 else F.conv3d
        sums_bwc = convolve(region, self._before, self._bias).flatten(2).transpose(1, 2).contiguous()
        if self._extra is not None:
            sums_bwc += at(self._extra, slice(None), *index)
        self._sums_bwc = sums_bwc
        self._row_features = at(self._features, slice(None), *(i + reach for i in index))

    def write(self, features_bc: Tensor, x: int) -> None:
        """Set the input features at column `x` of the current row."""
        self._row_features[:, self._reach + x] = features_bc

    def output(self, x: int) -> Tensor:
        """The convolution's output `(b, c)` at column `x`."""
        window = self._row_features[:, x : x + self._window_taps].flatten(1)
        return torch.addmm(self._sums_bwc[:, x], window, self._here)


class MaskedIncremental(IncrementalPass):
    """The incremental pass of a `MaskedPixelCNN`; logits equal the full forward's to float precision.

    Args:
        prior: the network; dropout is off whatever its mode, and later changes of its weights have no effect.
        grid: sizes of the spatial axes.
        batch_size: number of grids.
        coarser: grids of the coarser levels, coarsest first.
        condition: float `(batch_size, f)` or None.
    """

    @torch.inference_mode()
    def __init__(
        self,
        prior: MaskedPixelCNN,
        grid: Sequence[int],
        *,
        batch_size: int,
        coarser: Sequence[Tensor] = (),
        condition: Tensor | None = None,
    ) -> None:
        from monai_vqgen.networks.priors.masked import context_terms

        blank = torch.zeros(batch_size, *grid, dtype=torch.long, device=prior.embedding.weight.device)
        check_prior_inputs(prior, blank, coarser=coarser, condition=condition)
        self._rows, self._row = list(product(*(range(n) for n in grid[:-1]))), grid[-1]
        self._table = prior.embedding.weight.detach()
        self._input = _MaskedCache(prior.input, grid=grid, batch_size=batch_size, extra_bcs=None)
        extras = context_terms(prior, grid=grid, coarser=coarser, condition=condition)
        blocks: Any = prior.blocks
        self._blocks = [
            (
                _linear(block.reduce),
                _MaskedCache(block.masked, grid=grid, batch_size=batch_size, extra_bcs=extra),
                _linear(block.expand),
            )
            for block, extra in zip(blocks, extras, strict=True)
        ]
        self._layers = [_linear(layer) for layer in prior.output_layers]
        self._head = _linear(prior.head)
        self._position = 0
        self._features_bc: Tensor | None = None

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """Logits `(b, k)` of the next position."""
        x_bc = self._run_position()
        for weight, bias in self._layers:
            x_bc = torch.addmm(bias, x_bc, weight).relu_()
        weight, bias = self._head
        return torch.addmm(bias, x_bc, weight)

    @torch.inference_mode()
    def push(self, codes_b: Tensor) -> None:
        """Fix the codes at this position and move on."""
        self._run_position()
        self._input.write(self._table[codes_b], self._position % self._row)
        self._position += 1
        self._features_bc = None

    def _run_position(self) -> Tensor:
        if self._features_bc is not None:
            return self._features_bc
        row, x = divmod(self._position, self._row)
        if x == 0:
            for cache in (self._input, *(cache for _, cache, _ in self._blocks)):
                cache.begin_row(self._rows[row])
        x_bc = self._input.output(x).relu_()
        for (reduce, reduce_bias), cache, (expand, expand_bias) in self._blocks:
            cache.write(torch.addmm(reduce_bias, x_bc, reduce).relu_(), x)
            x_bc = torch.addmm(expand_bias, cache.output(x).relu_(), expand).relu_().add_(x_bc)
        self._features_bc = x_bc
        return x_bc


def _linear(layer: Any) -> tuple[Tensor, Tensor]:
    return matrix(layer), layer.bias.detach()
