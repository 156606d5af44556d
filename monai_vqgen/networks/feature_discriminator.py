"""A discriminator that looks at images through a frozen network, for the training of a decoder.

Shape suffixes: b batch, c channels, h and w pixels, n judgments.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from monai_vqgen.errors import InputError
from monai_vqgen.networks.slice_discriminator import SliceDiscriminator

_SLOPE = 0.2  # of the leaky ReLUs
_MEAN, _STD = 0.449, 0.226  # of ImageNet's images, over the three colors


class FeatureDiscriminator(nn.Module):
    """Tells real images from made ones by features of a frozen network at several scales.

    ::

        frozen features, finest first -> random 1-wide convolutions -> [random 3-wide convolution, from coarse to fine]
            each scale -> convolutions with spectral normalization -> judgments

    Sauer et al. 2021, "Projected GANs Converge Faster": what random projections mix cannot be met in one channel alone,
    and small heads cannot win at once. It needs no gradient penalty; `AdversarialUpdate` gives it none. Features of
    ImageNet agree with what radiologists see (arXiv 2311.13717).

    Args:
        network: `(b, 3, h, w)`, normalized as ImageNet is, to features of one or more scales, finest first, as
            ``python -m tools imagenet_features --scales`` writes it; it is frozen, and never part of the state.
        scale: enlargement of the images first, so that folds have the size of what the network has learned to see.
        width: channels of the finest projection; each coarser one has twice as many, at most eight times.
        seed: of the random projections.

    Returns of ``forward(images_bchw)``, images of [0, 1] given as [-1, 3] as `AdversarialUpdate` does: the frozen
    features, and last the judgments ``(b, n)``, each scale counting alike in their mean.

    Raises:
        InputError: a network that returns no list of two-dimensional features, at the first images.

    Examples:
        >>> frozen = lambda images_bchw: [images_bchw, F.avg_pool2d(images_bchw, 2)]
        >>> *features, judgments = FeatureDiscriminator(frozen, scale=1, width=4)(torch.zeros(2, 1, 16, 16))
        >>> len(features), judgments.shape
        (2, torch.Size([2, 128]))
    """

    penalized = False  # by R1

    def __init__(self, network: nn.Module, *, scale: float = 2.0, width: int = 64, seed: int = 0) -> None:
        super().__init__()
        if isinstance(network, nn.Module):
            for parameter in network.eval().parameters():  # TorchScript knows no requires_grad_ of a whole module
                parameter.requires_grad_(False)
        self.network = [network]  # in a list, so that its weights are none of the discriminator's
        self.scale = scale
        try:
            widths = [features.shape[1] for features in self._frozen(torch.zeros(1, 1, 64, 64))]
        except (RuntimeError, IndexError, AttributeError, TypeError) as error:
            raise InputError(
                f"the feature network returns no features of shape (b, c, h, w) of images of shape (1, 3, "
                f"{int(64 * scale)}, {int(64 * scale)}): write one with `python -m tools imagenet_features --scales`"
            ) from error
        inner = [width * 2 ** min(level, 3) for level in range(len(widths))]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for level, pair in enumerate(zip(inner, widths, strict=True)):
                self.register_buffer(f"project_{level}", _random(*pair, 1))
            for level, pair in enumerate(pairwise(inner)):
                self.register_buffer(f"mix_{level}", _random(*pair, 3))
        self.heads = nn.ModuleList(_head(channels) for channels in inner)

    def forward(self, images_bchw: Tensor) -> list[Tensor]:
        """Return the frozen features and the judgments."""
        features = self._frozen((images_bchw + 1) / 4)
        mixed_bchw, judgments = None, []
        for level in reversed(range(len(features))):
            own_bchw = F.conv2d(features[level], self.get_buffer(f"project_{level}"))
            if mixed_bchw is not None:
                coarser_bchw = F.interpolate(mixed_bchw, size=own_bchw.shape[2:], mode="bilinear")
                mix = self.get_buffer(f"mix_{level}")
                own_bchw = (own_bchw + F.conv2d(coarser_bchw, mix, padding=1)) * 2**-0.5
            mixed_bchw = own_bchw
            judgments.append(self.heads[level](mixed_bchw).float().flatten(1))
        most = max(judgment_bn.shape[1] for judgment_bn in judgments)
        # coarse judgments are repeated, so that each scale counts alike
        spread = [F.interpolate(judgment_bn[:, None], size=most, mode="nearest")[:, 0] for judgment_bn in judgments]
        return [*features, torch.cat(spread, 1)]

    def _apply(self, *arguments: Any, **options: Any) -> FeatureDiscriminator:
        for network in self.network:
            if isinstance(network, nn.Module):
                network._apply(*arguments, **options)
        return super()._apply(*arguments, **options)

    def _frozen(self, images_bchw: Tensor) -> list[Tensor]:
        if self.scale != 1:
            images_bchw = F.interpolate(images_bchw, scale_factor=self.scale, mode="bicubic", align_corners=False)
        shown_bchw = ((images_bchw.clamp(0, 1) - _MEAN) / _STD).expand(-1, 3, -1, -1)
        return list(self.network[0](shown_bchw.contiguous(memory_format=torch.channels_last)))


def _random(out_channels: int, in_channels: int, size: int) -> Tensor:
    weight = torch.empty(out_channels, in_channels, size, size)
    return nn.init.kaiming_normal_(weight, nonlinearity="linear")


def _head(channels: int) -> nn.Sequential:
    wide = min(channels, 128)
    return nn.Sequential(
        spectral_norm(nn.Conv2d(channels, wide, 3, padding=1)),
        nn.LeakyReLU(_SLOPE),
        spectral_norm(nn.Conv2d(wide, wide, 4, stride=2, padding=1)),
        nn.LeakyReLU(_SLOPE),
        spectral_norm(nn.Conv2d(wide, 1, 1)),
    )


def slice_discriminators(
    autoencoder: Any,
    image_size: Sequence[int],
    feature_network: str | os.PathLike[str] | None = None,
    widths: Sequence[int] = (64, 128, 192, 192),
) -> nn.Module:
    """A `SliceDiscriminator`, and a `FeatureDiscriminator` beside it where a feature network is given.

    Args:
        autoencoder: tells the axes and channels of the images.
        image_size: pixels of the images an axis.
        feature_network: TorchScript file of a network as `FeatureDiscriminator` takes it; None goes without.
        widths: of the `SliceDiscriminator`.

    Raises:
        InputError: sizes that do not work, volumes with a feature network, or a file that is no such network.
    """
    spatial_dims, in_channels = autoencoder.spatial_dims, autoencoder.in_channels
    whole = SliceDiscriminator(spatial_dims, in_channels, image_size=image_size, widths=widths)
    if feature_network is None:
        return whole
    if spatial_dims != 2 or in_channels not in (1, 3):
        raise InputError(
            f"feature_network is for slices of 1 or 3 channels; these images have {spatial_dims} axes and "
            f"{in_channels} channels: leave it out"
        )
    try:
        network = torch.jit.load(Path(feature_network), map_location="cpu")
    except (RuntimeError, OSError, ValueError) as error:
        raise InputError(
            f"feature_network={feature_network} cannot be read as TorchScript: write one with "
            "`python -m tools imagenet_features --scales`"
        ) from error
    return nn.ModuleList([whole, FeatureDiscriminator(network)])
