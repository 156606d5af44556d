"""The plain masked PixelCNN prior.

Legend of suffixes: b batch, c channels, k number of codes, s spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from monai_vqgen.errors import InputError
from monai_vqgen.networks.causal import MaskedConv, pointwise, spread
from monai_vqgen.networks.priors.base import IncrementalPass, Prior, check_prior_inputs
from monai_vqgen.networks.priors.context import ContextNetwork

__all__ = ["MaskedPixelCNN"]


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

    Example:
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
        for name, size in {"kernel_size": kernel_size, "first_kernel_size": first_kernel_size}.items():
            if size < 3 or size % 2 == 0:
                raise InputError(f"{name} is {size}; give an odd number of at least 3.")
        use_context = bool(self.coarser_codes or condition_dim)
        self.channels = channels
        self.embedding = nn.Embedding(num_codes, channels)
        self.input = MaskedConv(
            spatial_dims, channels, out_channels=channels, kernel_size=first_kernel_size, include_center=False
        )
        self.context = (
            ContextNetwork(spatial_dims, channels, coarser_codes=self.coarser_codes, condition_dim=condition_dim)
            if use_context
            else None
        )
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

    def incremental(
        self, grid: Sequence[int], *, batch_size: int, coarser: Sequence[Tensor] = (), condition: Tensor | None = None
    ) -> IncrementalPass:
        """The same logits one position at a time, each feature computed once; see `MaskedIncremental`."""
        from monai_vqgen.networks.priors.masked_incremental import MaskedIncremental

        return MaskedIncremental(self, grid, batch_size=batch_size, coarser=coarser, condition=condition)


def context_terms(
    prior: MaskedPixelCNN, *, grid: Sequence[int], coarser: Sequence[Tensor], condition: Tensor | None
) -> list[Tensor | None]:
    """What the context adds in each block, `(b, c, *grid)`; None without context."""
    if prior.context is None:
        return [None] * len(prior.blocks)
    context_bcs = prior.context(coarser, condition)
    return [spread(block.context(context_bcs), grid) for block in prior.blocks]  # type: ignore[operator]
