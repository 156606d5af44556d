"""How well scores find lesions: average precision, area under the ROC curve, Dice at a threshold, lesions found.

Scores are counted in bins that all subjects share, so that a bootstrap over subjects only adds counts.
Shape legend: u subjects, k bins, b slices, h w rows and columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_vqgen.errors import InputError

__all__ = ["LesionScores", "PixelCounts", "average_precision", "count_pixels", "lesion_scores", "lesions_found"]

BINS = 4096  # quantiles of all scores; ties within one change an average precision by less than 0.001
SIZES = (0, 60, 120, 10**9)  # pixels: small, middle and large lesions


class PixelCounts(NamedTuple):
    """Pixels of each subject by score, from the highest bin to the lowest.

    Attributes:
        healthy_uk: how many pixels outside lesions.
        lesion_uk: how many within.
        lowest_k: the lowest score of each bin.
    """

    healthy_uk: NDArray
    lesion_uk: NDArray
    lowest_k: NDArray


class LesionScores(NamedTuple):
    """Scores of a map over all pixels of the brain.

    Attributes:
        ap: area under precision and recall; a map that knows nothing has the share of lesion pixels.
        auroc: chance that a lesion's pixel scores above a healthy one.
        dice: of the pixels above the threshold.
        best_dice: at the threshold that is best for these very slices; an upper bound.
        ap_interval: 2.5th and 97.5th percentile of `ap` over subjects drawn with replacement.
        dice_interval: of `dice` likewise.
    """

    ap: float
    auroc: float
    dice: float
    best_dice: float
    ap_interval: tuple[float, float]
    dice_interval: tuple[float, float]


def count_pixels(scores_bhw: NDArray, masks_bhw: NDArray, brain_bhw: NDArray, subjects: Sequence[Any]) -> PixelCounts:
    """Count the brain's pixels by subject and score.

    Raises:
        InputError: arrays of different shapes, no lesion, or nothing but lesions.
    """
    shapes = {np.shape(array) for array in (scores_bhw, masks_bhw, brain_bhw)}
    if len(shapes) > 1 or len(subjects) != len(scores_bhw):
        raise InputError(f"scores, masks and brains have the shapes {sorted(shapes)}: give one value a pixel")
    chosen = brain_bhw.astype(bool)
    values, truth = scores_bhw[chosen], masks_bhw[chosen].astype(bool)
    if not truth.any() or truth.all():
        raise InputError("the masks mark no pixel of the brain, or all: there is nothing to tell apart")
    names, owner_b = np.unique(np.asarray(subjects), return_inverse=True)
    owners = np.broadcast_to(owner_b[:, None, None], chosen.shape)[chosen]
    distinct = np.unique(values)
    edges = distinct if len(distinct) <= BINS else np.unique(np.quantile(distinct, np.linspace(0, 1, BINS + 1)[:-1]))
    bins = len(edges) - np.searchsorted(edges, values, side="right")
    counts = [np.zeros((len(names), len(edges))) for _ in range(2)]
    for count_uk, wanted in zip(counts, (~truth, truth), strict=True):
        np.add.at(count_uk, (owners[wanted], bins[wanted]), 1)
    return PixelCounts(counts[0], counts[1], edges[::-1])


def average_precision(healthy_k: NDArray, lesion_k: NDArray) -> float:
    """Mean precision over the lesions' pixels, highest score first; pixels of one bin count as tied.

    Examples:
        >>> average_precision(np.array([0, 1, 1]), np.array([1, 0, 1]))
        0.75
    """
    found_k, all_k = np.cumsum(lesion_k), np.cumsum(lesion_k + healthy_k)
    return float((found_k / np.maximum(all_k, 1) * lesion_k).sum() / max(found_k[-1], 1))


def _dice_k(healthy_k: NDArray, lesion_k: NDArray) -> NDArray:
    """Dice where everything down to each bin is called a lesion."""
    found_k = np.cumsum(lesion_k)
    dice_k: NDArray = 2 * found_k / (np.cumsum(lesion_k + healthy_k) + lesion_k.sum())
    return dice_k


def lesion_scores(counts: PixelCounts, *, threshold: float, resamples: int = 1000, seed: int = 0) -> LesionScores:
    """All scores, with intervals by a bootstrap over subjects.

    Args:
        counts: of `count_pixels`.
        threshold: pixels above it are called lesions; take it from healthy slices of other subjects.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    healthy_k, lesion_k = counts.healthy_uk.sum(0), counts.lesion_uk.sum(0)
    last = int((counts.lowest_k > threshold).sum()) - 1

    def dice(healthy_k: NDArray, lesion_k: NDArray) -> float:
        return float(_dice_k(healthy_k, lesion_k)[last]) if last >= 0 else 0.0

    below_k = healthy_k.sum() - np.cumsum(healthy_k) + healthy_k / 2
    auroc = float((below_k * lesion_k).sum() / (healthy_k.sum() * lesion_k.sum()))
    return LesionScores(
        average_precision(healthy_k, lesion_k),
        auroc,
        dice(healthy_k, lesion_k),
        float(_dice_k(healthy_k, lesion_k).max()),
        _interval(counts, average_precision, resamples, seed),
        _interval(counts, dice, resamples, seed),
    )


def _interval(
    counts: PixelCounts, of: Callable[[NDArray, NDArray], float], resamples: int, seed: int
) -> tuple[float, float]:
    rng, count = np.random.default_rng(seed), len(counts.lesion_uk)
    values = []
    for _ in range(resamples):
        weight_u = np.bincount(rng.integers(count, size=count), minlength=count)
        if (lesion_k := weight_u @ counts.lesion_uk).any():
            values.append(of(weight_u @ counts.healthy_uk, lesion_k))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def lesions_found(called_bhw: NDArray, masks_bhw: NDArray, sizes: Sequence[int] = SIZES) -> dict[str, tuple[int, int]]:
    """Lesions (connected pixels of a mask) of which any pixel is called one, by size: found, and in all.

    Examples:
        >>> mask = np.zeros((1, 9, 9), dtype=bool)
        >>> mask[0, :2, :2] = mask[0, 5:, 5:] = True
        >>> lesions_found(mask & (np.arange(9) > 6), mask, sizes=(0, 10, 100))
        {'1 to 10': (0, 1), '11 to 100': (1, 1)}
    """
    ends = list(itertools.pairwise(sizes))
    named = {(low, high): f"{low + 1} to {high}" if high < SIZES[-1] else f"over {low}" for low, high in ends}
    counted = dict.fromkeys(named.values(), (0, 0))
    for called_hw, mask_hw in zip(called_bhw, masks_bhw, strict=True):
        labels_hw, _ = ndimage.label(mask_hw)
        areas, hits = np.bincount(labels_hw.ravel())[1:], np.unique(labels_hw[called_hw.astype(bool)])
        for label, area in enumerate(areas, 1):
            name = next((named[end] for end in ends if end[0] < area <= end[1]), None)
            if name is not None:
                found, total = counted[name]
                counted[name] = (found + int(label in hits), total + 1)
    return counted
