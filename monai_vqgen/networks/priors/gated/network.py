"""The gated PixelCNN prior.

Legend of suffixes: b batch, c channels, k number of codes, s spatial axes, p position features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_vqgen.errors import InputError
from monai_vqgen.networks.priors.base import CodeWeights, IncrementalPass, Prior, check_prior_inputs
from monai_vqgen.networks.priors.gated.incremental import GatedIncremental
from monai_vqgen.networks.priors.gated.weights import gated_weights
from monai_vqgen.networks.priors.layers import (
    COORDINATE_OCTAVES,
    CausalAttention,
    CroppedConv,
    GatedLayer,
    check_kernels,
    coordinate_features,
    pointwise,
)


class OutputBlock(nn.Module):
    """A pointwise residual block of the output head: `x + W2 relu(W1 relu(x))`."""

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        self.hidden = pointwise(spatial_dims, channels, channels)
        self.output = pointwise(spatial_dims, channels, channels)

    def forward(self, x_bcs: Tensor) -> Tensor:
        """Same shape out as in."""
        return x_bcs + self.output(F.relu(self.hidden(F.relu(x_bcs))))


class GatedPixelCNN(Prior):
    """Gated PixelCNN over a grid of codes, without blind spot, with causal self-attention, in 2D and 3D.

        codes -> embedding -> strict cropped convolutions (+ coordinates) -> one stack of features an axis
              -> num_layers x [gated layer, context added at every gate; self-attention after each attention_every-th]
              -> output blocks -> relu, 1x1, relu, 1x1 -> logits

    van den Oord et al., "Conditional Image Generation with PixelCNN Decoders", 2016 (gate: equation 2, stacks:
    figure 2, conditions: equations 4 and 5); attention as in Chen et al., "PixelSNAIL", 2018. There is no BatchNorm,
    which would leak later positions into the logits. Trains stably with Adam at a learning rate of 1e-3 or below.

    Args:
        num_codes: codebook size K.
        spatial_dims: 2 or 3.
        channels: channels of every stack.
        num_layers: gated layers; each widens the context of the convolutions by `kernel_size // 2`.
        kernel_size: odd size of the layers' uncropped kernels.
        first_kernel_size: odd size of the first, strict convolution's uncropped kernel.
        attention_every: self-attention follows each layer of this ordinal, 0 for none.
        num_heads: heads of the self-attention; must divide `attention_channels`.
        attention_channels: channels of queries, keys and values; by default half of `channels`.
        num_output_blocks: pointwise residual blocks before the logits.
        coarser_codes: codebook sizes of the coarser levels, coarsest first.
        condition_dim: length of the condition vector, 0 for none.
        dropout: probability with which a gated or attended feature is dropped in training.

    Shapes:
        codes `(b, *grid)` integers in [0, K), coarser grids `(b, *their grids)`, condition `(b, condition_dim)` ->
        logits `(b, K, *grid)`. A coarser grid's position i covers i * r ... i * r + r - 1, r = ceil(fine / coarse).

    Raises:
        InputError: arguments that cannot work, or inputs that do not fit the prior.

    Examples:
        >>> import torch
        >>> prior = GatedPixelCNN(8, channels=16, num_layers=2, attention_every=2, coarser_codes=[4])
        >>> prior(torch.randint(8, (3, 7, 6)), [torch.randint(4, (3, 4, 3))]).shape
        torch.Size([3, 8, 7, 6])
    """

    def __init__(
        self,
        num_codes: int,
        spatial_dims: int = 2,
        *,
        channels: int = 128,
        num_layers: int = 15,
        kernel_size: int = 3,
        first_kernel_size: int = 7,
        attention_every: int = 5,
        num_heads: int = 4,
        attention_channels: int | None = None,
        num_output_blocks: int = 0,
        coarser_codes: Sequence[int] = (),
        condition_dim: int = 0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(num_codes, spatial_dims, coarser_codes=coarser_codes, condition_dim=condition_dim)
        width = attention_channels or max(channels // 2, 1)
        check_kernels(kernel_size=kernel_size, first_kernel_size=first_kernel_size)
        counts = {"channels": channels, "num_layers": num_layers, "attention_every": attention_every}
        for name, least in {"channels": 1, "num_layers": 1, "attention_every": 0}.items():
            if counts[name] < least:
                raise InputError(f"{name} is {counts[name]}; give at least {least}")
        if attention_every and (num_heads < 1 or width % num_heads):
            raise InputError(f"num_heads is {num_heads}; give a divisor of attention_channels ({width})")
        self.channels, self.kernel_size, self.attention_every = channels, kernel_size, attention_every
        self._make_inputs(first_kernel_size)
        self.context = self._context_network(channels)
        self._make_layers(num_layers, num_heads=num_heads, width=width, dropout=dropout)
        self.output_blocks = nn.ModuleList(OutputBlock(spatial_dims, channels) for _ in range(num_output_blocks))
        self.head = nn.Sequential(
            nn.ReLU(),
            pointwise(spatial_dims, channels, channels),
            nn.ReLU(),
            pointwise(spatial_dims, channels, num_codes),
        )

    @property
    def num_coordinates(self) -> int:
        """Number of position features."""
        return 2 * COORDINATE_OCTAVES * self.spatial_dims

    def _make_inputs(self, kernel_size: int) -> None:
        """What turns codes and coordinates into the first stacks."""
        dims, channels = self.spatial_dims, self.channels
        self.embedding = nn.Embedding(self.num_codes, channels)
        self.inputs = nn.ModuleList(
            CroppedConv(dims, channels, out_channels=channels, axis=axis, kernel_size=kernel_size, strict=True)
            for axis in range(dims)
        )
        self.position = pointwise(dims, self.num_coordinates, dims * channels, bias=False)

    def _make_layers(self, num_layers: int, *, num_heads: int, width: int, dropout: float) -> None:
        """The gated layers, and the self-attention that follows some of them, by the layer's number."""
        channels, context = self.channels, self.context is not None
        self.layers = nn.ModuleList(
            GatedLayer(self.spatial_dims, channels, kernel_size=self.kernel_size, use_context=context, dropout=dropout)
            for _ in range(num_layers)
        )
        followed = [i for i in range(num_layers) if self.attention_every and (i + 1) % self.attention_every == 0]
        given = {"num_heads": num_heads, "width": width, "num_coordinates": self.num_coordinates}
        self.attentions = nn.ModuleDict(
            {str(index): CausalAttention(channels, **given, dropout=dropout) for index in followed}
        )

    def forward(self, codes_bs: Tensor, coarser: Sequence[Tensor] = (), condition: Tensor | None = None) -> Tensor:
        """Teacher-forced logits `(b, k, *grid)`; see the class."""
        check_prior_inputs(self, codes_bs, coarser=coarser, condition=condition)
        coordinates_ps = self.coordinates(codes_bs.shape[1:])
        context_bcs = None if self.context is None else self.context(coarser, condition)

        embedded_bcs = self.embedding(codes_bs).movedim(-1, 1)
        positions = self.position(coordinates_ps[None]).chunk(self.spatial_dims, dim=1)
        stacks = [conv(embedded_bcs) + position for conv, position in zip(self.inputs, positions, strict=True)]
        for index, layer in enumerate(self.layers):
            stacks = layer(stacks, context_bcs)
            if str(index) in self.attentions:
                stacks[-1] = self.attentions[str(index)](stacks[-1], coordinates_ps)
        features_bcs = stacks[-1]
        for block in self.output_blocks:
            features_bcs = block(features_bcs)
        return self.head(features_bcs)

    def coordinates(self, grid: Sequence[int]) -> Tensor:
        """Position features `(p, *grid)` on the prior's device, in its type."""
        return coordinate_features(grid, like=self.embedding.weight)

    def code_weights(self) -> CodeWeights:
        """Embeddings and logits; see `start_from_codebooks`."""
        coarser = () if self.context is None else tuple(self.context.embeddings)
        return CodeWeights(self.embedding, coarser, self.head[-1])

    def incremental(
        self, grid: Sequence[int], *, batch_size: int, coarser: Sequence[Tensor] = (), condition: Tensor | None = None
    ) -> IncrementalPass:
        """The same logits one position at a time, each feature computed once (`GatedIncremental`).

        Dropout is off whatever the mode, and later changes of the weights have no effect.
        """
        device = self.embedding.weight.device
        with torch.inference_mode():
            blank = torch.zeros(batch_size, *grid, dtype=torch.long, device=device)
            check_prior_inputs(self, blank, coarser=coarser, condition=condition)
            weights = gated_weights(self, self.coordinates(grid))
            context_bsc = None
            if self.context is not None:
                context_bsc = self.context(coarser, condition).movedim(1, -1).contiguous()
        return GatedIncremental(weights, grid, batch_size=batch_size, context_bsc=context_bsc)
