"""The plain masked PixelCNN prior, and its pass one position at a time.

Legend of suffixes: b batch, c channels, k number of codes, s spatial axes, w positions of a row.

Incremental: each masked convolution keeps its input features of the whole grid. When a row begins, all taps in earlier
rows and planes are applied to the row at once; at a position only the taps in this row are left, one product over a
window.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_vqgen.networks.priors.base import CodeWeights, IncrementalPass, Prior, check_prior_inputs
from monai_vqgen.networks.priors.gated.weights import at, linear
from monai_vqgen.networks.priors.layers import check_kernels, pointwise, spread


class MaskedConv(nn.Module):
    """A convolution over the past in raster order, with the last taps masked (van den Oord et al. 2016b, mask A, B).

        mask A, kernel 3:   x x x        mask B:   x x x
                            x . .                  x x .

    Stacking these leaves a blind spot to the right of the rows above; `CroppedConv` has none. The rows (3D: planes)
    after this one are cropped, the rest of the future is masked. `include_center` makes mask B.
    """

    mask: Tensor

    def __init__(
        self, spatial_dims: int, in_channels: int, *, out_channels: int, kernel_size: int, include_center: bool
    ) -> None:
        super().__init__()
        reach = kernel_size // 2
        conv = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        kernel = (reach + 1,) + (kernel_size,) * (spatial_dims - 1)
        self.reach, self.include_center = reach, include_center
        self.conv = conv(in_channels, out_channels, kernel, padding=reach)  # type: ignore[arg-type]
        slab = kernel_size ** (spatial_dims - 1)
        center = reach * slab + slab // 2
        mask = torch.arange((reach + 1) * slab) < center + int(include_center)
        self.register_buffer("mask", mask.view(kernel).float(), persistent=False)

    def forward(self, features_bcs: Tensor) -> Tensor:
        """Convolve; the output has the size of the input."""
        convolve = F.conv2d if features_bcs.ndim == 4 else F.conv3d
        out = convolve(features_bcs, self.masked_weight(), self.conv.bias, padding=self.reach)
        return out.narrow(2, 0, features_bcs.shape[2])

    def masked_weight(self) -> Tensor:
        """The kernel as applied: `(out, in, reach + 1, kernel_size, ...)`."""
        return self.conv.weight * self.mask


class MaskedBlock(nn.Module):
    """A residual block: `x + relu(1x1 relu(mask-B relu(1x1 x) + context))`, with half the channels in the middle."""

    def __init__(self, spatial_dims: int, channels: int, *, kernel_size: int, use_context: bool, dropout: float):
        super().__init__()
        half = max(channels // 2, 1)
        self.reduce = pointwise(spatial_dims, channels, channels)
        self.masked = MaskedConv(
            spatial_dims, channels, out_channels=half, kernel_size=kernel_size, include_center=True
        )
        self.context = pointwise(spatial_dims, channels, half, bias=False) if use_context else None
        self.expand = pointwise(spatial_dims, half, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_bcs: Tensor, context_bcs: Tensor | None) -> Tensor:
        """Same shape out as in."""
        y_bcs = self.masked(F.relu(self.reduce(x_bcs)))
        if self.context is not None and context_bcs is not None:
            y_bcs = y_bcs + spread(self.context(context_bcs), x_bcs.shape[2:])
        return x_bcs + self.dropout(F.relu(self.expand(F.relu(y_bcs))))


class MaskedPixelCNN(Prior):
    """Plain PixelCNN: one mask-A convolution, residual mask-B blocks, pointwise layers (defaults: `system B`).

        codes -> embedding -> mask-A 7x7 -> num_blocks x [1x1, mask-B 3x3, 1x1, +] -> 2 x [1x1, relu] -> 1x1 -> logits

    van den Oord et al., "Pixel Recurrent Neural Networks", 2016, in the form of Keras' example "Vector-Quantized
    Variational Autoencoders". It is a baseline: it has a blind spot, and its context reaches
    `first_kernel_size // 2 + num_blocks * (kernel_size // 2)` positions; `GatedPixelCNN` has neither limit.

    Args:
        num_codes: codebook size K.
        spatial_dims: 2 or 3.
        channels: channels of the features.
        num_blocks: residual blocks.
        kernel_size: odd size of the blocks' kernels.
        first_kernel_size: odd size of the first kernel.
        num_output_layers: pointwise layers before the logits.
        coarser_codes: codebook sizes of the coarser levels, coarsest first.
        condition_dim: length of the condition vector, 0 for none.
        dropout: probability with which a block's feature is dropped in training.

    Shapes:
        codes `(b, *grid)` integers in [0, K) -> logits `(b, K, *grid)`.

    Raises:
        InputError: arguments that cannot work, or inputs that do not fit the prior.

    Examples:
        >>> import torch
        >>> MaskedPixelCNN(8, channels=16, num_blocks=2)(torch.randint(8, (3, 5, 6))).shape
        torch.Size([3, 8, 5, 6])
    """

    def __init__(
        self,
        num_codes: int,
        spatial_dims: int = 2,
        *,
        channels: int = 128,
        num_blocks: int = 7,
        kernel_size: int = 3,
        first_kernel_size: int = 7,
        num_output_layers: int = 2,
        coarser_codes: Sequence[int] = (),
        condition_dim: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_codes, spatial_dims, coarser_codes=coarser_codes, condition_dim=condition_dim)
        check_kernels(kernel_size=kernel_size, first_kernel_size=first_kernel_size)
        use_context = bool(self.coarser_codes or condition_dim)
        self.channels = channels
        self.embedding = nn.Embedding(num_codes, channels)
        self.input = MaskedConv(
            spatial_dims, channels, out_channels=channels, kernel_size=first_kernel_size, include_center=False
        )
        self.context = self._context_network(channels)
        self.blocks = nn.ModuleList(
            MaskedBlock(spatial_dims, channels, kernel_size=kernel_size, use_context=use_context, dropout=dropout)
            for _ in range(num_blocks)
        )
        self.output_layers = nn.ModuleList(
            pointwise(spatial_dims, channels, channels) for _ in range(num_output_layers)
        )
        self.head = pointwise(spatial_dims, channels, num_codes)

    def forward(self, codes_bs: Tensor, coarser: Sequence[Tensor] = (), condition: Tensor | None = None) -> Tensor:
        """Teacher-forced logits `(b, k, *grid)`; see the class."""
        check_prior_inputs(self, codes_bs, coarser=coarser, condition=condition)
        context_bcs = None if self.context is None else self.context(coarser, condition)
        x_bcs = F.relu(self.input(self.embedding(codes_bs).movedim(-1, 1)))
        for block in self.blocks:
            x_bcs = block(x_bcs, context_bcs)
        for layer in self.output_layers:
            x_bcs = F.relu(layer(x_bcs))
        return self.head(x_bcs)

    def code_weights(self) -> CodeWeights:
        """Embeddings and logits; see `start_from_codebooks`."""
        coarser = () if self.context is None else tuple(self.context.embeddings)
        return CodeWeights(self.embedding, coarser, self.head)

    def incremental(
        self, grid: Sequence[int], *, batch_size: int, coarser: Sequence[Tensor] = (), condition: Tensor | None = None
    ) -> IncrementalPass:
        """The same logits one position at a time, each feature computed once; see `MaskedIncremental`."""
        return MaskedIncremental(self, grid, batch_size=batch_size, coarser=coarser, condition=condition)


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

    Dropout is off whatever the prior's mode, and later changes of its weights have no effect.
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
        blank = torch.zeros(batch_size, *grid, dtype=torch.long, device=prior.embedding.weight.device)
        check_prior_inputs(prior, blank, coarser=coarser, condition=condition)
        self._rows, self._row = list(product(*(range(n) for n in grid[:-1]))), grid[-1]
        self._table = prior.embedding.weight.detach()
        self._input = _MaskedCache(prior.input, grid=grid, batch_size=batch_size, extra_bcs=None)
        blocks: Any = prior.blocks
        extras: list[Tensor | None] = [None] * len(blocks)  # what the context adds in each block, `(b, c, *grid)`
        if prior.context is not None:
            context_bcs = prior.context(coarser, condition)
            extras = [spread(block.context(context_bcs), grid) for block in blocks]
        self._blocks = [
            (
                linear(block.reduce),
                _MaskedCache(block.masked, grid=grid, batch_size=batch_size, extra_bcs=extra),
                linear(block.expand),
            )
            for block, extra in zip(blocks, extras, strict=True)
        ]
        self._layers = [linear(layer) for layer in prior.output_layers]
        self._head = linear(prior.head)
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
