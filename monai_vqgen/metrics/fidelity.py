"""How near a set of generated images is to a set of real ones, and how varied it is.

Shape suffixes: n images of one set, m images of the other, f features.

All but the last work in a feature space (see `features.py`). None of these numbers means much alone: give them beside
the same number of two disjoint sets of real images, of the same sizes and of different subjects.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from monai.metrics.regression import MultiScaleSSIMMetric
from torch import Tensor

from monai_vqgen.errors import InputError
from monai_vqgen.metrics.features import (
    check_same_size,
    checked_features,
    checked_images,
    distance_blocks,
    subject_numbers,
)
from monai_vqgen.metrics.reconstruction import WINDOW, ms_ssim_weights

PAIR_CHUNK = 32  # pairs of images scored at once


class FrechetScore(NamedTuple):
    """Frechet distance of two Gaussians and its two parts, all in squared units of the features.

    Attributes:
        distance: mean_part + covariance_part, 0 for equal moments.
        mean_part: squared distance of the means.
        covariance_part: what the covariances add.
    """

    distance: float
    mean_part: float
    covariance_part: float


class PrecisionRecall(NamedTuple):
    """Share of generated images among the real (precision), and of real ones among the generated (recall), 0 to 1."""

    precision: float
    recall: float
    neighbors: int


class DensityCoverage(NamedTuple):
    """Density, 0 up, about 1 for a perfect model of independent images, and coverage, 0 to 1."""

    density: float
    coverage: float
    neighbors: int


class PairwiseSimilarity(NamedTuple):
    """How alike the images of one set are: 1 for copies of one image.

    Attributes:
        mean: mean MS-SSIM over the pairs.
        standard_deviation: of MS-SSIM over the pairs.
        pairs: how many pairs were scored.
        scales: how many scales fit the image, five from 176 pixels a side up.
    """

    mean: float
    standard_deviation: float
    pairs: int
    scales: int


def frechet_score(real_nf: Tensor, generated_mf: Tensor) -> FrechetScore:
    """Frechet distance between Gaussians fitted to two sets of features (Heusel et al. 2017, equation 6).

    |mean_r - mean_g|² + tr(C_r + C_g - 2 (C_r C_g)^(1/2)), in float64. The value grows as sets shrink: compare sets of
    equal sizes only, well above the number of features.

    Raises:
        InputError: fewer than two images in a set, features of different sizes, or not finite.

    Examples:
        >>> features = torch.rand(100, 4)
        >>> round(frechet_score(features, features + 2).distance, 3)
        16.0
    """
    real_nf = checked_features(real_nf, "real features", at_least=2)
    generated_mf = checked_features(generated_mf, "generated features", at_least=2)
    check_same_size(real_nf, generated_mf, "real and generated features")
    mean_part = float((real_nf.mean(0) - generated_mf.mean(0)).square().sum())
    real_ff, generated_ff = (x.T.cov().reshape(x.shape[1], -1) for x in (real_nf, generated_mf))
    # The trace of (C1 C2)^(1/2) is the sum of the square roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is
    # symmetric and has none below zero: no imaginary parts, singular covariances welcome (Dowson and Landau 1982).
    values, vectors = torch.linalg.eigh(real_ff)
    root_ff = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product_ff = root_ff @ generated_ff @ root_ff
    trace_of_root = torch.linalg.eigvalsh((product_ff + product_ff.T) / 2).clamp(min=0).sqrt().sum()
    covariance_part = float(real_ff.trace() + generated_ff.trace() - 2 * trace_of_root)
    covariance_part = max(covariance_part, 0.0)  # below only by rounding
    return FrechetScore(mean_part + covariance_part, mean_part, covariance_part)


class Neighborhoods:
    """Balls around points, each as large as the distance to the k-th nearest point of another subject.

    Every point is of a subject of its own where none is named.
    """

    def __init__(self, features_nf: Tensor, subjects: Sequence[Hashable] | None, neighbors: int, name: str) -> None:
        if neighbors < 1:
            raise InputError(f"{neighbors=} must be at least 1")
        self.neighbors = neighbors
        self.centers_nf = checked_features(features_nf, f"{name} for {neighbors} neighbors", at_least=neighbors + 1)
        images = len(self.centers_nf)
        numbers = subject_numbers(range(images) if subjects is None else subjects)
        counts = Counter(numbers)
        if len(numbers) != images or images - max(counts.values()) < neighbors:
            raise InputError(
                f"{len(numbers)} subjects given, {len(counts)} of them different, for {images} {name}: give one for "
                f"each image, and so many that every image has {neighbors} of other subjects"
            )
        self._subject_n = torch.tensor(numbers, device=self.centers_nf.device)

    @cached_property
    def radii_n(self) -> Tensor:
        """Of the balls; computed when first asked for, once both sets are known to fit."""
        radii = []
        for rows, distances in distance_blocks(self.centers_nf, self.centers_nf):
            own = self._subject_n[rows, None] == self._subject_n
            radii.append(distances.masked_fill(own, math.inf).kthvalue(self.neighbors, dim=1).values)
        return torch.cat(radii)

    def distances_from(self, points_mf: Tensor) -> Iterator[Tensor]:
        """Distances of points to all centers, a block of points at a time."""
        return (distances for _, distances in distance_blocks(points_mf, self.centers_nf))

    def share_inside(self, points_mf: Tensor) -> float:
        """How many of the points lie in at least one ball, its surface included."""
        inside = [(distances <= self.radii_n).any(1) for distances in self.distances_from(points_mf)]
        return float(torch.cat(inside).double().mean())


def precision_recall(
    real_nf: Tensor,
    generated_mf: Tensor,
    *,
    neighbors: int = 3,
    real_subjects: Sequence[Hashable] | None = None,
    generated_subjects: Sequence[Hashable] | None = None,
) -> PrecisionRecall:
    """Improved precision and recall of Kynkäänniemi et al. 2019, equations 1 and 2.

    Precision: the share of generated points inside at least one ball around a real point, whose radius is the distance
    to that point's k-th nearest real neighbor, its surface included. Recall: the same, the sets exchanged.

    Args:
        real_nf: features of real images.
        generated_mf: features of generated images.
        neighbors: k; 3 as in the paper.
        real_subjects: the subject of every real image; a neighbor then is an image of another subject. Without it the
            next slices of a subject set so small a radius that no other person's slice lies within.
        generated_subjects: the same of the generated images, where they are of somebody (held-out slices in their
            place, or their reconstructions).

    Raises:
        InputError: a set of k images or fewer, or with fewer than k of other subjects; subjects that are not one an
            image; features of different sizes, or not finite.

    Examples:
        >>> features = torch.rand(20, 4)
        >>> precision_recall(features, features)
        PrecisionRecall(precision=1.0, recall=1.0, neighbors=3)
    """
    real = Neighborhoods(real_nf, real_subjects, neighbors, "real features")
    generated = Neighborhoods(generated_mf, generated_subjects, neighbors, "generated features")
    check_same_size(real.centers_nf, generated.centers_nf, "real and generated features")
    return PrecisionRecall(real.share_inside(generated.centers_nf), generated.share_inside(real.centers_nf), neighbors)


def density_coverage(
    real_nf: Tensor, generated_mf: Tensor, *, neighbors: int = 5, real_subjects: Sequence[Hashable] | None = None
) -> DensityCoverage:
    """Density and coverage of Naeem et al. 2020, with balls around the real points alone.

    Density: in how many real balls a generated point lies on average, over k. Coverage: the share of real balls that
    hold a generated point. The balls are open, as in the authors' code, so a set against itself has density 1.

    Args:
        real_nf: features of real images.
        generated_mf: features of generated images.
        neighbors: k; 5 as in the paper.
        real_subjects: the subject of every real image, as for `precision_recall`. Slices of one head are alike, so
            that a ball that reaches one of another subject reaches many: density then has no scale of its own, read it
            beside that of held-out slices.

    Raises:
        InputError: a set of k images or fewer, or real images of which one has fewer than k of other subjects; subjects
            that are not one an image; features of different sizes, or not finite.

    Examples:
        >>> features = torch.rand(20, 4)
        >>> density_coverage(features, features)
        DensityCoverage(density=1.0, coverage=1.0, neighbors=5)
    """
    real = Neighborhoods(real_nf, real_subjects, neighbors, "real features")
    generated_mf = checked_features(
        generated_mf, f"generated features for {neighbors} neighbors", at_least=neighbors + 1
    )
    check_same_size(real.centers_nf, generated_mf, "real and generated features")
    balls, covered_n = 0, torch.zeros(len(real.centers_nf), dtype=torch.bool, device=real.centers_nf.device)
    for distances in real.distances_from(generated_mf):
        inside = distances < real.radii_n
        balls += int(inside.sum())
        covered_n |= inside.any(0)
    return DensityCoverage(balls / (neighbors * len(generated_mf)), float(covered_n.double().mean()), neighbors)


def pairwise_ms_ssim(images_bchw: Tensor, *, pairs: int = 500, seed: int = 0) -> PairwiseSimilarity:
    """MS-SSIM between random pairs of one set: a set less varied than the real one scores higher (Odena et al. 2017).

    MONAI's MS-SSIM with as many scales as the image has room for. Pairs are drawn without repetition by the seed alone,
    so two sets of one size are compared over the same pairs; all pairs are taken where there are no more.

    Args:
        images_bchw: images (n, 1, h, w) in [0, 1].
        pairs: how many pairs to score at most.
        seed: of the draw.

    Raises:
        InputError: fewer than two images, or images smaller than SSIM's window.

    Examples:
        >>> pairwise_ms_ssim(torch.rand(1, 1, 64, 64).expand(4, -1, -1, -1))
        PairwiseSimilarity(mean=1.0, standard_deviation=0.0, pairs=6, scales=3)
    """
    images_bchw = checked_images(images_bchw, "images", at_least=2)
    if pairs < 1 or min(images_bchw.shape[2:]) < WINDOW:
        raise InputError(
            f"{pairs=} of images of {tuple(images_bchw.shape[2:])} pixels: give at least one pair and {WINDOW} pixels"
        )
    first, second = np.triu_indices(len(images_bchw), 1)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(first))[:pairs])
    weights = ms_ssim_weights(images_bchw.shape[2:])
    metric = MultiScaleSSIMMetric(spatial_dims=2, weights=weights)
    scores = torch.cat(
        [
            torch.as_tensor(metric(images_bchw[first[part]], images_bchw[second[part]]))
            for part in np.array_split(chosen, math.ceil(len(chosen) / PAIR_CHUNK))
        ]
    ).double()
    return PairwiseSimilarity(float(scores.mean()), float(scores.std(unbiased=False)), len(chosen), len(weights))
