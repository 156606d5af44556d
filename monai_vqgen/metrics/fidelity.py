"""How near a set of generated images is to a set of real ones, and how varied it is.

Shape suffixes: n images of one set, m images of the other, f features.

All but the last work in a feature space (see `features.py`). None of these numbers means much alone: give them beside
the same number of two disjoint sets of real images, of the same sizes and of different subjects.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from monai.metrics.regression import MultiScaleSSIMMetric
from torch import Tensor

from monai_vqgen.errors import InputError
from monai_vqgen.metrics.features import check_same_size, checked_features, checked_images, distance_blocks
from monai_vqgen.metrics.reconstruction import WINDOW, ms_ssim_weights

__all__ = [
    "DensityCoverage",
    "FrechetScore",
    "PairwiseSimilarity",
    "PrecisionRecall",
    "density_coverage",
    "frechet_score",
    "gaussian_frechet_score",
    "pairwise_ms_ssim",
    "precision_recall",
]

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
    """Density, 0 up and about 1 for a perfect model, and coverage, 0 to 1."""

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

    Example:
        >>> features = torch.rand(100, 4)
        >>> round(frechet_score(features, features + 2).distance, 3)
        16.0
    """
    real_nf = checked_features(real_nf, "real features", at_least=2)
    generated_mf = checked_features(generated_mf, "generated features", at_least=2)
    check_same_size(real_nf, generated_mf, "real and generated features")
    moments = [(x.mean(0), x.T.cov().reshape(x.shape[1], -1)) for x in (real_nf, generated_mf)]
    return gaussian_frechet_score(*moments[0], *moments[1])


def gaussian_frechet_score(
    mean_f: Tensor, covariance_ff: Tensor, mean2_f: Tensor, covariance2_ff: Tensor
) -> FrechetScore:
    """Frechet distance of two Gaussians given by mean and covariance (Dowson and Landau 1982).

    The trace of (C1 C2)^(1/2) is the sum of the square roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is
    symmetric and has none below zero: no square root of a general matrix, no imaginary parts, singular covariances
    welcome.
    """
    values, vectors = torch.linalg.eigh(covariance_ff.double())
    root_ff = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product_ff = root_ff @ covariance2_ff.double() @ root_ff
    trace_of_root = torch.linalg.eigvalsh((product_ff + product_ff.T) / 2).clamp(min=0).sqrt().sum()
    mean_part = float((mean_f.double() - mean2_f.double()).square().sum())
    covariance_part = float(covariance_ff.double().trace() + covariance2_ff.double().trace() - 2 * trace_of_root)
    covariance_part = max(covariance_part, 0.0)  # below only by rounding
    return FrechetScore(mean_part + covariance_part, mean_part, covariance_part)


def _checked_sets(real_nf: Tensor, generated_mf: Tensor, neighbors: int) -> tuple[Tensor, Tensor]:
    if neighbors < 1:
        raise InputError(f"{neighbors=} must be at least 1")
    real_nf = checked_features(real_nf, f"real features for {neighbors} neighbours", at_least=neighbors + 1)
    generated_mf = checked_features(
        generated_mf, f"generated features for {neighbors} neighbours", at_least=neighbors + 1
    )
    check_same_size(real_nf, generated_mf, "real and generated features")
    return real_nf, generated_mf


def _radii(features_nf: Tensor, neighbors: int) -> Tensor:
    """Distance of every point to its k-th nearest neighbour in its own set, itself not counted."""
    radii = []
    for rows, distances in distance_blocks(features_nf, features_nf):
        distances[torch.arange(len(distances)), torch.arange(rows.start, rows.stop)] = math.inf
        radii.append(distances.kthvalue(neighbors, dim=1).values)
    return torch.cat(radii)


def precision_recall(real_nf: Tensor, generated_mf: Tensor, *, neighbors: int = 3) -> PrecisionRecall:
    """Improved precision and recall of Kynkäänniemi et al. 2019, equations 1 and 2.

    Precision: the share of generated points inside at least one ball around a real point, whose radius is the distance
    to that point's k-th nearest real neighbour, its surface included. Recall: the same, the sets exchanged.

    Args:
        real_nf: features of real images.
        generated_mf: features of generated images.
        neighbors: k; 3 as in the paper.

    Raises:
        InputError: a set of k images or fewer, features of different sizes, or not finite.

    Example:
        >>> features = torch.rand(20, 4)
        >>> precision_recall(features, features)
        PrecisionRecall(precision=1.0, recall=1.0, neighbors=3)
    """
    real_nf, generated_mf = _checked_sets(real_nf, generated_mf, neighbors)

    def share_inside(points: Tensor, centers: Tensor) -> float:
        radii = _radii(centers, neighbors)
        inside = [(distances <= radii).any(1) for _, distances in distance_blocks(points, centers)]
        return float(torch.cat(inside).double().mean())

    return PrecisionRecall(share_inside(generated_mf, real_nf), share_inside(real_nf, generated_mf), neighbors)


def density_coverage(real_nf: Tensor, generated_mf: Tensor, *, neighbors: int = 5) -> DensityCoverage:
    """Density and coverage of Naeem et al. 2020, with balls around the real points alone.

    Density: in how many real balls a generated point lies on average, over k. Coverage: the share of real balls that
    hold a generated point. The balls are open, as in the authors' code, so a set against itself has density 1.

    Args:
        real_nf: features of real images.
        generated_mf: features of generated images.
        neighbors: k; 5 as in the paper.

    Raises:
        InputError: a set of k images or fewer, features of different sizes, or not finite.

    Example:
        >>> features = torch.rand(20, 4)
        >>> density_coverage(features, features)
        DensityCoverage(density=1.0, coverage=1.0, neighbors=5)
    """
    real_nf, generated_mf = _checked_sets(real_nf, generated_mf, neighbors)
    radii = _radii(real_nf, neighbors)
    balls, covered = 0, torch.zeros(len(real_nf), dtype=torch.bool, device=real_nf.device)
    for _, distances in distance_blocks(generated_mf, real_nf):
        inside = distances < radii
        balls += int(inside.sum())
        covered |= inside.any(0)
    return DensityCoverage(balls / (neighbors * len(generated_mf)), float(covered.double().mean()), neighbors)


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

    Example:
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
