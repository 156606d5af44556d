"""A feature space without weights: brightness, fine residual and Gabor amplitudes of each part of an image.

Shape suffixes: n images, f features, b images of a batch, c channels, h rows, w columns.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_vqgen.errors import InputError
from monai_vqgen.metrics.features import checked_images, in_batches

WAVELENGTH = 4.0  # pixels of the finest scale: the shortest wave that is still sampled well in every direction
BANDWIDTH_RATIO = 0.56  # envelope's sigma over wavelength, one octave of bandwidth (Lee 1996, IEEE TPAMI 18(10))
SMOOTHING_SIGMA = 1.0  # pixels; what it removes is the pixel-scale residual


def _gabor_kernels(orientations: int) -> Tensor:
    """Even filters of all orientations, then the odd ones, (2 * orientations, 1, size, size), in float64."""
    sigma = BANDWIDTH_RATIO * WAVELENGTH
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    envelope_hw = torch.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * sigma**2))
    envelope_hw = envelope_hw / envelope_hw.sum()
    even, odd = [], []
    for index in range(orientations):
        angle = math.pi * index / orientations
        along_hw = offsets[None, :] * math.cos(angle) + offsets[:, None] * math.sin(angle)
        cosine_hw = torch.cos(2 * math.pi * along_hw / WAVELENGTH)
        even.append(2 * envelope_hw * (cosine_hw - (envelope_hw * cosine_hw).sum()))  # blind to a constant
        odd.append(2 * envelope_hw * torch.sin(2 * math.pi * along_hw / WAVELENGTH))
    return torch.stack(even + odd)[:, None]


def _smoothed(images_bchw: Tensor) -> Tensor:
    radius = math.ceil(3 * SMOOTHING_SIGMA)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-(offsets**2) / (2 * SMOOTHING_SIGMA**2))
    kernel = torch.outer(weights, weights).to(images_bchw) / weights.sum().to(images_bchw) ** 2
    return F.conv2d(F.pad(images_bchw, (radius,) * 4, mode="replicate"), kernel[None, None])


class FilterBankFeatures:
    """How bright, and how strongly structured at which scale and orientation, each part of an image is.

    image --(mean)----------------------------------------------> 1 map
          --(|image - Gaussian of sigma 1 px|)------------------> 1 map
          --(Gabor, wavelength 4 px, magnitude of even and odd)-> `orientations` maps
          --(half the size)--> Gabor: wavelength 8 px ----------> `orientations` maps, and so on, `scales` times

    Every map is averaged over a `grid` x `grid` partition of the image (torch's adaptive average pooling), so a feature
    is a mean brightness, or a mean amplitude of a wave, in the image's units. There are no weights and no randomness:
    the features of an image are a fixed function of its pixels. Borders are padded by their edge pixels. Orientation j
    is a wave along the direction at 180 j / orientations degrees from the columns' axis towards the rows' axis.

    Order of features: map by map as drawn, each row by row; in all grid² (2 + scales * orientations), 224 by default.

    Args:
        scales: octaves of wavelengths, from 4 pixels up.
        orientations: directions of waves, evenly over half a turn.
        grid: parts along each side.
        batch_size: images at once; the features do not depend on it.

    Raises:
        InputError: a number below one; at a call, images that are not (n, 1, h, w), not finite, out of range, or too
            small for the coarsest scale (8 pixels there, so 32 at three scales).

    Examples:
        >>> FilterBankFeatures()(torch.rand(5, 1, 64, 64)).shape
        torch.Size([5, 224])
    """

    def __init__(self, *, scales: int = 3, orientations: int = 4, grid: int = 4, batch_size: int = 32) -> None:
        if min(scales, orientations, grid, batch_size) < 1:
            raise InputError(f"{scales=}, {orientations=}, {grid=} and {batch_size=} must all be at least 1")
        self.scales, self.orientations, self.grid, self.batch_size = scales, orientations, grid, batch_size
        self._kernels = _gabor_kernels(orientations)

    @property
    def description(self) -> str:
        """The feature space in a sentence, for a report."""
        wavelengths = ", ".join(f"{WAVELENGTH * 2**scale:g}" for scale in range(self.scales))
        return (
            f"mean brightness, pixel-scale residual and Gabor amplitudes (wavelengths {wavelengths} px, "
            f"{self.orientations} orientations) on a {self.grid} x {self.grid} grid"
        )

    def __call__(self, images_bchw: Tensor) -> Tensor:
        """Features (n, f) of images (n, 1, h, w), float32."""
        images_bchw = checked_images(images_bchw, "images")
        needed = 8 * 2 ** (self.scales - 1)
        if min(images_bchw.shape[2:]) < needed:
            raise InputError(
                f"{self.scales} scales need images of at least {needed} pixels a side, these have "
                f"{tuple(images_bchw.shape[2:])}: take fewer scales or larger images"
            )
        return in_batches(self._compute, images_bchw, self.batch_size)

    def _compute(self, images_bchw: Tensor) -> Tensor:
        kernels = self._kernels.to(images_bchw)
        maps = [images_bchw, (images_bchw - _smoothed(images_bchw)).abs()]
        for scale in range(self.scales):
            if scale:
                images_bchw = F.avg_pool2d(images_bchw, 2, ceil_mode=True)
            padded_bchw = F.pad(images_bchw, (kernels.shape[-1] // 2,) * 4, mode="replicate")
            even_bchw, odd_bchw = F.conv2d(padded_bchw, kernels).chunk(2, dim=1)
            maps.append(torch.hypot(even_bchw, odd_bchw))
        return torch.cat([F.adaptive_avg_pool2d(map_bchw, self.grid).flatten(1) for map_bchw in maps], dim=1)
