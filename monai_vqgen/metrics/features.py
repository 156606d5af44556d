"""Where images are compared when pixels will not do: what a feature space is, whitened ones, and those of networks.

Shape suffixes: n images, f features, b images of a batch, c channels, h rows, w columns.

Any callable that turns images (n, 1, h, w) in [0, 1] into features (n, f) is a feature space. `FilterBankFeatures` is
one without weights; those of a network, such as Inception's or RadImageNet's, enter as `NetworkFeatures`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_vqgen.errors import InputError

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
    _check_values(images_bchw, name, at_least, "their model")
    images_bchw = images_bchw.detach().float()
    low, high = float(images_bchw.min()), float(images_bchw.max())
    if low < -VALUE_SLACK or high > 1 + VALUE_SLACK:
        raise InputError(f"{name} range from {low:.3g} to {high:.3g}: scale images to [0, 1]")
    return images_bchw


def checked_features(features_nf: Tensor, name: str, *, at_least: int = 1) -> Tensor:
    """The features in float64, or an InputError that says what is wrong with them."""
    if features_nf.ndim != 2 or features_nf.shape[1] == 0:
        raise InputError(f"{name} have shape {tuple(features_nf.shape)}: give features as (n, f), one row an image")
    _check_values(features_nf, name, at_least, "the feature space")
    return features_nf.detach().double()


def _check_values(rows: Tensor, name: str, at_least: int, source: str) -> None:
    if len(rows) < at_least:
        raise InputError(f"{len(rows)} {name} are too few: give at least {at_least}")
    if not bool(rows.isfinite().all()):
        raise InputError(f"{name} hold values that are not finite: leave those images out, or repair {source}")


def subject_numbers(subjects: Iterable[Hashable]) -> list[int]:
    """A number for the subject of every image, in the order in which subjects first appear."""
    known: dict[Hashable, int] = {}
    return [known.setdefault(subject, len(known)) for subject in subjects]


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


def in_batches(compute: Callable[[Tensor], Tensor], images_bchw: Tensor, batch_size: int) -> Tensor:
    """What is computed of a batch, for all images; without gradients."""
    with torch.no_grad():
        return torch.cat([compute(batch_bchw) for batch_bchw in images_bchw.split(batch_size)])


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

    Examples:
        >>> from monai_vqgen.metrics import FilterBankFeatures
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
            raise InputError("Fit the whitening to real training slices first")
        features_nf = checked_features(self.base(images_bchw), "features")
        check_same_size(features_nf, self._mean_f[None], "features and those whitened on")
        return (features_nf - self._mean_f) @ self._projection_fk


class NetworkFeatures:
    """Features of a network, for example Inception's or RadImageNet's from a TorchScript file.

    The gray image is resized (bilinear, antialiased), repeated over the network's channels, normalized by (x - mean) /
    std, and given to the network without gradients and in evaluation mode. An output with spatial axes is averaged over
    them. `from_file` reads a TorchScript file; any other callable from images to features will do as well.

    Args:
        network: from (b, channels, h, w) to (b, f) or (b, f, *spatial).
        name: what a report calls it.
        image_size: (rows, columns) the network wants; None keeps the images' own.
        channels: of the network's input.
        mean: subtracted, one value or one a channel, in the range [0, 1].
        std: divided by, one value or one a channel.
        batch_size: images at once.
        device: where the network is; images are taken there, and features back.

    Raises:
        InputError: an argument out of its range; images that the network does not take, or an output that is not one
            row of finite features an image.

    Examples:
        >>> NetworkFeatures(torch.nn.Conv2d(3, 7, 5), name="random", channels=3)(torch.rand(4, 1, 32, 32)).shape
        torch.Size([4, 7])
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        *,
        name: str,
        image_size: Sequence[int] | None = None,
        channels: int = 3,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        batch_size: int = 32,
        device: torch.device | str = "cpu",
    ) -> None:
        if image_size is not None and not (
            isinstance(image_size, Sequence)
            and len(image_size) == 2
            and all(isinstance(side, int) and side > 0 for side in image_size)
        ):
            raise InputError(f"{image_size=}: give rows and columns, two whole numbers above 0")
        if channels < 1:
            raise InputError(f"{channels=}: {name} must take at least one channel")
        for argument, value in {"mean": mean, "std": std}.items():
            if torch.as_tensor(value).numel() not in (1, channels):
                raise InputError(f"{argument}={value}: give one value, or one for each of the {channels} channels")
        if not bool((torch.as_tensor(std) > 0).all()):
            raise InputError(f"{std=}: must be above 0")
        self.network, self.name, self.image_size, self.device = network, name, image_size, torch.device(device)
        self.channels, self.mean, self.std, self.batch_size = channels, mean, std, batch_size

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        image_size: Sequence[int] | None = None,
        channels: int = 3,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        device: torch.device | str = "cpu",
    ) -> NetworkFeatures:
        """The features of a TorchScript file's network, whose name is the file's; arguments as for the class.

        Raises:
            InputError: no such file, it is not TorchScript, or an argument is out of its range.
        """
        try:
            network = torch.jit.load(Path(path), map_location=device)
        except (OSError, RuntimeError, ValueError) as error:
            mend = "give a file that torch.jit.save wrote"
            raise InputError(f"{path} cannot be read as TorchScript ({error}): {mend}") from error
        name = Path(path).stem
        return cls(network, name=name, image_size=image_size, channels=channels, mean=mean, std=std, device=device)

    @property
    def description(self) -> str:
        """The feature space in a sentence, for a report."""
        size = "the images' own size" if self.image_size is None else f"{self.image_size[0]} x {self.image_size[1]}"
        return f"features of {self.name} at {size}"

    def __call__(self, images_bchw: Tensor) -> Tensor:
        """Features (n, f) of images (n, 1, h, w)."""
        images_bchw = checked_images(images_bchw, "images")
        if isinstance(self.network, torch.nn.Module):
            self.network.eval()
        return checked_features(in_batches(self._compute, images_bchw, self.batch_size), f"features of {self.name}")

    def _compute(self, images_bchw: Tensor) -> Tensor:
        images_bchw = images_bchw.to(self.device)
        if self.image_size is not None:
            images_bchw = F.interpolate(images_bchw, tuple(self.image_size), mode="bilinear", antialias=True)
        mean, std = (torch.as_tensor(value).to(images_bchw).reshape(1, -1, 1, 1) for value in (self.mean, self.std))
        inputs_bchw = (images_bchw.expand(-1, self.channels, -1, -1) - mean) / std
        try:
            output = self.network(inputs_bchw)
        except RuntimeError as error:
            raise InputError(
                f"{self.name} does not take images of shape {tuple(inputs_bchw.shape)}: give the channels and the "
                f"image size that it wants ({error})"
            ) from error
        if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != len(images_bchw):
            given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InputError(
                f"{self.name} returned {given} for {len(images_bchw)} images: a feature network returns (n, f), "
                "wrap it to pick its pooled output"
            )
        return (output.flatten(2).mean(2) if output.ndim > 2 else output).cpu()
