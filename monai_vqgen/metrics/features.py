"""Where images are compared when pixels will not do: feature spaces, one of which needs no download.

Shape suffixes: n images, f features, b images of a batch, c channels, h rows, w columns.

Any callable that turns images (n, 1, h, w) in [0, 1] into features (n, f) is a feature space. Stated here: a bank of
Gabor filters with PCA whitening. A network's weights, such as Inception's or RadImageNet's, enter as `NetworkFeatures`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_vqgen.errors import InputError

__all__ = ["FeatureSpace", "FilterBankFeatures", "NetworkFeatures", "WhitenedFeatures"]

WAVELENGTH = 4.0  # pixels of the finest scale: the shortest wave that is still sampled well in every direction
BANDWIDTH_RATIO = 0.56  # envelope's sigma over wavelength, one octave of bandwidth (Lee 1996, IEEE TPAMI 18(10))
SMOOTHING_SIGMA = 1.0  # pixels; what it removes is the pixel-scale residual
KEPT_VARIANCE = 1e-6  # share of the largest component's variance below which a component is rounding
VALUE_SLACK = 1.0  # how far beyond [0, 1] a decoder's output may reach before it is taken for another range
DISTANCE_CHUNK = 256  # rows of a distance matrix held at once


class FeatureSpace(Protocol):
    """Anything that turns images (n, 1, h, w) in [0, 1] into features (n, f)."""

    def __call__(self, images_bchw: Tensor, /) -> Tensor:
        """Features of images, one row an image."""
        ...


def checked_images(images_bchw: Tensor, name: str, *, at_least: int = 1) -> Tensor:
    """The images as a plain float32 tensor, or an InputError that says what is wrong with them."""
    images_bchw = images_bchw.as_tensor() if hasattr(images_bchw, "as_tensor") else images_bchw
    if images_bchw.ndim != 4 or images_bchw.shape[1] != 1:
        raise InputError(f"{name} have shape {tuple(images_bchw.shape)}: give images as (n, 1, h, w)")
    if len(images_bchw) < at_least:
        raise InputError(f"{len(images_bchw)} {name} are too few: give at least {at_least}")
    images_bchw = images_bchw.detach().float()
    if not bool(images_bchw.isfinite().all()):
        raise InputError(f"{name} hold values that are not finite: leave those images out, or repair their model")
    low, high = float(images_bchw.min()), float(images_bchw.max())
    if low < -VALUE_SLACK or high > 1 + VALUE_SLACK:
        raise InputError(f"{name} range from {low:.3g} to {high:.3g}: scale images to [0, 1]")
    return images_bchw


def checked_features(features_nf: Tensor, name: str, *, at_least: int = 1) -> Tensor:
    """The features in float64, or an InputError that says what is wrong with them."""
    if features_nf.ndim != 2 or features_nf.shape[1] == 0:
        raise InputError(f"{name} have shape {tuple(features_nf.shape)}: give features as (n, f), one row an image")
    if len(features_nf) < at_least:
        raise InputError(f"{len(features_nf)} {name} are too few: give at least {at_least}")
    if not bool(features_nf.isfinite().all()):
        raise InputError(f"{name} hold values that are not finite: leave those images out, or repair the feature space")
    return features_nf.detach().double()


def check_same_size(first: Tensor, second: Tensor, names: str) -> None:
    """Refuse two sets whose images, or features, differ in size."""
    if first.shape[1:] != second.shape[1:]:
        raise InputError(
            f"{names} have sizes {tuple(first.shape[1:])} and {tuple(second.shape[1:])}: "
            "make both at one size and in one feature space"
        )


def distance_blocks(first_nf: Tensor, second_nf: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Euclidean distances of all rows to all rows, a block of rows at a time, so that memory stays bounded."""
    for start in range(0, len(first_nf), DISTANCE_CHUNK):
        rows = slice(start, min(start + DISTANCE_CHUNK, len(first_nf)))
        # through a matrix product, as cdist does by default, the distance to a copy would not be zero
        yield rows, torch.cdist(first_nf[rows], second_nf, compute_mode="donot_use_mm_for_euclid_dist")


def _in_batches(compute: Callable[[Tensor], Tensor], images_bchw: Tensor, batch_size: int) -> Tensor:
    with torch.no_grad():
        return torch.cat([compute(batch_bchw) for batch_bchw in images_bchw.split(batch_size)])


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

    Example:
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
        return _in_batches(self._compute, images_bchw, self.batch_size)

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


class WhitenedFeatures:
    """Principal components of a feature space, each scaled to unit variance over real training slices.

    x -> diag(variance)^(-1/2) V^T (x - mean), with V the eigenvectors of the training features' covariance (division by
    n - 1), largest variance first, each signed so that its largest entry is positive. Components below 1e-6 of the
    largest variance are rounding and left out. Whitened, a Euclidean distance is Mahalanobis' distance in the
    components kept, so that no feature's unit rules it.

    Args:
        base: the feature space to whiten.
        components: how many components to keep at most.

    Raises:
        InputError: fewer than one component; at `fit`, fewer than two images or no variance; a call before `fit`.

    Example:
        >>> space = WhitenedFeatures(FilterBankFeatures(), components=8).fit(torch.rand(40, 1, 32, 32))
        >>> space(torch.rand(5, 1, 32, 32)).shape
        torch.Size([5, 8])
    """

    def __init__(self, base: FeatureSpace, *, components: int = 64) -> None:
        if components < 1:
            raise InputError(f"{components=} must be at least 1")
        self.base, self.components = base, components
        self._mean_f: Tensor | None = None
        self._projection_fk = torch.empty(0)

    @property
    def description(self) -> str:
        """The feature space in a sentence, for a report."""
        kept = self.components if self._mean_f is None else self._projection_fk.shape[1]
        base = getattr(self.base, "description", type(self.base).__name__)
        return f"{kept} principal components, whitened on training slices, of {base}"

    def fit(self, training_bchw: Tensor) -> WhitenedFeatures:
        """Take mean, components and variances from real training slices; returns itself."""
        features_nf = checked_features(self.base(training_bchw), "training features", at_least=2)
        mean_f = features_nf.mean(0)
        variances_f, vectors_ff = torch.linalg.eigh((features_nf - mean_f).T.cov())
        variances_f, vectors_ff = variances_f.flip(0)[: self.components], vectors_ff.flip(1)[:, : self.components]
        # an exactly constant set leaves variances of rounding alone, which are small beside the mean's square
        if float(variances_f[0]) <= torch.finfo(torch.float32).eps ** 2 * (1 + float(mean_f.square().sum())):
            raise InputError("the training images are all alike in these features: give different images to whiten on")
        kept = variances_f > KEPT_VARIANCE * variances_f[0]
        vectors_fk = vectors_ff[:, kept]
        largest_k = vectors_fk.gather(0, vectors_fk.abs().argmax(0, keepdim=True))
        self._mean_f, self._projection_fk = mean_f, vectors_fk * largest_k.sign() / variances_f[kept].sqrt()
        return self

    def __call__(self, images_bchw: Tensor) -> Tensor:
        """Whitened features (n, k) of images, float64."""
        if self._mean_f is None:
            raise InputError("Fit the whitening to real training slices first.")
        features_nf = checked_features(self.base(images_bchw), "features")
        check_same_size(features_nf, self._mean_f[None], "features and those whitened on")
        return (features_nf - self._mean_f) @ self._projection_fk


class NetworkFeatures:
    """Features of a network, for example Inception's or RadImageNet's from a TorchScript file.

    The grey image is resized (bilinear, antialiased), repeated over the network's channels, normalised by (x - mean) /
    std, and given to the network without gradients and in evaluation mode. An output with spatial axes is averaged over
    them. Nothing is read here: give `torch.jit.load(path)`, or any callable from images to features.

    Args:
        network: from (b, channels, h, w) to (b, f) or (b, f, *spatial).
        name: what a report calls it.
        image_size: (rows, columns) the network wants; None keeps the images' own.
        channels: of the network's input.
        mean: subtracted, one value or one a channel, in the range [0, 1].
        std: divided by, one value or one a channel.
        batch_size: images at once.

    Raises:
        InputError: an output that is not one row of finite features an image.

    Example:
        >>> NetworkFeatures(torch.nn.Conv2d(3, 7, 5), name="random", channels=3)(torch.rand(4, 1, 32, 32)).shape
        torch.Size([4, 7])
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        *,
        name: str,
        image_size: tuple[int, int] | None = None,
        channels: int = 3,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        batch_size: int = 32,
    ) -> None:
        self.network, self.name, self.image_size = network, name, image_size
        self.channels, self.mean, self.std, self.batch_size = channels, mean, std, batch_size

    @property
    def description(self) -> str:
        """The feature space in a sentence, for a report."""
        size = (
            "at the images' own size" if self.image_size is None else f"at {self.image_size[0]} x {self.image_size[1]}"
        )
        return f"features of {self.name} {size}"

    def __call__(self, images_bchw: Tensor) -> Tensor:
        """Features (n, f) of images (n, 1, h, w)."""
        images_bchw = checked_images(images_bchw, "images")
        if isinstance(self.network, torch.nn.Module):
            self.network.eval()
        return checked_features(_in_batches(self._compute, images_bchw, self.batch_size), f"features of {self.name}")

    def _compute(self, images_bchw: Tensor) -> Tensor:
        if self.image_size is not None:
            images_bchw = F.interpolate(images_bchw, self.image_size, mode="bilinear", antialias=True)
        mean, std = (torch.as_tensor(value).to(images_bchw).reshape(1, -1, 1, 1) for value in (self.mean, self.std))
        output = self.network((images_bchw.expand(-1, self.channels, -1, -1) - mean) / std)
        if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != len(images_bchw):
            given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InputError(
                f"{self.name} returned {given} for {len(images_bchw)} images: a feature network returns (n, f), "
                "wrap it to pick its pooled output"
            )
        return output.flatten(2).mean(2) if output.ndim > 2 else output
