"""A discriminator of whole images and of their patches, for the training of a decoder.

Shape suffixes: b batch, c channels, s spatial axes (2 or 3), n judgments.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_vqgen.errors import InputError

_SLOPE = 0.2  # of the leaky ReLUs


class SliceDiscriminator(nn.Module):
    """Tells real images from made ones by their patches and as a whole.

    ::

        pixels unshuffled by 2, 3-wide convolution, [residual halving] x (len(widths) - 1)
            second-last features -> 1-wide convolution                                        patches
            last features, their spread over the batch -> convolution, 2 linear layers        whole image

    Patches see texture (Isola et al. 2017); the whole image sees what does not fit together. The spread is the mean
    standard deviation over groups of four (Karras et al. 2018, section 3), which images that are all alike give away.
    He initialization (2015): with torch's own the signal shrinks from layer to layer, and the discriminator is blind.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the images.
        image_size: pixels of the images an axis, divisible by 2 ** len(widths).
        widths: channels after the first convolution and after each halving.

    Returns of ``forward(images_bcs)``: features of the halvings, finest first, and last the judgments ``(b, n)``, half
    of them of the patches and half of them the one of the whole image, so that both count alike in their mean.

    Raises:
        InputError: fewer than three widths, or a size that they do not divide.

    Examples:
        >>> discriminator = SliceDiscriminator(image_size=(32, 32), widths=(8, 8, 8, 8))
        >>> *features, judgments = discriminator(torch.zeros(2, 1, 32, 32))
        >>> len(features), judgments.shape  # 4 x 4 patches
        (3, torch.Size([2, 32]))
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        *,
        image_size: Sequence[int],
        widths: Sequence[int] = (64, 128, 192, 192),
    ) -> None:
        super().__init__()
        factor = 2 ** len(widths)
        if len(widths) < 3 or len(image_size) != spatial_dims or any(size < 1 or size % factor for size in image_size):
            raise InputError(
                f"image_size={tuple(image_size)} with widths={tuple(widths)}: give at least 3 widths, and "
                f"{spatial_dims} sizes that {factor} divides (2 ** number of widths)"
            )
        conv = Conv[Conv.CONV, spatial_dims]
        cells = 1
        for size in image_size:
            cells *= size // factor
        self.first = conv(in_channels * 2**spatial_dims, widths[0], 3, padding=1)
        self.halvings = nn.ModuleList(_Halving(spatial_dims, wide, wider) for wide, wider in pairwise(widths))
        self.patches = conv(widths[-2], 1, 1)
        self.last = conv(widths[-1] + 1, widths[-1], 3, padding=1)
        self.hidden, self.whole = nn.Linear(widths[-1] * cells, 256), nn.Linear(256, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, a=1.0 if module in (self.patches, self.whole) else _SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images_bcs: Tensor) -> list[Tensor]:
        """Return the features of the halvings and the judgments."""
        features_bcs, features = F.leaky_relu(self.first(_unshuffled(images_bcs)), _SLOPE), []
        for halving in self.halvings:
            features_bcs = halving(features_bcs)
            features.append(features_bcs)
        patches_bn = self.patches(features[-2]).float().flatten(1)
        merged_bcs = torch.cat([features_bcs, _spread(features_bcs)], 1)
        hidden_bn = F.leaky_relu(self.last(merged_bcs), _SLOPE).contiguous().flatten(1)
        whole_b1 = self.whole(F.leaky_relu(self.hidden(hidden_bn), _SLOPE)).float()
        return [*features, torch.cat([patches_bn, whole_b1.expand_as(patches_bn)], 1)]


class _Halving(nn.Module):
    """A residual block ``(b, c, *s) -> (b, wider, *s / 2)``."""

    def __init__(self, spatial_dims: int, width: int, wider: int) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        self.before, self.halve = conv(width, width, 3, padding=1), conv(width, wider, 4, stride=2, padding=1)
        self.shortcut = conv(width, wider, 2, stride=2, bias=False)

    def forward(self, features_bcs: Tensor) -> Tensor:
        inner_bcs = F.leaky_relu(self.before(features_bcs), _SLOPE)
        return (F.leaky_relu(self.halve(inner_bcs), _SLOPE) + self.shortcut(features_bcs)) * 2**-0.5


def _unshuffled(images_bcs: Tensor) -> Tensor:
    """Blocks of 2 pixels an axis as channels: ``(b, c * 2 ** axes, *s / 2)``."""
    for axis in range(2, images_bcs.ndim):
        images_bcs = torch.cat(images_bcs.unflatten(axis, (-1, 2)).unbind(axis + 1), 1)
    return images_bcs


def _spread(features_bcs: Tensor) -> Tensor:
    """The mean standard deviation within each group of four images, as one more channel ``(b, 1, *s)``."""
    count = features_bcs.shape[0]
    groups = count // 4 if count % 4 == 0 else 1
    grouped = features_bcs.float().unflatten(0, (groups, -1))
    spread_g = (grouped.var(1, unbiased=False) + 1e-8).sqrt().flatten(1).mean(1)
    spread_b = spread_g.repeat_interleave(count // groups).to(features_bcs.dtype)
    return spread_b.view(-1, *[1] * (features_bcs.ndim - 1)).expand(-1, 1, *features_bcs.shape[2:])
