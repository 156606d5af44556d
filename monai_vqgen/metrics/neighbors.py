"""The training slice nearest to every image: by features, or by pixels over small shifts and the mirror.

Shape suffixes: n training images, m other images (samples or held-out slices), f features, h rows, w columns, p pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from monai_vqgen.errors import InputError
from monai_vqgen.metrics.features import check_same_size, checked_features, checked_images, distance_blocks

__all__ = ["AlignedNeighbors", "FeatureNeighbors", "aligned_neighbors", "feature_neighbors"]

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


class _Alignment(NamedTuple):
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
        opposite = _Alignment(self.mirrored, -self.down, -self.right).overlap(images_mhw.shape[1:])
        moved_mhw[:, rows, columns] = source_mhw[:, opposite[0], opposite[1]]
        return moved_mhw


def _mean_squares(images_mhw: Tensor, training_nhw: Tensor, alignment: _Alignment, squares_n: Tensor) -> Tensor:
    """Mean squared difference over the overlap of all pairs, (m, n), by one matrix product."""
    rows, columns = alignment.overlap(images_mhw.shape[1:])
    moved_mp = alignment.apply(images_mhw).flatten(1)
    products_mn = moved_mp @ training_nhw.flatten(1).T
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return (moved_mp.square().sum(1, keepdim=True) + squares_n - 2 * products_mn) / area


def _best_alignments(
    images_mhw: Tensor, training_nhw: Tensor, alignments: Sequence[_Alignment]
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
            for first in range(0, len(images_mhw), IMAGE_CHUNK):
                part = slice(first, first + IMAGE_CHUNK)
                nearest = _mean_squares(images_mhw[part], chunk_nhw, alignment, squares_n).min(1)
                nearer = nearest.values < best_m[part]
                best_m[part] = torch.where(nearer, nearest.values, best_m[part])
                index_m[part] = torch.where(nearer, nearest.indices + start, index_m[part])
                alignment_m[part] = torch.where(nearer, number, alignment_m[part])
    return index_m, alignment_m


def _exact_distance(image_hw: Tensor, training_hw: Tensor, alignment: _Alignment) -> float:
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
    alignments = [_Alignment(mirrored, down, right) for mirrored in mirrors for down in shifts for right in shifts]
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
