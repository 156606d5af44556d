"""The weights of a gated PixelCNN, rearranged once a call for incremental sampling.

Legend of suffixes: c channels, k number of codes, l later axes' taps, m rows of a matrix product.

All products read `features @ weight`, so weights are stored `(in, out)`. Since sigmoid(x) = (1 + tanh(x / 2)) / 2,

    tanh(a) sigmoid(b) = (t + t u) / 2    with t = tanh(a), u = tanh(b / 2)

and the gate is one tanh over all channels and one fused multiply-add, once everything that adds up to `b` is halved
(`halve_gates`) and the product that reads the gate is halved too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_vqgen.networks.priors.layers import CausalAttention, GatedLayer


class StackWeights(NamedTuple):
    """One layer of one stack."""

    taps: tuple[Tensor, ...]  # oldest slab first, each (later taps * c, 2c); the last stack has one, over all its taps
    bias: Tensor  # (2c,), added at the gate
    residual: Tensor  # (c, c), from the gated features back to the stack
    link: Tensor | None  # (c, 2c), from the gated features to the next stack's gate; None for the last stack
    context: Tensor | None  # (c, 2c), from the context map to the gate; None without context


class AttentionWeights(NamedTuple):
    """One self-attention; the softmax's scale is in the queries.

    Each head has one channel more than in the network: 1 in every query, 0 in every key and value. Where the cache
    holds a large negative number in it, a position that has not been yet has no share in the softmax, and no mask has
    to be added.
    """

    qkv: Tensor  # (c, 3 * heads * (size + 1))
    output: Tensor  # (heads * (size + 1), c)
    position_n: Tensor  # (n, 3 * heads * (size + 1)): what each position adds to queries, keys and values
    num_heads: int


class InputWeights(NamedTuple):
    """The first, strict convolution of one stack."""

    kernel: Tensor  # (c, c, 1..., taps, k...)
    bias: Tensor  # (c,)
    taps: int  # slabs that it looks back
    reach: int  # positions that it looks to either side within a slab
    position_sc: Tensor  # (*grid, c): what each position adds


class GatedWeights(NamedTuple):
    """Everything that an incremental pass over one grid takes from a gated PixelCNN; later changes have no effect."""

    num_codes: int
    channels: int
    kernel_size: int
    embedding_kc: Tensor
    inputs: tuple[InputWeights, ...]  # one an axis
    stacks: tuple[tuple[StackWeights, ...], ...]  # one an axis, of all layers
    attentions: dict[int, AttentionWeights]  # by the layer that each follows
    output_blocks: list[tuple[Tensor, Tensor, Tensor, Tensor]]  # weight and bias of both products of each block
    head: tuple[Tensor, Tensor, Tensor, Tensor]  # weight and bias of the hidden and of the last product


def gated_weights(prior: Any, coordinates_ps: Tensor) -> GatedWeights:
    """The weights of a `GatedPixelCNN`, with the coordinates of a grid applied."""
    positions = prior.position(coordinates_ps[None])[0].movedim(0, -1).chunk(prior.spatial_dims, dim=-1)
    inputs = tuple(
        InputWeights(
            conv.conv.weight.detach(), conv.conv.bias.detach(), conv.taps, conv.reach, position_sc.contiguous()
        )
        for conv, position_sc in zip(prior.inputs, positions, strict=True)
    )
    return GatedWeights(
        num_codes=prior.num_codes,
        channels=prior.channels,
        kernel_size=prior.kernel_size,
        embedding_kc=prior.embedding.weight.detach(),
        inputs=inputs,
        stacks=tuple(tuple(stack_weights(layer, axis) for layer in prior.layers) for axis in range(len(inputs))),
        attentions={
            int(index): attention_weights(attention, coordinates_ps) for index, attention in prior.attentions.items()
        },
        output_blocks=[(*linear(block.hidden), *linear(block.output)) for block in prior.output_blocks],
        head=(*linear(prior.head[1]), *linear(prior.head[3])),
    )


def at(values: Tensor, *index: Any) -> Tensor:
    """`values[index]`, for an index put together from parts."""
    return values[index]


def halve_gates(gates: Tensor, *, channels: int) -> Tensor:
    """A contiguous copy whose last axis, tanh and sigmoid halves of `channels` each, has the sigmoid half halved."""
    scale = gates.new_ones(2 * channels)
    scale[channels:] = 0.5
    return torch.mul(gates, scale, out=torch.empty(gates.shape, dtype=gates.dtype, device=gates.device))


def matrix(layer: Any) -> Tensor:
    """The weight of a linear or pointwise layer as a contiguous `(in, out)` matrix."""
    weight: Tensor = layer.weight.detach()
    return weight.flatten(1).t().contiguous()


def linear(layer: Any) -> tuple[Tensor, Tensor]:
    """Matrix and bias of a linear or pointwise layer."""
    return matrix(layer), layer.bias.detach()


def stack_weights(layer: GatedLayer, axis: int) -> StackWeights:
    """One layer's weights for the stack of `axis`."""
    c, stacks, last = layer.channels, len(layer.convs), axis == len(layer.convs) - 1
    conv: Any = layer.convs[axis]
    kernel = conv.conv.weight.detach()  # (2c, c, 1..., taps, k...)
    kernel_tlc2c = kernel.flatten(2, 2 + axis).movedim((0, 1), (-1, -2))
    rows = halve_gates(kernel_tlc2c, channels=c).view(conv.taps, -1, 2 * c)
    outputs = 0.5 * matrix(layer.outputs[axis])
    context = None
    if layer.context is not None:
        context = halve_gates(matrix(layer.context).chunk(stacks, dim=1)[axis], channels=c)
    return StackWeights(
        taps=(rows.flatten(0, 1),) if last else rows.unbind(),
        bias=halve_gates(conv.conv.bias.detach(), channels=c),
        residual=outputs[:, :c].contiguous(),
        link=None if last else halve_gates(outputs[:, c:], channels=c),
        context=context,
    )


def attention_weights(attention: CausalAttention, coordinates_ps: Tensor) -> AttentionWeights:
    """One self-attention's weights, with the coordinates of every position applied."""
    width, heads = attention.width, attention.num_heads
    scale = torch.ones(3 * width, dtype=coordinates_ps.dtype, device=coordinates_ps.device)
    scale[:width] = (width // heads) ** -0.5
    position = attention.position(coordinates_ps.flatten(1).t()) * scale
    output = matrix(attention.output)
    return AttentionWeights(
        qkv=_with_channel(matrix(attention.qkv) * scale, heads, of_queries=0.0),
        output=F.pad(output.view(heads, -1, output.shape[1]), (0, 0, 0, 1)).flatten(0, 1),
        position_n=_with_channel(position, heads, of_queries=1.0),
        num_heads=heads,
    )


def _with_channel(qkv: Tensor, heads: int, *, of_queries: float) -> Tensor:
    """`(rows, 3 * width)` with a further channel in each head: a given value in queries, 0 in keys and values."""
    parts = F.pad(qkv.view(qkv.shape[0], 3, heads, -1), (0, 1))
    parts[:, 0, :, -1] = of_queries
    return parts.flatten(1)
