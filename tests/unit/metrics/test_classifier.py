"""Two-sample classifiers: chance on one distribution, certainty on two, no subject on both sides."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from monai_vqgen.errors import InputError
from monai_vqgen.metrics.classifier import TwoSampleSplit, cnn_two_sample, linear_two_sample, split_two_samples
from monai_vqgen.metrics.position import fit_ridge


def gaussian(count: int, seed: int, features: int = 4) -> torch.Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed))


def noise_images(count: int, seed: int, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed))


def blurred(images: torch.Tensor) -> torch.Tensor:
    """Same mean, less contrast between neighbors."""
    return torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)


def test_one_distribution_is_at_chance():
    score = linear_two_sample(gaussian(400, 0), gaussian(400, 1), split_two_samples(400, 400))
    assert abs(score.accuracy - 0.5) < 3 * score.standard_error
    assert score.standard_error == pytest.approx(0.5 / math.sqrt(400), rel=0.01)
    assert score.held_out == 400
    score = cnn_two_sample(noise_images(100, 0), noise_images(100, 1), split_two_samples(100, 100), steps=12)
    assert abs(score.accuracy - 0.5) < 3 * score.standard_error


def test_two_distributions_are_told():
    split = split_two_samples(60, 40)
    assert linear_two_sample(gaussian(60, 0), gaussian(40, 1) + 6, split) == (1.0, 0.0, 50)
    score = cnn_two_sample(noise_images(60, 0), blurred(noise_images(40, 1)), split, steps=200)
    assert score.accuracy > 0.95


def test_a_linear_classifier_nears_the_best_that_is_possible():
    """Two unit Gaussians d apart: the best accuracy is Phi(d / 2)."""
    shift = torch.tensor([1.0, 0, 0, 0])
    score = linear_two_sample(gaussian(3000, 0), gaussian(3000, 1) + shift, split_two_samples(3000, 3000))
    assert score.accuracy == pytest.approx(0.5 * (1 + math.erf(0.5 / math.sqrt(2))), abs=3 * score.standard_error)


def test_sets_of_unlike_sizes_are_still_at_chance():
    """Calling everything the larger set would be right nine times in ten."""
    score = linear_two_sample(gaussian(900, 0), gaussian(100, 1), split_two_samples(900, 100))
    assert abs(score.accuracy - 0.5) < 3 * score.standard_error
    few = cnn_two_sample(noise_images(90, 0, 8), noise_images(10, 1, 8), split_two_samples(90, 10), steps=8)
    assert abs(few.accuracy - 0.5) < 3 * max(few.standard_error, 0.05)


def test_accuracy_and_error_by_hand():
    """One feature, threshold between the classes; 3 of 4 and 4 of 4 are right."""
    first = torch.tensor([[-1.0], [-1.2], [-0.8], [-1.1], [-1.0], [-1.0], [-1.0], [5.0]])
    second = -first.clone()
    second[-1] = 1.0
    split = TwoSampleSplit(*(np.arange(0, 4), np.arange(4, 8)) * 2, np.arange(8), np.arange(8, 16))
    score = linear_two_sample(first, second, split)
    assert score.accuracy == pytest.approx((0.75 + 1.0) / 2)
    assert score.standard_error == pytest.approx(0.5 * math.sqrt(0.75 * 0.25 / 4))


@pytest.mark.parametrize("seed", range(4))
def test_no_subject_is_on_both_sides_in_either_set_and_every_kind_is_divided(seed):
    first = [f"s{i // 3}" for i in range(60)]  # s0 to s19, three slices each
    second = [f"s{10 + i % 15}" for i in range(45)]  # s10 to s24
    split = split_two_samples(60, 45, first_subjects=first, second_subjects=second, held_out=0.4, seed=seed)
    learnt = {first[i] for i in split.first_train} | {second[i] for i in split.second_train}
    judged = {first[i] for i in split.first_held_out} | {second[i] for i in split.second_held_out}
    assert learnt & judged == set()
    assert learnt | judged == set(first) | set(second)
    assert len(judged & set(first) - set(second)) == len(judged & set(first) & set(second)) == 4
    assert sorted([*split.first_train, *split.first_held_out]) == list(range(60))
    assert sorted([*split.second_train, *split.second_held_out]) == list(range(45))
    numbers = dict(zip(first + second, [*split.first_groups, *split.second_groups], strict=True))
    assert len(set(numbers.values())) == 25
    assert [numbers[subject] for subject in second] == split.second_groups.tolist()


def test_images_and_their_copies_of_named_subjects_are_at_chance():
    """Split apart they would score far below one half: the label learnt of an image is wrong for its copy."""
    images, subjects = gaussian(200, 0, 60), [f"s{i}" for i in range(200)]
    together = split_two_samples(200, 200, first_subjects=subjects, second_subjects=subjects)
    np.testing.assert_array_equal(together.first_train, together.second_train)
    assert linear_two_sample(images, images, together).accuracy == 0.5


def test_the_linear_classifiers_penalty_is_chosen_by_subject_over_both_sets(monkeypatch):
    """Or the label learnt of an image in one fold would be wrong for its copy in another."""
    seen = []

    def spy(features, targets, *, groups):
        seen.append((features[:, 0].long().tolist(), groups))
        return fit_ridge(features, targets, groups=groups)

    monkeypatch.setattr("monai_vqgen.metrics.classifier.fit_ridge", spy)
    subjects = [index // 2 for index in range(40)]
    features = torch.tensor(subjects, dtype=torch.float64)[:, None]  # each image's feature is its subject
    linear_two_sample(features, features, split_two_samples(40, 40, first_subjects=subjects, second_subjects=subjects))
    assert seen == [(seen[0][1], seen[0][1])]
    assert len(seen[0][1]) == 40


def test_a_split_follows_from_its_seed():
    first, again, other = (split_two_samples(30, 20, seed=seed) for seed in (0, 0, 1))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_a_network_follows_from_its_seed_and_leaves_the_callers_random_state():
    split, x, y = split_two_samples(40, 40), noise_images(40, 0), blurred(noise_images(40, 1)) * 0.5 + 0.25
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = cnn_two_sample(x, y, split, steps=3)
    torch.testing.assert_close(torch.rand(3), expected)
    assert first == cnn_two_sample(x, y, split, steps=3)


def test_several_networks_score_the_mean_of_each_and_their_spread_counts():
    split, x, y = (
        split_two_samples(60, 60),
        noise_images(60, 0),
        blurred(noise_images(60, 1)) * 0.3 + noise_images(60, 1) * 0.7,
    )
    single = [cnn_two_sample(x, y, split, steps=4, networks=1, seed=seed) for seed in (7, 8, 9)]
    accuracies = np.array([score.accuracy for score in single])
    assert accuracies.std() > 0
    both = cnn_two_sample(x, y, split, steps=4, networks=3, seed=7)
    assert both.accuracy == pytest.approx(accuracies.mean())
    errors = np.square([score.standard_error for score in single]).mean() + accuracies.var(ddof=1) / 3
    assert both.standard_error == pytest.approx(np.sqrt(errors))
    assert both.held_out == single[0].held_out


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: split_two_samples(4, 4, first_subjects=["a"] * 4), "at least two subjects"),
        (lambda: split_two_samples(1, 9), "at least two subjects"),
        (lambda: split_two_samples(0, 9), "at least two subjects"),
        (lambda: split_two_samples(4, 4, first_subjects=["a", "b"]), "2 subjects for 4 first images"),
        (lambda: split_two_samples(4, 4, held_out=1.0), "between 0 and 1"),
        (lambda: linear_two_sample(gaussian(5, 0), gaussian(4, 0), split_two_samples(4, 4)), "the split is of 4 and 4"),
        (lambda: linear_two_sample(gaussian(4, 0), gaussian(4, 0, 5), split_two_samples(4, 4)), "sizes"),
        (lambda: linear_two_sample(gaussian(4, 0) / 0, gaussian(4, 0), split_two_samples(4, 4)), "not finite"),
        (
            lambda: cnn_two_sample(noise_images(4, 0), noise_images(4, 0, 8), split_two_samples(4, 4)),
            "first and second images have sizes",
        ),
        (
            lambda: cnn_two_sample(noise_images(4, 0), noise_images(4, 0), split_two_samples(4, 4), steps=0),
            "steps=0",
        ),
    ],
)
def test_what_cannot_be_split_or_told_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
