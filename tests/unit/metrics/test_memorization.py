"""Copies of training slices are caught, moved and mirrored ones too; the search against a loop over everything."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from monai_vqgen.errors import InputError
from monai_vqgen.metrics.filter_bank import FilterBankFeatures
from monai_vqgen.metrics.memorization import (
    AlignedNeighbors,
    FeatureNeighbors,
    aligned_neighbors,
    authenticity,
    feature_neighbors,
    memorization_audit,
)


def smooth_images(count: int, seed: int, size: tuple[int, int] = (20, 24)) -> torch.Tensor:
    """Blurred noise that reaches the border, so that cut-off parts matter."""
    noise = torch.rand(count, 1, size[0] + 4, size[1] + 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool2d(noise, 5, stride=1) * 2 - 0.5


def moved(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """What is cut off is lost, what comes in is black."""
    height, width = image.shape
    result = np.zeros_like(image)
    for row, column in np.ndindex(height, width):
        if 0 <= row - down < height and 0 <= column - right < width:
            result[row, column] = image[row - down, column - right]
    return result


def by_hand(image: np.ndarray, training: np.ndarray, max_shift: int, mirror: bool) -> tuple[float, int, int, int, bool]:
    best = (math.inf, 0, 0, 0, False)
    moves = range(-max_shift, max_shift + 1)
    for index, mirrored, down, right in itertools.product(
        range(len(training)), (False, True)[: 1 + mirror], moves, moves
    ):
        inside = moved(np.ones_like(image), down, right) > 0
        difference = moved(image[:, ::-1] if mirrored else image, down, right) - training[index]
        best = min(best, (np.sqrt(np.square(difference[inside]).mean()), index, down, right, mirrored))
    return best


@pytest.mark.parametrize(("max_shift", "mirror"), [(2, True), (1, False), (0, True)])
def test_the_search_in_chunks_equals_a_loop_over_everything(max_shift, mirror, monkeypatch):
    monkeypatch.setattr("monai_vqgen.metrics.memorization.IMAGE_CHUNK", 2)
    monkeypatch.setattr("monai_vqgen.metrics.memorization.TRAINING_CHUNK", 3)
    images, training = smooth_images(5, 0, (9, 12)), smooth_images(7, 1, (9, 12))
    found = aligned_neighbors(images, training, max_shift=max_shift, mirror=mirror)
    for row in range(5):
        distance, index, down, right, mirrored = by_hand(
            images[row, 0].double().numpy(), training[:, 0].double().numpy(), max_shift, mirror
        )
        assert found.distances_m[row].item() == pytest.approx(distance)
        assert found.indices_m[row].item() == index
        assert found.shifts_m2[row].tolist() == [down, right]
        assert found.mirrored_m[row].item() == mirrored


@pytest.mark.parametrize(("down", "right", "mirrored"), [(0, 0, False), (3, -2, False), (0, 0, True), (-1, 3, True)])
def test_a_copied_moved_mirrored_training_slice_is_at_distance_zero(down, right, mirrored):
    training = smooth_images(9, 0)
    copy = moved(training[4, 0].numpy(), down, right)
    copy = torch.from_numpy(copy[:, ::-1].copy() if mirrored else copy)[None, None]
    found = aligned_neighbors(copy, training)
    assert found.distances_m.item() == 0
    assert found.indices_m.item() == 4
    # back where it came from: the mirror image of a move to the right is a move to the left, undone after mirroring
    assert found.shifts_m2.tolist() == [[-down, -right]]
    assert found.mirrored_m.item() == mirrored


def test_an_image_moved_beyond_the_search_is_not_at_zero():
    training = smooth_images(5, 0)
    copy = torch.from_numpy(moved(training[2, 0].numpy(), 3, 0))[None, None]
    assert aligned_neighbors(copy, training, max_shift=2).distances_m.item() > 0.01


def test_nearest_in_features_equals_a_loop():
    images, training = torch.rand(6, 3, dtype=torch.float64), torch.rand(11, 3, dtype=torch.float64)
    found = feature_neighbors(images, training)
    for row, image in enumerate(images.tolist()):
        distances = [math.dist(image, other) for other in training.tolist()]
        assert found.distances_m[row].item() == pytest.approx(min(distances))
        assert found.indices_m[row].item() == int(np.argmin(distances))


def test_planted_copies_are_caught_and_new_images_are_not():
    training, held_out, new = smooth_images(40, 0), smooth_images(30, 1), smooth_images(16, 2)
    copies = training[[5, 7]].flip(3).roll(2, dims=2) + 0.001
    samples = torch.cat([new[:3], copies[:1], new[3:], copies[1:]])
    audit = memorization_audit(aligned_neighbors(samples, training), aligned_neighbors(held_out, training), num_pairs=2)
    assert audit.share_below == pytest.approx(2 / 18)
    assert {(pair.image, pair.training) for pair in audit.closest} == {(3, 5), (17, 7)}
    assert all(pair.distance == pytest.approx(0.001, rel=1e-3) for pair in audit.closest)
    assert audit.samples_median == pytest.approx(audit.held_out_median, rel=0.1)
    assert (audit.num_samples, audit.num_held_out) == (18, 30)


def test_a_copy_is_nearest_in_the_stated_feature_space_too():
    bank, training = FilterBankFeatures(), smooth_images(12, 0, (32, 32))
    found = feature_neighbors(bank(training[8:9] * 0.99), bank(training))
    assert found.indices_m.item() == 8
    assert found.distances_m < 0.2 * feature_neighbors(bank(smooth_images(1, 5, (32, 32))), bank(training)).distances_m


def test_threshold_and_share_are_percentiles_by_numpy():
    random = np.random.default_rng(0)
    samples, held_out = random.uniform(0, 2, 300), random.uniform(0.1, 2, 200)
    neighbors = [FeatureNeighbors(torch.from_numpy(x), torch.arange(len(x)) % 7) for x in (samples, held_out)]
    audit = memorization_audit(*neighbors, percentile=5.0)
    assert audit.threshold == pytest.approx(np.percentile(held_out, 5))
    assert audit.share_below == np.mean(samples < np.percentile(held_out, 5))
    assert [pair.image for pair in audit.closest] == np.argsort(samples)[:8].tolist()
    assert [pair.training for pair in audit.closest] == (np.argsort(samples)[:8] % 7).tolist()
    assert audit.held_out_median == pytest.approx(np.median(held_out))


def test_authenticity_equals_a_loop():
    random = torch.Generator().manual_seed(0)
    samples, training = (torch.rand(n, 2, generator=random, dtype=torch.float64) for n in (30, 20))
    expected = []
    for sample in samples.tolist():
        distances = [math.dist(sample, other) for other in training.tolist()]
        nearest = int(np.argmin(distances))
        around = [math.dist(training[nearest], other) for i, other in enumerate(training.tolist()) if i != nearest]
        expected.append(min(distances) >= min(around))
    got = authenticity(samples, training)
    assert got.authentic_m.tolist() == expected
    assert 0 < got.rate == np.mean(expected) < 1


def test_noisy_copies_are_not_authentic_even_when_subjects_have_slices_alike():
    points = 10 * torch.rand(20, 8, generator=torch.Generator().manual_seed(0))
    training = torch.cat([points, points + 0.01])  # two nearly equal slices of every subject
    copies = points + 0.05
    subjects = [index % 20 for index in range(40)]
    assert authenticity(copies, training).rate == 1.0  # the neighboring slice hides the copy
    assert authenticity(copies, training, training_subjects=subjects).rate == 0.0
    assert authenticity(points + 100, training, training_subjects=subjects).rate == 1.0


def neighbors_at(*distances: float) -> FeatureNeighbors:
    return FeatureNeighbors(torch.tensor(distances), torch.zeros(len(distances), dtype=torch.int64))


ALIGNED = AlignedNeighbors(torch.ones(1), torch.zeros(1).long(), torch.zeros(1, 2).long(), torch.zeros(1).bool())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aligned_neighbors(torch.rand(2, 1, 16, 16), torch.rand(2, 1, 16, 17)), "sizes"),
        (lambda: aligned_neighbors(torch.rand(2, 1, 16, 16), torch.rand(0, 1, 16, 16)), "too few"),
        (lambda: aligned_neighbors(torch.rand(2, 1, 16, 16) / 0, torch.rand(2, 1, 16, 16)), "not finite"),
        (lambda: aligned_neighbors(torch.rand(2, 1, 16, 8), torch.rand(2, 1, 16, 8)), "max_shift=3"),
        (lambda: feature_neighbors(torch.rand(2, 3), torch.rand(2, 4)), "sizes"),
        (lambda: memorization_audit(neighbors_at(1), ALIGNED), "in one way"),
        (lambda: memorization_audit(neighbors_at(1), neighbors_at(1), percentile=101), "percentile=101"),
        (lambda: memorization_audit(neighbors_at(), neighbors_at(1)), "no samples"),
        (lambda: memorization_audit(neighbors_at(1), neighbors_at(0, 0)), "split by subject"),
        (lambda: authenticity(torch.rand(2, 3), torch.rand(1, 3)), "too few"),
        (lambda: authenticity(torch.rand(2, 3), torch.rand(3, 3), training_subjects=["a"] * 3), "1 of them different"),
        (lambda: authenticity(torch.rand(2, 3), torch.rand(3, 3), training_subjects=["a", "b"]), "one for each"),
    ],
)
def test_what_cannot_be_audited_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
