"""Whether samples are new: the training slices nearest to them, beside those nearest to held-out real slices.

Nearest by features, or by pixels over small shifts and the mirror.

Shape suffixes: n training images, m other images (samples or held-out slices), f features, h rows, w columns, p pixels.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from monai_vqgen.errors import InputError
from monai_vqgen.metrics.features import check_same_size, checked_features, checked_images, distance_blocks
from monai_vqgen.metrics.fidelity import Neighborhoods

IMAGE_CHUNK = 128  # images compared at once with a chunk of training images
TRAINING_CHUNK = 512  # training images; with 256 x 256 pixels a chunk takes 128 MiB, its squares as much


class FeatureNeighbors(NamedTuple):
    """The nearest training image of every image, by the Euclidean distance of features.

    Attributes:
        distances_m: float64.
        indices_m: which training image, int64.
    """

    distances_m: Tensor
    indices_m: Tensor


class AlignedNeighbors(NamedTuple):
    """The nearest training image of every image, by pixels after alignment.

    Attributes:
        distances_m: root mean squared difference over the overlap, in the images' range, float64.
        indices_m: which training image, int64.
        shifts_m2: (rows, columns) by which the image was moved down and right to meet it, after mirroring, int64.
        mirrored_m: whether the image was mirrored left to right, bool.
    """

    distances_m: Tensor
    indices_m: Tensor
    shifts_m2: Tensor
    mirrored_m: Tensor


def feature_neighbors(images_mf: Tensor, training_nf: Tensor) -> FeatureNeighbors:
    """Nearest training image of every image in a feature space.

    Raises:
        InputError: an empty set, features of different sizes, or not finite.

    Examples:
        >>> feature_neighbors(torch.tensor([[4.0]]), torch.tensor([[0.0], [3.0]]))
        FeatureNeighbors(distances_m=tensor([1.], dtype=torch.float64), indices_m=tensor([1]))
    """
    images_mf, training_nf = checked_features(images_mf, "features"), checked_features(training_nf, "training features")
    check_same_size(images_mf, training_nf, "features and training features")
    nearest = [distances.min(1) for _, distances in distance_blocks(images_mf, training_nf)]
    return FeatureNeighbors(torch.cat([x.values for x in nearest]), torch.cat([x.indices for x in nearest]))


class Alignment(NamedTuple):
    """One way to lay an image over another: mirrored or not, then moved down and right."""

    mirrored: bool
    down: int
    right: int

    def overlap(self, size: Sequence[int]) -> tuple[slice, slice]:
        """Rows and columns of the training image that the moved image covers."""
        moves = zip(size, (self.down, self.right), strict=True)
        rows, columns = (slice(max(move, 0), length + min(move, 0)) for length, move in moves)
        return rows, columns

    def apply(self, images_mhw: Tensor) -> Tensor:
        """The images mirrored and moved, black (zero) where nothing covers the plane."""
        rows, columns = self.overlap(images_mhw.shape[1:])
        moved_mhw = torch.zeros_like(images_mhw)
        source_mhw = images_mhw.flip(-1) if self.mirrored else images_mhw
        opposite = Alignment(self.mirrored, -self.down, -self.right).overlap(images_mhw.shape[1:])
        moved_mhw[:, rows, columns] = source_mhw[:, opposite[0], opposite[1]]
        return moved_mhw


def _best_alignments(
    images_mhw: Tensor, training_nhw: Tensor, alignments: Sequence[Alignment]
) -> tuple[Tensor, Tensor]:
    """Index of the nearest training image and of the best alignment, of every image."""
    best_m = torch.full((len(images_mhw),), math.inf, device=images_mhw.device)
    index_m = torch.zeros(len(images_mhw), dtype=torch.int64, device=images_mhw.device)
    alignment_m = torch.zeros_like(index_m)
    for start in range(0, len(training_nhw), TRAINING_CHUNK):
        chunk_nhw = training_nhw[start : start + TRAINING_CHUNK]
        squares_nhw = chunk_nhw.square()
        for number, alignment in enumerate(alignments):
            rows, columns = alignment.overlap(chunk_nhw.shape[1:])
            squares_n = squares_nhw[:, rows, columns].sum((1, 2))
            area = (rows.stop - rows.start) * (columns.stop - columns.start)
            for first in range(0, len(images_mhw), IMAGE_CHUNK):
                part = slice(first, first + IMAGE_CHUNK)
                moved_mp = alignment.apply(images_mhw[part]).flatten(1)  # all pairs by one matrix product
                products_mn = moved_mp @ chunk_nhw.flatten(1).T
                nearest = ((moved_mp.square().sum(1, keepdim=True) + squares_n - 2 * products_mn) / area).min(1)
                nearer = nearest.values < best_m[part]
                best_m[part] = torch.where(nearer, nearest.values, best_m[part])
                index_m[part] = torch.where(nearer, nearest.indices + start, index_m[part])
                alignment_m[part] = torch.where(nearer, number, alignment_m[part])
    return index_m, alignment_m


def _exact_distance(image_hw: Tensor, training_hw: Tensor, alignment: Alignment) -> float:
    rows, columns = alignment.overlap(image_hw.shape)
    moved_hw = alignment.apply(image_hw[None].double())[0]
    return float((moved_hw - training_hw.double())[rows, columns].square().mean().sqrt())


def aligned_neighbors(
    images_mchw: Tensor, training_nchw: Tensor, *, max_shift: int = 3, mirror: bool = True
) -> AlignedNeighbors:
    """Nearest training image of every image in pixels, over all small shifts and the left-right mirror.

    distance = min over training image, mirror, shift of the RMS difference over the pixels where both images are, so a
    shifted copy is at distance zero even where its border was cut off. The search expands |a - b|² into one matrix
    product for each alignment, 2 (2 max_shift + 1)² of them, over chunks of both sets; the distance to the image found
    is then taken directly, in float64. Cost: 98 products of (m, pixels) by (pixels, n) at the default.

    Args:
        images_mchw: samples or held-out slices, (m, 1, h, w) in [0, 1].
        training_nchw: all training slices, same size.
        max_shift: pixels along each axis, both ways.
        mirror: whether the image's left-right mirror is tried too.

    Raises:
        InputError: an empty set, images of different sizes, not finite or out of range, or shifts of half an image.

    Examples:
        >>> training = torch.rand(5, 1, 32, 32)
        >>> copy = training[3:4].roll((2, -1), (2, 3)).flip(3)
        >>> found = aligned_neighbors(copy, training)
        >>> found.indices_m.item(), found.shifts_m2.tolist(), found.mirrored_m.item(), found.distances_m.item()
        (3, [[-2, 1]], True, 0.0)
    """
    images_mchw, training_nchw = checked_images(images_mchw, "images"), checked_images(training_nchw, "training images")
    check_same_size(images_mchw, training_nchw, "images and training images")
    if not 0 <= max_shift <= min(images_mchw.shape[2:]) // 4:
        raise InputError(
            f"{max_shift=} of images of {tuple(images_mchw.shape[2:])} pixels: give 0 to a quarter of the shorter side"
        )
    shifts = sorted(range(-max_shift, max_shift + 1), key=abs)  # of equal distances the smallest shift is reported
    mirrors = (False, True) if mirror else (False,)
    alignments = [Alignment(mirrored, down, right) for mirrored in mirrors for down in shifts for right in shifts]
    # a common offset changes no difference, and near zero the expanded square loses fewer digits
    offset = training_nchw.mean()
    indices_m, alignment_m = _best_alignments(images_mchw[:, 0] - offset, training_nchw[:, 0] - offset, alignments)
    chosen = [alignments[number] for number in alignment_m.tolist()]
    distances = [
        _exact_distance(image_hw, training_nchw[index, 0], alignment)
        for image_hw, index, alignment in zip(images_mchw[:, 0], indices_m.tolist(), chosen, strict=True)
    ]
    return AlignedNeighbors(
        torch.tensor(distances, dtype=torch.float64),
        indices_m.cpu(),
        torch.tensor([(alignment.down, alignment.right) for alignment in chosen]),
        torch.tensor([alignment.mirrored for alignment in chosen]),
    )


class ClosestPair(NamedTuple):
    """One image and its nearest training image: their indices and their distance."""

    image: int
    training: int
    distance: float


class MemorizationAudit(NamedTuple):
    """Nearest training distances of samples beside those of held-out real slices.

    Attributes:
        share_below: share of samples nearer to a training slice than `threshold`; percentile / 100 in expectation for
            samples that are as new as held-out slices are.
        threshold: that percentile of the held-out slices' distances. Below 100 / percentile held-out slices it is
            little more than the smallest of them.
        percentile: in percent.
        samples_median: median nearest distance of the samples.
        held_out_median: median nearest distance of the held-out slices.
        num_samples: how many samples.
        num_held_out: how many held-out slices.
        closest: the samples nearest to a training slice, nearest first.
    """

    share_below: float
    threshold: float
    percentile: float
    samples_median: float
    held_out_median: float
    num_samples: int
    num_held_out: int
    closest: tuple[ClosestPair, ...]


class Authenticity(NamedTuple):
    """Share of samples that are no noisy copy of a training image, and which they are (bool, one a sample)."""

    rate: float
    authentic_m: Tensor


def memorization_audit(
    samples: FeatureNeighbors | AlignedNeighbors,
    held_out: FeatureNeighbors | AlignedNeighbors,
    *,
    percentile: float = 1.0,
    num_pairs: int = 8,
) -> MemorizationAudit:
    """Set the nearest training distances of samples against those of held-out real slices.

    Args:
        samples: nearest training slices of the samples.
        held_out: nearest training slices of real slices of other subjects, found in the same way.
        percentile: of the held-out distances, in percent, below which a sample counts as too near.
        num_pairs: how many of the closest pairs to return; fewer where there are fewer samples.

    Raises:
        InputError: distances of two kinds, no images, a percentile outside [0, 100], or a threshold of zero, which
            means that held-out slices are training slices.

    Examples:
        >>> from monai_vqgen.metrics import aligned_neighbors
        >>> real = torch.rand(30, 1, 32, 32)
        >>> audit = memorization_audit(aligned_neighbors(real[:1], real[:20]), aligned_neighbors(real[20:], real[:20]))
        >>> audit.share_below, audit.closest
        (1.0, (ClosestPair(image=0, training=0, distance=0.0),))
    """
    if type(samples) is not type(held_out) or not 0 <= percentile <= 100 or num_pairs < 0:
        raise InputError(
            f"{type(samples).__name__} against {type(held_out).__name__} at {percentile=} with {num_pairs=}: "
            "find both neighbors in one way, percentile 0 to 100, no negative number of pairs"
        )
    if len(samples.distances_m) == 0 or len(held_out.distances_m) == 0:
        raise InputError("no samples or no held-out slices: give at least one of each")
    sample_m, held_out_m = samples.distances_m.double().cpu(), held_out.distances_m.double().cpu()
    threshold = float(held_out_m.quantile(percentile / 100))
    if threshold <= 0:
        raise InputError("held-out slices equal training slices: split by subject, and leave empty slices out")
    order = sample_m.argsort(stable=True)[:num_pairs].tolist()
    return MemorizationAudit(
        share_below=float((sample_m < threshold).double().mean()),
        threshold=threshold,
        percentile=percentile,
        samples_median=float(sample_m.quantile(0.5)),
        held_out_median=float(held_out_m.quantile(0.5)),
        num_samples=len(sample_m),
        num_held_out=len(held_out_m),
        closest=tuple(ClosestPair(i, int(samples.indices_m[i]), float(sample_m[i])) for i in order),
    )


def authenticity(
    samples_mf: Tensor, training_nf: Tensor, *, training_subjects: Sequence[Hashable] | None = None
) -> Authenticity:
    """Authenticity of Alaa et al. 2022: the share of samples that are no noisy copies of a training image.

    A sample is a copy when it is nearer to its nearest training image than any other training image is to that one.

    Give the rate beside that of held-out real slices, which is not 1 either.

    Args:
        samples_mf: features of samples.
        training_nf: features of training images.
        training_subjects: the subject of every training image; "any other" then means of another subject. Without it
            the neighboring slices of a subject set so small a radius that copies pass.

    Raises:
        InputError: fewer than two training images or subjects, features of different sizes, or not finite.

    Examples:
        >>> training = torch.eye(4)
        >>> authenticity(torch.stack([training[0] * 0.9, training[0] * -3]), training).authentic_m
        tensor([False,  True])
    """
    radii_n = Neighborhoods(training_nf, training_subjects, 1, "training features").radii_n
    nearest = feature_neighbors(samples_mf, training_nf)
    authentic_m = nearest.distances_m >= radii_n[nearest.indices_m]
    return Authenticity(float(authentic_m.double().mean()), authentic_m)
