"""Convolutional blocks of the autoencoders.

Shape suffixes: b batch, c channels, s spatial axes (2 or 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_vqgen.errors import InputError


def halvings(stride: int) -> int:
    """Return how many factors of two make ``stride``; InputError where it is no power of two."""
    if stride < 1 or stride & (stride - 1):
        raise InputError(f"stride {stride} is not a power of two: choose 1, 2, 4, 8, ...")
    return stride.bit_length() - 1


class ResidualBottleneck(nn.Module):
    """``x + conv1(relu(conv3(relu(x))))``, the residual block of van den Oord et al. 2017, section 4.1."""

    def __init__(self, spatial_dims: int, channels: int, *, residual_channels: int) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        self.body = nn.Sequential(
            nn.ReLU(), conv(channels, residual_channels, 3, padding=1), nn.ReLU(), conv(residual_channels, channels, 1)
        )

    def forward(self, features_bcs: Tensor) -> Tensor:
        """Return features of the same shape."""
        return features_bcs + cast("Tensor", self.body(features_bcs))


class ResidualStack(nn.Sequential):
    """Several :class:`ResidualBottleneck` and a last ReLU; shapes stay."""

    def __init__(self, spatial_dims: int, channels: int, *, residual_channels: int, num_blocks: int) -> None:
        sizes = {"channels": channels, "residual_channels": residual_channels}
        units = [ResidualBottleneck(spatial_dims, **sizes) for _ in range(num_blocks)]
        super().__init__(*units, nn.ReLU())


class Downsampler(nn.Sequential):
    """``(b, in, *s) -> (b, channels, *s / stride)``: strided convolutions, one 3-wide convolution, residual units.

    Of several strided convolutions the first has half the channels; the stride is a power of two.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        channels: int,
        stride: int,
        residual_channels: int,
        num_blocks: int,
    ) -> None:
        conv = Conv[Conv.CONV, spatial_dims]
        layers: list[nn.Module] = []
        steps, width = halvings(stride), in_channels
        for step in range(steps):
            wider = channels // 2 if step < steps - 1 else channels
            layers += [conv(width, wider, 4, stride=2, padding=1), nn.ReLU()]
            width = wider
        layers += [
            conv(width, channels, 3, padding=1),
            ResidualStack(spatial_dims, channels, residual_channels=residual_channels, num_blocks=num_blocks),
        ]
        super().__init__(*layers)


class Upsampler(nn.Sequential):
    """``(b, in, *s) -> (b, out, *s * stride)``, the mirror of :class:`Downsampler`, with hidden ``channels``."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        out_channels: int,
        channels: int,
        stride: int,
        residual_channels: int,
        num_blocks: int,
    ) -> None:
        conv, transposed = Conv[Conv.CONV, spatial_dims], Conv[Conv.CONVTRANS, spatial_dims]
        layers: list[nn.Module] = [
            conv(in_channels, channels, 3, padding=1),
            ResidualStack(spatial_dims, channels, residual_channels=residual_channels, num_blocks=num_blocks),
        ]
        steps, width = halvings(stride), channels
        for step in range(steps):
            last = step == steps - 1
            narrower = out_channels if last else channels // 2
            layers.append(transposed(width, narrower, 4, stride=2, padding=1))
            if not last:
                layers.append(nn.ReLU())
            width = narrower
        if steps == 0:
            layers.append(conv(width, out_channels, 3, padding=1))
        super().__init__(*layers)


def hide_finer(embeddings: Sequence[Tensor], probability: float) -> list[Tensor]:
    """Zero the levels from a random one on, in a random part of the batch; level 0 always stays.

    Embeddings are ``(b, d, *s)`` of each level, coarsest first; which level is the first to be hidden is uniform.
    """
    if len(embeddings) == 1:
        return list(embeddings)
    batch, device = embeddings[0].shape[0], embeddings[0].device
    hidden_b = torch.rand(batch, device=device) < probability
    first_b = torch.randint(1, len(embeddings), (batch,), device=device)
    shown = [embeddings[0]]
    for level, embeddings_bds in enumerate(embeddings[1:], 1):
        keep_b = ~(hidden_b & (level >= first_b))
        shown.append(embeddings_bds * keep_b.reshape(-1, *[1] * (embeddings_bds.ndim - 1)).to(embeddings_bds.dtype))
    return shown


def ceil_to(size: int, multiple: int) -> int:
    """Return the least multiple of ``multiple`` that is at least ``size``."""
    return math.ceil(size / multiple) * multiple


def one_a_level(name: str, value: Any, levels: int) -> list[Any]:
    """Return a value of each level: those given, or one for all; InputError for another number of them."""
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * levels
    if len(values) != levels:
        raise InputError(f"{name} has {len(values)} values for {levels} levels: give one number, or one a level")
    return values
