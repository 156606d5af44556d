"""Scores of lesion maps are those of brute force over every pixel."""

from __future__ import annotations

import numpy as np
import pytest

from monai_vqgen.errors import InputError
from monai_vqgen.metrics import count_pixels, lesion_scores, lesions_found


def example(levels: int | None = None):
    rng = np.random.default_rng(0)
    masks = rng.random((6, 12, 12)) < 0.15
    scores = rng.random((6, 12, 12)) + 0.5 * masks
    if levels:
        scores = np.floor(scores * levels)
    brain = rng.random((6, 12, 12)) < 0.8
    return scores, masks, brain, ["a", "a", "b", "b", "c", "c"]


@pytest.mark.parametrize("levels", [None, 5], ids=["no ties", "ties"])
def test_scores_are_those_of_brute_force(levels):
    scores, masks, brain, subjects = example(levels)
    values, truth = scores[brain], masks[brain]
    precisions, dices = [], []
    for value in values[truth]:
        called = values >= value
        precisions.append((called & truth).sum() / called.sum())
    for value in np.unique(values):
        called = values >= value
        dices.append(2 * (called & truth).sum() / (called.sum() + truth.sum()))
    pairs = values[truth][:, None] - values[~truth]
    threshold = float(np.quantile(values[~truth], 0.9))
    called = values > threshold
    found = lesion_scores(count_pixels(scores, masks, brain, subjects), threshold=threshold, resamples=20)
    assert found.ap == pytest.approx(np.mean(precisions))
    assert found.auroc == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2)
    assert found.best_dice == pytest.approx(max(dices))
    assert found.dice == pytest.approx(2 * (called & truth).sum() / (called.sum() + truth.sum()))


def test_many_distinct_scores_are_counted_in_bins_with_little_loss():
    rng = np.random.default_rng(1)
    masks = rng.random((2, 100, 100)) < 0.05
    scores = rng.normal(size=masks.shape) + 2 * masks
    values, truth = scores.ravel(), masks.ravel()
    order = np.argsort(-values)
    exact = (np.cumsum(truth[order]) / np.arange(1, len(order) + 1))[truth[order]].mean()
    found = lesion_scores(count_pixels(scores, masks, masks | True, ["a", "b"]), threshold=1.0, resamples=2)
    assert found.ap == pytest.approx(exact, abs=1e-3)


def test_the_bootstrap_draws_subjects_not_pixels():
    scores, masks, brain, _ = example()
    one = lesion_scores(count_pixels(scores, masks, brain, ["a"] * 6), threshold=0.5, resamples=50)
    assert one.ap_interval == (one.ap, one.ap)
    several = lesion_scores(count_pixels(scores, masks, brain, list("abcdef")), threshold=0.5, resamples=200)
    assert several.ap_interval[0] < several.ap < several.ap_interval[1]


def test_lesions_are_found_by_size():
    masks = np.zeros((1, 20, 20), dtype=bool)
    masks[0, :3, :3] = masks[0, 10:, 10:] = True
    called = np.zeros_like(masks)
    called[0, 1, 1] = called[0, 5, 5] = True
    assert lesions_found(called, masks, sizes=(0, 50, 200)) == {"1 to 50": (1, 1), "51 to 200": (0, 1)}


@pytest.mark.parametrize("fill", [False, True], ids=["no lesion", "nothing else"])
def test_masks_that_tell_nothing_apart_are_refused(fill):
    scores, masks, brain, subjects = example()
    with pytest.raises(InputError, match="nothing to tell apart"):
        count_pixels(scores, np.full_like(masks, fill), brain, subjects)
    with pytest.raises(InputError, match="shapes"):
        count_pixels(scores[:, :5], masks, brain, subjects)
