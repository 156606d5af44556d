"""Set distances against closed forms and brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from monai_vqgen.errors import InputError
from monai_vqgen.metrics.fidelity import (
    density_coverage,
    frechet_score,
    pairwise_ms_ssim,
    precision_recall,
)
from monai_vqgen.metrics.reconstruction import reconstruction_scores


def gaussian(count: int, features: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(points: torch.Tensor, mean: np.ndarray, root: np.ndarray) -> torch.Tensor:
    """Points whose sample mean and covariance are exactly `mean` and root @ root.T."""
    x = points.numpy() - points.numpy().mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return torch.from_numpy(x @ root.T + mean)


def test_frechet_distance_of_diagonal_gaussians_has_a_closed_form():
    mean, sigma, mean2, sigma2 = np.array([1.0, 2, 3]), np.array([1.0, 2, 0.5]), np.zeros(3), np.array([3.0, 1, 0.5])
    first = with_moments(gaussian(50), mean, np.diag(sigma))
    second = with_moments(gaussian(70, seed=1), mean2, np.diag(sigma2))
    score = frechet_score(first, second)
    assert score.mean_part == pytest.approx(14)
    assert score.covariance_part == pytest.approx(np.sum((sigma - sigma2) ** 2))
    assert score.distance == pytest.approx(score.mean_part + score.covariance_part)


def test_frechet_distance_of_covariances_that_do_not_commute_equals_scipys_matrix_root():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 4, 4))
    a, b = a @ a.T, b @ b.T
    first = with_moments(gaussian(50, 4), np.zeros(4), np.linalg.cholesky(a))
    score = frechet_score(first, with_moments(gaussian(70, 4, seed=1), np.ones(4), np.linalg.cholesky(b)))
    assert score.distance == pytest.approx(4 + np.trace(a + b - 2 * sqrtm(a @ b).real))
    assert np.abs(a @ b - b @ a).max() > 0.1


def test_frechet_distance_is_sound_with_fewer_images_than_features():
    few, other = gaussian(10, 40), gaussian(12, 40, seed=1)
    assert frechet_score(few, few).distance == pytest.approx(0, abs=1e-5)
    # the nuclear norm of the product of the two centerd factors is the trace of the root
    x, y = ((z - z.mean(0)).numpy() / math.sqrt(len(z) - 1) for z in (few, other))
    trace = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    expected = (
        np.square((few.mean(0) - other.mean(0)).numpy()).sum() + np.square(x).sum() + np.square(y).sum() - 2 * trace
    )
    assert frechet_score(few, other).distance == pytest.approx(float(expected), rel=1e-5)


def test_a_set_against_itself_has_precision_recall_density_and_coverage_one():
    points = gaussian(40)
    assert precision_recall(points, points) == (1.0, 1.0, 3)
    density, coverage, neighbors = density_coverage(points, points)
    assert (density, coverage, neighbors) == (pytest.approx(1.0), 1.0, 5)


def test_disjoint_sets_have_none():
    assert precision_recall(gaussian(40), gaussian(30, seed=1) + 100)[:2] == (0.0, 0.0)
    assert density_coverage(gaussian(40), gaussian(30, seed=1) + 100)[:2] == (0.0, 0.0)


def test_a_model_of_one_mode_of_two_is_precise_and_recalls_half():
    mode = gaussian(30)
    real, generated = torch.cat([mode, mode + 100]), mode + 1e-6
    precision, recall, _ = precision_recall(real, generated)
    assert (precision, recall) == (1.0, 0.5)
    assert density_coverage(real, generated).coverage == 0.5


def by_hand(
    real: np.ndarray,
    generated: np.ndarray,
    k: int,
    subjects: Sequence[object] | None = None,
    generated_subjects: Sequence[object] | None = None,
) -> tuple[float, float, float, float]:
    def radius(index: int, points: np.ndarray, whose: Sequence[object]) -> float:
        return sorted(math.dist(points[index], p) for p, w in zip(points, whose, strict=True) if w != whose[index])[
            k - 1
        ]

    def inside(point: np.ndarray, centers: np.ndarray, whose: Sequence[object] | None) -> list[bool]:
        whose = whose or range(len(centers))
        return [math.dist(point, center) < radius(i, centers, whose) for i, center in enumerate(centers)]

    balls = np.array([inside(point, real, subjects) for point in generated])
    recall = np.mean([any(inside(point, generated, generated_subjects)) for point in real])
    return balls.any(1).mean(), recall, balls.sum() / (k * len(generated)), balls.any(0).mean()


@pytest.mark.parametrize("k", [1, 4])
def test_neighborhoods_equal_a_count_by_hand_in_blocks_of_any_size(k, monkeypatch):
    real, generated = gaussian(25), gaussian(17, seed=1) * 1.5 + 0.5
    expected = by_hand(real.numpy(), generated.numpy(), k)
    assert min(expected) > 0
    assert max(expected[0], expected[3]) < 1
    for chunk in (256, 7):
        monkeypatch.setattr("monai_vqgen.metrics.features.DISTANCE_CHUNK", chunk)
        got = precision_recall(real, generated, neighbors=k)[:2] + density_coverage(real, generated, neighbors=k)[:2]
        assert got == pytest.approx(expected)


def test_neighborhoods_of_other_subjects_equal_a_count_by_hand(monkeypatch):
    monkeypatch.setattr("monai_vqgen.metrics.features.DISTANCE_CHUNK", 7)
    real, generated = gaussian(25), gaussian(18, seed=1) * 1.5 + 0.5
    whose, others = [f"sub-{i // 4}" for i in range(25)], [i % 3 for i in range(18)]
    expected = by_hand(real.numpy(), generated.numpy(), 2, whose, others)
    assert expected != by_hand(real.numpy(), generated.numpy(), 2)
    pair = precision_recall(real, generated, neighbors=2, real_subjects=whose, generated_subjects=others)
    assert pair[:2] + density_coverage(real, generated, neighbors=2, real_subjects=whose)[:2] == pytest.approx(expected)


def test_slices_of_a_new_subject_lie_among_the_real_only_where_neighbors_are_other_subjects():
    centers = 3 * gaussian(9)
    subjects = (centers[:, None] + 0.01 * gaussian(9 * 6, seed=1).view(9, 6, 3)).flatten(0, 1)  # six slices each
    training, held_out, whose = subjects[:48], subjects[48:], [i // 6 for i in range(48)]
    assert precision_recall(training, held_out).precision == 0
    assert density_coverage(training, held_out).density == 0
    assert precision_recall(training, held_out, real_subjects=whose).precision == 1
    assert density_coverage(training, held_out, real_subjects=whose).density > 0.5


def test_points_on_the_surface_of_a_ball_count_for_precision_but_not_for_density():
    real = torch.tensor([[0.0], [1.0]])
    generated = torch.tensor([[2.0], [-1.0]])
    assert precision_recall(real, generated, neighbors=1).precision == 1.0
    assert density_coverage(real, generated, neighbors=1)[:2] == (0.0, 0.0)


def images(count: int, size: int = 48) -> torch.Tensor:
    noise = torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0))
    return 0.5 * noise + 0.5 * torch.linspace(0, 1, size)


def test_pairwise_similarity_is_the_mean_over_all_pairs_where_they_are_few():
    x = images(5)
    pairs = list(itertools.combinations(range(5), 2))
    scores = reconstruction_scores(x[[a for a, _ in pairs]], x[[b for _, b in pairs]]).ms_ssim
    got = pairwise_ms_ssim(x, pairs=500)
    assert got.mean == pytest.approx(scores.mean().item(), rel=1e-5)
    assert got.standard_deviation == pytest.approx(scores.std(unbiased=False).item(), rel=1e-3)
    assert (got.pairs, got.scales) == (10, 3)
    assert pairwise_ms_ssim(images(2, 24)).scales == 2


def test_pairs_are_drawn_by_the_seed_without_repetition():
    x = images(12, 16)
    assert pairwise_ms_ssim(x, pairs=20) == pairwise_ms_ssim(x, pairs=20)
    assert pairwise_ms_ssim(x, pairs=20) != pairwise_ms_ssim(x, pairs=20, seed=1)
    # all but one of the pairs: their sum and the missing pair's score add to the sum of all
    most, every = pairwise_ms_ssim(x, pairs=65), pairwise_ms_ssim(x, pairs=66)
    missing = every.mean * 66 - most.mean * 65
    pairs = np.triu_indices(12, 1)
    scores = reconstruction_scores(x[pairs[0]], x[pairs[1]]).ms_ssim
    assert (scores - missing).abs().min().item() < 1e-4


def test_copies_of_one_image_are_entirely_alike_and_different_ones_less():
    assert pairwise_ms_ssim(images(1).expand(4, -1, -1, -1)).mean == pytest.approx(1)
    assert pairwise_ms_ssim(images(4)).mean < 0.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: precision_recall(gaussian(3), gaussian(9)), "3 real features for 3 neighbors are too few"),
        (lambda: density_coverage(gaussian(9), gaussian(5)), "5 generated features for 5 neighbors are too few"),
        (lambda: density_coverage(gaussian(9), gaussian(9), neighbors=0), "neighbors=0"),
        (lambda: precision_recall(gaussian(9), gaussian(9, 4)), "sizes"),
        (lambda: density_coverage(gaussian(9), gaussian(9, 4)), "sizes"),
        (lambda: precision_recall(gaussian(9), gaussian(9), real_subjects=[1]), "1 subjects given, 1 of them"),
        (
            lambda: precision_recall(gaussian(9), gaussian(9), generated_subjects=[1] * 7 + [2, 3]),
            "every image has 3 of other subjects",
        ),
        (lambda: frechet_score(gaussian(9), gaussian(9, 4)), "sizes"),
        (lambda: frechet_score(gaussian(1), gaussian(9)), "too few"),
        (lambda: frechet_score(gaussian(9), gaussian(9) * math.nan), "not finite"),
        (lambda: pairwise_ms_ssim(images(1)), "too few"),
        (lambda: pairwise_ms_ssim(images(3), pairs=0), "pairs=0"),
        (lambda: pairwise_ms_ssim(torch.rand(3, 1, 10, 30)), "11 pixels"),
    ],
)
def test_sets_that_cannot_be_compared_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
