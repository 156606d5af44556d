"""How close samples come to real slices, and whether they come too close: every figure beside what real slices score.

Shape legend: n training slices, m others, c channels, h w rows and columns, f features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from monai_vqgen.data.slices.datalists import evenly_spaced
from monai_vqgen.errors import InputError
from monai_vqgen.metrics import (
    AlignedNeighbors,
    FeatureNeighbors,
    FilterBankFeatures,
    WhitenedFeatures,
    aligned_neighbors,
    authenticity,
    cnn_two_sample,
    density_coverage,
    feature_neighbors,
    frechet_score,
    linear_two_sample,
    memorization_audit,
    pairwise_ms_ssim,
    position_consistency,
    precision_recall,
    split_two_samples,
)

logger = logging.getLogger(__name__)

CLASSIFIER_STEPS = 500  # of each network of `cnn_two_sample`; compare accuracies only at the same number
FEWEST_SAMPLES = 32  # below this many images of a kind no figure here means anything
SMALLEST_SIDE = 32  # pixels: the coarsest scale of `FilterBankFeatures` wants eight of its own, of four pixels each


class ImageSet(NamedTuple):
    """Images `(n, 1, h, w)` in [0, 1], and the record (subject, position_mm, ...) of each where there is one."""

    images: Tensor
    records: Sequence[Mapping[str, Any]] = ()

    def subjects(self) -> list[Any] | None:
        """The subject of every image; None where an image has none."""
        subjects = [record.get("subject") for record in self.records]
        return subjects if subjects and None not in subjects else None

    def positions(self) -> Tensor | None:
        """The position of every image in mm; None where one has none."""
        positions = [record.get("position_mm") for record in self.records]
        return None if not positions or None in positions else torch.tensor(positions, dtype=torch.float64)


def check_sample_report(
    num_samples: int,
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    image_size: Sequence[int] | None = None,
    classifier_steps: int = CLASSIFIER_STEPS,
) -> None:
    """Raise InputError for a report of samples that could not be made, before any work.

    Too few samples, slices, subjects or pixels, or some slices of a split without a subject; no steps of its
    classifiers. `splits` are the records of the training and the test slices; the size may not be known yet.
    """
    if isinstance(classifier_steps, bool) or not isinstance(classifier_steps, int) or classifier_steps < 1:
        raise InputError(f"classifier_steps is {classifier_steps!r}; give a whole number, at least 1, such as 500")
    if image_size is not None and min(image_size) < SMALLEST_SIDE:
        raise InputError(
            f"slices of {tuple(image_size)} pixels: the report of samples needs at least {SMALLEST_SIDE} a side; "
            "extract larger slices"
        )
    for name, count in {"samples": num_samples, **{name: len(records) for name, records in splits.items()}}.items():
        if count < FEWEST_SAMPLES:
            advice = "raise num_samples" if name == "samples" else "extract more slices"
            raise InputError(f"{count} {name}: the report of samples needs at least {FEWEST_SAMPLES}; {advice}")
    for name, records in splits.items():
        subjects = {record.get("subject") for record in records}
        if None in subjects and len(subjects) > 1:
            nameless = sum(record.get("subject") is None for record in records)
            raise InputError(
                f"{nameless} of {len(records)} {name} have no subject: the report of samples evaluates on other "
                "subjects than its classifiers train on; give every slice its subject, or none"
            )
        if len(subjects) < 2 and None not in subjects:
            raise InputError(
                f"all {name} are of one subject ({', '.join(map(str, subjects))}): the report of samples trains on "
                "some subjects and evaluates on others; give scans of more subjects"
            )


def independent_codes(codes: Sequence[Tensor], *, num_samples: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Grids whose every position is drawn from training slices `(n, *s)` on its own: right histograms, no context."""
    rng = np.random.default_rng(seed)
    drawn = []
    for grid in codes:
        flat_np = grid.flatten(1)
        rows = torch.from_numpy(rng.integers(len(flat_np), size=(num_samples, flat_np.shape[1])))
        drawn.append(flat_np.gather(0, rows).view(num_samples, *grid.shape[1:]))
    return tuple(drawn)


class ImageKinds(NamedTuple):
    """What is compared with training slices, and these.

    Attributes:
        samples: drawn from the priors; records carry the position each was asked for, where there was one.
        training: real slices that the model learned from: what all others are compared with.
        test: real slices of other subjects: the baseline; of few heads, so that a perfect model
            would do better in Frechet distance, recall and coverage.
        reconstructions: of the test slices.
        independent: decoded from `independent_codes`: what the autoencoder alone gives.
    """

    samples: ImageSet
    training: ImageSet
    test: ImageSet
    reconstructions: ImageSet
    independent: ImageSet


def sample_metrics(
    kinds: ImageKinds,
    *,
    feature_space: Callable[[Tensor], Tensor] | None = None,
    classifier_steps: int = CLASSIFIER_STEPS,
    mirror: bool = True,
    seed: int = 0,
) -> tuple[dict[str, Any], AlignedNeighbors]:
    """All figures of the samples, each with the same figure of real slices, of reconstructions, of independent codes.

    Frechet distance, precision, recall, density and coverage depend on how many images they are taken of: for these
    every kind is cut to the size of the smallest (`compared`), by images spread evenly over it. Where slices have
    subjects, neighbors in them are slices of other subjects: beside the next slice of the same head, nobody else's is
    near, and real slices of new subjects would score next to nothing.

    Args:
        kinds: the images.
        feature_space: images -> features `(m, f)`; by default the whitened filter bank, fitted on `training`.
        classifier_steps: training steps of the convolutional two-sample classifier.
        mirror: whether the left-right mirror image of a training slice counts as a copy of it too.
        seed: of splits, classifiers and pairs.

    Returns:
        What goes into `metrics.json`, and the nearest training slice of every sample. An audit of memorization that
        cannot be made is None, and the log says why.

    Raises:
        InputError: too few images of a kind for its metrics, or too few subjects; see `check_sample_report`.
    """
    samples, training, test, reconstructions, independent = kinds
    judged = {"samples": samples, "real": test, "reconstructions": reconstructions, "independent_codes": independent}
    space = feature_space or WhitenedFeatures(FilterBankFeatures()).fit(training.images)
    training_nf = space(training.images)
    features = {name: space(images.images) for name, images in judged.items()}
    compared = min(len(images.images) for images in judged.values())
    result: dict[str, Any] = {
        "num_samples": len(samples.images),
        "compared": compared,
        "classifier_steps": classifier_steps,
        "feature_space": str(getattr(space, "description", space)),
        "neighbors": "any slices" if training.subjects() is None else "slices of other subjects",
    }
    bar = tqdm(judged.items(), desc="metrics of samples", unit="kind", leave=False)
    for name, images in bar:
        result[name] = {
            **_against_training(features[name], images.subjects(), training_nf, training.subjects(), compared),
            "two_sample": _two_sample(images, features[name], training, training_nf, classifier_steps, seed),
            "pairwise_ms_ssim": pairwise_ms_ssim(images.images, seed=seed)._asdict(),
            "authenticity": authenticity(features[name], training_nf, training_subjects=training.subjects()).rate,
        }
    result["position"] = _position(samples, features["samples"], training, training_nf, test, features["real"])
    near, real = (aligned_neighbors(images.images, training.images, mirror=mirror) for images in (samples, test))
    far = [feature_neighbors(features[name], training_nf) for name in ("samples", "real")]
    result["memorization"] = {"pixels": _audit(near, real, "pixels"), "features": _audit(far[0], far[1], "features")}
    return result, near


def _against_training(
    features_mf: Tensor,
    subjects: Sequence[Any] | None,
    training_nf: Tensor,
    training_subjects: Sequence[Any] | None,
    count: int,
) -> dict[str, Any]:
    """Figures of as many of the images as there are of every kind, spread evenly from the first to the last."""
    chosen = evenly_spaced(count, len(features_mf))
    features_mf = features_mf[chosen]
    whose = None if subjects is None else [subjects[i] for i in chosen]
    near = precision_recall(training_nf, features_mf, real_subjects=training_subjects, generated_subjects=whose)
    spread = density_coverage(training_nf, features_mf, real_subjects=training_subjects)
    return {
        "frechet": frechet_score(training_nf, features_mf).distance,
        "precision": near.precision,
        "recall": near.recall,
        "density": spread.density,
        "coverage": spread.coverage,
    }


def _two_sample(
    images: ImageSet, features_mf: Tensor, training: ImageSet, training_nf: Tensor, steps: int, seed: int
) -> dict[str, Any]:
    """Held-out accuracies of telling these images from training slices: 0.5 is as good as chance."""
    split = split_two_samples(
        len(images.images),
        len(training.images),
        first_subjects=images.subjects(),
        second_subjects=training.subjects(),
        seed=seed,
    )
    return {
        "linear": linear_two_sample(features_mf, training_nf, split)._asdict(),
        "cnn": cnn_two_sample(images.images, training.images, split, steps=steps, seed=seed)._asdict(),
    }


def _position(
    samples: ImageSet, samples_mf: Tensor, training: ImageSet, training_nf: Tensor, test: ImageSet, test_mf: Tensor
) -> dict[str, float] | None:
    """How far from the position asked for the samples lie; None where slices or samples have no position."""
    asked, training_mm, test_mm = samples.positions(), training.positions(), test.positions()
    if asked is None or training_mm is None or test_mm is None:
        return None
    return position_consistency(
        training_nf,
        training_mm,
        held_out_mf=test_mf,
        held_out_mm=test_mm,
        samples_mf=samples_mf,
        asked_mm=asked,
        training_subjects=training.subjects(),
    )._asdict()


def _audit(
    samples: FeatureNeighbors | AlignedNeighbors, held_out: FeatureNeighbors | AlignedNeighbors, space: str
) -> dict[str, Any] | None:
    """The audit of memorization in pixels or features; None, with a warning, where there can be none."""
    try:
        audit = memorization_audit(samples, held_out)
    except InputError as error:  # the other figures took minutes, and stand without this one
        logger.warning("No audit of memorization by %s: %s", space, error)
        return None
    return {**audit._asdict(), "closest": [pair._asdict() for pair in audit.closest]}
