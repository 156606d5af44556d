"""Whether samples are new: the training slices nearest to them, beside those nearest to held-out real slices.

Shape suffixes: n training images, m other images (samples or held-out slices), f features.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from monai_vqgen.errors import InputError
from monai_vqgen.metrics.features import checked_features, distance_blocks
from monai_vqgen.metrics.neighbors import AlignedNeighbors, FeatureNeighbors, feature_neighbors

__all__ = [
    "Authenticity",
    "ClosestPair",
    "MemorizationAudit",
    "authenticity",
    "memorization_audit",
]


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
    training_nf = checked_features(training_nf, "training features", at_least=2)
    subjects = list(range(len(training_nf))) if training_subjects is None else list(training_subjects)
    if len(subjects) != len(training_nf) or len(set(subjects)) < 2:
        raise InputError(
            f"{len(subjects)} subjects given, {len(set(subjects))} of them different, for {len(training_nf)} training "
            "images: give one for each image, and at least two"
        )
    nearest = feature_neighbors(samples_mf, training_nf)
    numbers = {subject: number for number, subject in enumerate(dict.fromkeys(subjects))}
    subject_n = torch.tensor([numbers[subject] for subject in subjects], device=training_nf.device)
    radii = []
    for rows, distances in distance_blocks(training_nf, training_nf):
        radii.append(distances.masked_fill(subject_n[rows, None] == subject_n, math.inf).min(1).values)
    authentic_m = nearest.distances_m >= torch.cat(radii)[nearest.indices_m]
    return Authenticity(float(authentic_m.double().mean()), authentic_m)
