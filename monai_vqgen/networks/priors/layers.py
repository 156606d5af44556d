"""Layers of the priors: causal ones in raster order, and the network of what a prior knows beside its own codes.

Legend of suffixes: b batch, c channels, s spatial axes (2 or 3), n raster positions, p position features.

Raster order reads the last axis fastest, as one reads a page (and then the next page). "Causal" means that the
features at a position depend on codes at earlier positions only. A prior keeps one *stack* of features an axis:

    stack 0 (3D only: depth)   knows the planes before this one
    vertical stack             knows the rows before this one (and all that depth knows)
    horizontal stack           knows this row's positions before this one (and all that vertical knows)

so that no position of the past is missed (no blind spot), and each kernel is cropped to the taps it may use instead
of being masked: nothing is multiplied by zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_vqgen.errors import InputError

COORDINATE_OCTAVES = 7  # sine and cosine pairs an axis: the finest has period 2 positions on an axis of 64


def coordinate_features(grid: Sequence[int], *, like: Tensor | None = None) -> Tensor:
    """Sines and cosines of the relative coordinates of each position, for a grid of any size.

    They are float `(p, *grid)` with `p = 2 * COORDINATE_OCTAVES * len(grid)`, values in [-1, 1], of the type and on the
    device of `like`; by default float32 on the CPU.
    """
    features = []
    device = None if like is None or like.device.type == "mps" else like.device  # Apple's GPUs have no float64
    octaves = math.pi * 2.0 ** torch.arange(COORDINATE_OCTAVES, dtype=torch.float64, device=device)
    for axis, size in enumerate(grid):
        coordinate = (torch.arange(size, dtype=torch.float64, device=device) + 0.5) / size
        phase = octaves[:, None] * coordinate
        shape = [-1] + [size if a == axis else 1 for a in range(len(grid))]
        features.append(torch.cat([phase.sin(), phase.cos()]).view(shape).expand(-1, *grid))
    result = torch.cat(features).float()
    return result if like is None else result.to(like)


def check_kernels(**sizes: int) -> None:
    """Raise InputError for a kernel size that is even or below 3."""
    for name, size in sizes.items():
        if size < 3 or size % 2 == 0:
            raise InputError(f"{name} is {size}; give an odd number of at least 3")


class _Pointwise2d(nn.Conv2d):
    def forward(self, features_bcs: Tensor) -> Tensor:
        return _pointwise(self, features_bcs, super().forward)


class _Pointwise3d(nn.Conv3d):
    def forward(self, features_bcs: Tensor) -> Tensor:
        return _pointwise(self, features_bcs, super().forward)


def _pointwise(conv: Any, features_bcs: Tensor, convolve: Callable[[Tensor], Tensor]) -> Tensor:
    if torch.is_grad_enabled() and features_bcs.device.type == "cpu":
        return F.linear(features_bcs.movedim(1, -1), conv.weight.flatten(1), conv.bias).movedim(-1, 1)
    return convolve(features_bcs)


def pointwise(spatial_dims: int, in_channels: int, out_channels: int, *, bias: bool = True) -> nn.Module:
    """A convolution with kernel size one: the same linear map at every position.

    On a CPU, where gradients are recorded, it is computed as a matrix product over channels-last features: PyTorch
    leaves the gradient of so small a convolution to a slow path.
    """
    conv = _Pointwise2d if spatial_dims == 2 else _Pointwise3d
    return conv(in_channels, out_channels, 1, bias=bias)


def tanh_gate(pre_bcs: Tensor) -> Tensor:
    """The gate of van den Oord et al. 2016, equation 2: tanh of one half of the channels, sigmoid of the other."""
    value, gate = pre_bcs.chunk(2, dim=1)
    return torch.tanh(value) * torch.sigmoid(gate)


def spread(features_bcs: Tensor, grid: Sequence[int]) -> Tensor:
    """Repeat coarse features over a finer grid: position i reads i // ratio, ratio = ceil(fine / coarse)."""
    coarse = features_bcs.shape[2:]
    if tuple(coarse) == tuple(grid):
        return features_bcs
    repeated = [m * math.ceil(n / m) for n, m in zip(grid, coarse, strict=True)]
    spread_bcs = F.interpolate(features_bcs, size=repeated, mode="nearest-exact")
    for axis, size in enumerate(grid):
        spread_bcs = spread_bcs.narrow(axis + 2, 0, size)
    return spread_bcs


class CroppedConv(nn.Module):
    """The convolution of one stack: only the taps in the past (strict) or in the past and present of its axis.

        kernel 3, vertical stack:     x x x        horizontal:   x x
                                      x x x                        ^ this position
                                        ^ this position

    Along `axis` the kernel reaches `kernel_size // 2` back; along later axes it is full and centered; along earlier
    axes it has one tap. `strict` leaves this position's own slab (row, plane) out. Output and input have one size.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        out_channels: int,
        axis: int,
        kernel_size: int,
        strict: bool = False,
    ) -> None:
        super().__init__()
        reach = kernel_size // 2
        later = spatial_dims - axis - 1
        taps = reach if strict else reach + 1
        conv = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.axis, self.taps, self.strict, self.reach = axis, taps, strict, reach
        kernel = (1,) * axis + (taps,) + (kernel_size,) * later
        padding = (0,) * axis + (reach,) + (reach,) * later
        self.conv = conv(in_channels, out_channels, kernel, padding=padding)  # type: ignore[arg-type]

    def forward(self, features_bcs: Tensor) -> Tensor:
        """Convolve; the rows that the symmetric padding adds at the end are cropped."""
        return self.conv(features_bcs).narrow(self.axis + 2, 0, features_bcs.shape[self.axis + 2])

    def last_of(self, window_bcs: Tensor) -> Tensor:
        """Of the first stack's convolution, one slab of `forward`, from the `taps` slabs that it looks at."""
        convolve: Any = F.conv2d if window_bcs.ndim == 4 else F.conv3d
        padding: Any = (0, *self.conv.padding[1:])
        result: Tensor = convolve(window_bcs, self.conv.weight, self.conv.bias, padding=padding)
        return result


class GatedLayer(nn.Module):
    """One gated layer over all stacks (van den Oord et al. 2016, figure 2), here with a residual in every stack.

        vertical:    v -> conv -> (+) -> gate -+-> 1x1 -> (+ v) -> v
                                   ^           |
                        context ---+           +-> 1x1 --+
                                   |                     v
        horizontal:  h -> conv -> (+) <----------------- +
                                  gate ---> 1x1 -> (+ h) -> h

    There are as many stacks as spatial dimensions, each of `channels`; a context map is added at every gate.
    """

    def __init__(self, spatial_dims: int, channels: int, *, kernel_size: int, use_context: bool, dropout: float):
        super().__init__()
        self.channels = channels
        self.convs = nn.ModuleList(
            CroppedConv(spatial_dims, channels, out_channels=2 * channels, axis=axis, kernel_size=kernel_size)
            for axis in range(spatial_dims)
        )
        # Each stack but the last also feeds the next one's gate: its residual and that link are one product.
        self.outputs = nn.ModuleList(
            pointwise(spatial_dims, channels, channels if axis == spatial_dims - 1 else 3 * channels, bias=False)
            for axis in range(spatial_dims)
        )
        width = 2 * channels * spatial_dims
        self.context = pointwise(spatial_dims, channels, width, bias=False) if use_context else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, stacks: Sequence[Tensor], context_bcs: Tensor | None, window_bcs: Tensor | None = None
    ) -> list[Tensor]:
        """Map the stacks' features to the next layer's, each `(b, channels, *grid)`.

        Where these are of one slab along the first axis, the first stack's convolution reads `window_bcs`, the slabs
        up to this one.
        """
        biases: Sequence[Tensor | None] = [None] * len(stacks)
        if self.context is not None and context_bcs is not None:
            # A pointwise map commutes with repeating, so it is applied at the context's own, coarser size.
            projected = self.context(context_bcs)
            if projected[0, 0].numel() > 1:  # a condition vector alone has one position, and broadcasts
                projected = spread(projected, stacks[0].shape[2:])
            biases = projected.chunk(len(stacks), dim=1)
        link: Tensor | None = None
        results = []
        convs: Any = self.convs
        for stack_bcs, conv, output, bias in zip(stacks, convs, self.outputs, biases, strict=True):
            pre = conv(stack_bcs) if window_bcs is None or link is not None else conv.last_of(window_bcs)
            pre = pre if link is None else pre + link
            pre = pre if bias is None else pre + bias
            out = output(self.dropout(tanh_gate(pre)))
            results.append(stack_bcs + out[:, : self.channels])
            link = out[:, self.channels :]
        return results


class CausalAttention(nn.Module):
    """Self-attention over all positions up to this one, with the positions' coordinates in queries, keys and values.

        h -> layer norm -> linear (+ linear of coordinates) -> q, k, v -> softmax(q k' / sqrt(d)) v -> linear -> (+ h)

    The features at a position already exclude its own code, so a position may attend to itself.
    `width` counts the channels of queries, keys and values over all heads.
    """

    def __init__(self, channels: int, *, num_heads: int, width: int, num_coordinates: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.width = num_heads, width
        self.qkv = nn.Linear(channels, 3 * width, bias=False)
        self.position = nn.Linear(num_coordinates, 3 * width)
        self.output = nn.Linear(width, channels, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features_bcs: Tensor, coordinates_ps: Tensor) -> Tensor:
        """Attend; both the result and `features_bcs` are `(b, channels, *grid)`."""
        heads = self.heads(features_bcs, coordinates_ps)
        return self.after(features_bcs, F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True))

    def heads(self, features_bcs: Tensor, coordinates_ps: Tensor) -> Tensor:
        """Queries, keys and values, `(3, b, heads, n, width / heads)`."""
        b, c = features_bcs.shape[:2]
        x_bnc = F.layer_norm(features_bcs.flatten(2).transpose(1, 2), (c,))
        qkv = self.qkv(x_bnc) + self.position(coordinates_ps.flatten(1).t())
        return qkv.view(b, -1, 3, self.num_heads, self.width // self.num_heads).permute(2, 0, 3, 1, 4)

    def after(self, features_bcs: Tensor, attended: Tensor) -> Tensor:
        """The features, and what the heads attended to, `(b, heads, n, width / heads)`."""
        out_bnc = self.output(attended.transpose(1, 2).flatten(2))
        return features_bcs + self.dropout(out_bnc).transpose(1, 2).unflatten(2, features_bcs.shape[2:])


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
    """

    def __init__(
        self, spatial_dims: int, channels: int, *, coarser_codes: Sequence[int], condition_dim: int, num_blocks: int = 2
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
        assert context_bcs is not None, "a ContextNetwork without coarser levels and condition is never built"
        layout = torch.channels_last if context_bcs.ndim == 4 else torch.channels_last_3d
        return context_bcs if torch.is_grad_enabled() else context_bcs.contiguous(memory_format=layout)
