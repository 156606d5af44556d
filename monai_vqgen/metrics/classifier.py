"""Whether a classifier can tell two sets of images apart on images it has not seen: 0.5 when it cannot.

Shape suffixes: n images of one set, m images of the other, b images of a batch, f features, c channels, h, w pixels.

One protocol for every comparison, so that the numbers can stand side by side: samples against real, reconstructions
against real, independent codes against real, and real against real.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_vqgen.errors import InputError
from monai_vqgen.metrics.features import check_same_size, checked_features, checked_images, in_batches
from monai_vqgen.metrics.position import fit_ridge

# The network's recipe, fixed so that accuracies can be compared.
CHANNELS = (16, 32, 64)  # of the three convolutions, each of which halves the image
NORM_GROUPS = 8  # of GroupNorm, which does not let the images of a batch see each other
POOLED = 2  # parts along each side over which the last features are averaged
LEARNING_RATE = 1e-3  # Adam's default
WEIGHT_DECAY = 1e-2  # AdamW's default
BATCH_SIZE = 32


class TwoSampleScore(NamedTuple):
    """How well a classifier tells two sets apart on held-out images.

    Attributes:
        accuracy: mean of the two sets' accuracies, so that 0.5 is chance at any sizes; far below 0.5 means that an
            image and its copy were split apart (name the subjects).
        standard_error: of the accuracy: binomial, 0 where every held-out image is told, and of the mean of several
            classifiers. It counts images as independent, which several slices of one subject are not.
        held_out: images on which the accuracy was taken, of both sets.
    """

    accuracy: float
    standard_error: float
    held_out: int


class TwoSampleSplit(NamedTuple):
    """Which images of each set a classifier learns from, and on which it is judged: ascending indices, int64.

    Attributes:
        first_train: images of the first set to learn from.
        first_held_out: images of the first set to judge on.
        second_train: the same of the second set.
        second_held_out: the same of the second set.
        first_groups: a number for the subject of every image of the first set.
        second_groups: the same of the second set; one subject has one number in both.
    """

    first_train: np.ndarray
    first_held_out: np.ndarray
    second_train: np.ndarray
    second_held_out: np.ndarray
    first_groups: np.ndarray
    second_groups: np.ndarray


def _labels(subjects: Sequence[Hashable] | None, count: int, name: str) -> list[Hashable]:
    """The subject of every image; without subjects every image is its own."""
    if subjects is None:
        return [(name, index) for index in range(count)]
    if len(subjects) != count:
        raise InputError(f"{len(subjects)} subjects for {count} {name} images: give one for each image")
    return list(subjects)


def split_two_samples(
    first_count: int,
    second_count: int,
    *,
    first_subjects: Sequence[Hashable] | None = None,
    second_subjects: Sequence[Hashable] | None = None,
    held_out: float = 0.5,
    seed: int = 0,
) -> TwoSampleSplit:
    """Split both sets by subject: all images of a subject, in either set, are learnt from or all are held out.

    Subjects of the first set alone, of the second alone and of both are divided separately, so that every kind is on
    both sides. An image and its reconstruction carry the same subject, and so stay together.

    Args:
        first_count: images in the first set.
        second_count: images in the second set.
        first_subjects: the subject of every image; None takes every image for a subject of its own.
        second_subjects: the same of the second set.
        held_out: share of the subjects to hold out; half, so that learning and judging weigh alike.
        seed: of the division, which is otherwise a function of the order in which subjects first appear.

    Raises:
        InputError: a share outside (0, 1), or too few subjects for both sides to hold images of both sets.

    Examples:
        >>> split = split_two_samples(4, 2, first_subjects=["a", "a", "b", "b"])
        >>> len(split.first_train), len(split.second_held_out)
        (2, 1)
    """
    if not 0 < held_out < 1:
        raise InputError(f"{held_out=} must lie between 0 and 1")
    sets = [_labels(first_subjects, first_count, "first"), _labels(second_subjects, second_count, "second")]
    members = [set(labels) for labels in sets]
    strata: dict[tuple[bool, ...], list[Hashable]] = {}
    numbers = {subject: number for number, subject in enumerate(dict.fromkeys(sets[0] + sets[1]))}
    for subject in numbers:
        strata.setdefault(tuple(subject in one for one in members), []).append(subject)
    random, chosen = np.random.default_rng(seed), set()
    for _, subjects in sorted(strata.items()):
        count = min(max(round(held_out * len(subjects)), 1), len(subjects) - 1)
        chosen |= {subjects[index] for index in random.permutation(len(subjects))[:count]}
    masks = [np.array([label in chosen for label in labels], dtype=bool) for labels in sets]
    if any(not mask.any() or mask.all() for mask in masks):
        raise InputError(
            f"{len(members[0])} and {len(members[1])} subjects are too few to learn from some and hold out others: "
            "give images of at least two subjects in each set"
        )
    parts = [np.flatnonzero(side) for mask in masks for side in (~mask, mask)]
    return TwoSampleSplit(*parts, *(np.array([numbers[label] for label in labels]) for labels in sets))


def _score(first_right: Tensor, second_right: Tensor) -> TwoSampleScore:
    """Balanced accuracy from what was told right in each set."""
    rates = [float(right.double().mean()) for right in (first_right, second_right)]
    counts = [len(first_right), len(second_right)]
    variance = sum(rate * (1 - rate) / count for rate, count in zip(rates, counts, strict=True)) / 4
    return TwoSampleScore(sum(rates) / 2, math.sqrt(variance), sum(counts))


def _mean_score(scores: Sequence[TwoSampleScore]) -> TwoSampleScore:
    """The mean of classifiers judged on the same images: their number makes their spread smaller, not the images'."""
    accuracies = [score.accuracy for score in scores]
    of_images = statistics.fmean(score.standard_error**2 for score in scores)
    of_classifiers = statistics.variance(accuracies) / len(scores) if len(scores) > 1 else 0.0
    return TwoSampleScore(statistics.fmean(accuracies), math.sqrt(of_images + of_classifiers), scores[0].held_out)


def linear_two_sample(first_nf: Tensor, second_mf: Tensor, split: TwoSampleSplit) -> TwoSampleScore:
    """Tell two sets apart by a ridge regression of their label on features (Fisher's discriminant, regularised).

    The penalty is cross-validated on the images learnt from, by subject too.
    The threshold is halfway between the two sets' mean outputs on the images learnt from.

    Args:
        first_nf: features of the first set.
        second_mf: features of the second set.
        split: of `split_two_samples`.

    Raises:
        InputError: features of different sizes or not finite, or a split of other sizes.

    Examples:
        >>> first = torch.rand(40, 3)
        >>> linear_two_sample(first, first + 5, split_two_samples(40, 40)).accuracy
        1.0
    """
    first_nf, second_mf = checked_features(first_nf, "first features"), checked_features(second_mf, "second features")
    check_same_size(first_nf, second_mf, "first and second features")
    _check_split(split, len(first_nf), len(second_mf))
    learnt = [first_nf[split.first_train], second_mf[split.second_train]]
    targets = torch.cat([torch.full((len(one),), sign) for one, sign in zip(learnt, (-1.0, 1.0), strict=True)])
    groups = np.concatenate([split.first_groups[split.first_train], split.second_groups[split.second_train]])
    model = fit_ridge(torch.cat(learnt), targets, groups=groups.tolist())
    threshold = (model.predict(learnt[0]).mean() + model.predict(learnt[1]).mean()) / 2
    return _score(
        model.predict(first_nf[split.first_held_out]) < threshold,
        model.predict(second_mf[split.second_held_out]) > threshold,
    )


def _network() -> nn.Sequential:
    layers: list[nn.Module] = []
    for in_channels, out_channels in zip((1, *CHANNELS), CHANNELS, strict=False):
        layers += [nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)]
        layers += [nn.GroupNorm(NORM_GROUPS, out_channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(POOLED), nn.Flatten(), nn.Linear(CHANNELS[-1] * POOLED**2, 1))


def _trained_network(images_bchw: Tensor, labels_b: Tensor, steps: int, seed: int) -> nn.Sequential:
    """A network trained from the seed alone; the sets weigh alike whatever their sizes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network().to(images_bchw.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    share = labels_b.mean()
    weights_b = torch.where(labels_b > 0, 0.5 / share, 0.5 / (1 - share))
    for batch in islice(_shuffled_batches(len(images_bchw), seed), steps):
        logits_b = network(images_bchw[batch])[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits_b, labels_b[batch], weight=weights_b[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def _shuffled_batches(count: int, seed: int) -> Iterator[np.ndarray]:
    """Indices of batches, for ever; every image once before any comes again."""
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(count)
        yield from (order[start : start + BATCH_SIZE] for start in range(0, count, BATCH_SIZE))


def cnn_two_sample(
    first_nchw: Tensor,
    second_mchw: Tensor,
    split: TwoSampleSplit,
    *,
    steps: int = 500,
    networks: int = 3,
    seed: int = 0,
) -> TwoSampleScore:
    """Tell two sets apart by small networks on their pixels (Lopez-Paz and Oquab 2017).

    Three strided convolutions of 16, 32 and 64 channels with GroupNorm, averages over quarters of the image, one linear
    layer; AdamW for a fixed number of steps, so that held-out images choose nothing. Initial weights and the order of
    batches follow from the seed; the caller's random state is left as it was. One such network may score several
    percent above or below the next: the accuracy is the mean of a few, and its standard error holds their spread too.

    Args:
        first_nchw: images of the first set in [0, 1].
        second_mchw: images of the second set.
        split: of `split_two_samples`.
        steps: gradient steps of a network, each on 32 images.
        networks: how many, of seeds that follow each other.
        seed: of weights and order of the first.

    Raises:
        InputError: images of different sizes, not finite or out of range, or a split of other sizes.

    Examples:
        >>> images = torch.rand(16, 1, 32, 32)
        >>> 0 <= cnn_two_sample(images, images / 2, split_two_samples(16, 16), steps=5).accuracy <= 1
        True
    """
    first_nchw, second_mchw = checked_images(first_nchw, "first images"), checked_images(second_mchw, "second images")
    check_same_size(first_nchw, second_mchw, "first and second images")
    _check_split(split, len(first_nchw), len(second_mchw))
    if steps < 1 or networks < 1:
        raise InputError(f"{steps=} and {networks=} must be at least 1")
    learnt = [first_nchw[split.first_train], second_mchw[split.second_train]]
    images_bchw = torch.cat(learnt)
    labels_b = torch.cat([torch.full((len(one),), float(index)) for index, one in enumerate(learnt)])
    mean, std = images_bchw.mean(), images_bchw.std().clamp(min=torch.finfo(torch.float32).eps)
    held_out = [(one - mean) / std for one in (first_nchw[split.first_held_out], second_mchw[split.second_held_out])]
    scores = []
    for number in range(networks):
        network = _trained_network((images_bchw - mean) / std, labels_b.to(images_bchw.device), steps, seed + number)
        first_b, second_b = (in_batches(network, one, BATCH_SIZE)[:, 0] for one in held_out)
        scores.append(_score(first_b < 0, second_b > 0))
    return _mean_score(scores)


def _check_split(split: TwoSampleSplit, first_count: int, second_count: int) -> None:
    given = len(split.first_groups), len(split.second_groups)
    if given != (first_count, second_count):
        raise InputError(
            f"the split is of {given[0]} and {given[1]} images, the sets have {first_count} and {second_count}: "
            "make the split from these sets' sizes"
        )
