"""Whether a slice lies where it was asked to: a regressor of position, fitted on real slices.

Shape suffixes: n training slices, m other slices, f features.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from monai_vqgen.errors import InputError
from monai_vqgen.metrics.features import check_same_size, checked_features, subject_numbers

PENALTIES = tuple(10.0**exponent for exponent in np.arange(-4.0, 2.5, 0.5))  # per slice, of standardized features
FOLDS = 5


class RidgeModel(NamedTuple):
    """A linear prediction: features @ weights_f + intercept.

    Attributes:
        weights_f: (f,), float64.
        intercept: in the target's unit.
        penalty: the one chosen by cross-validation.
    """

    weights_f: Tensor
    intercept: float
    penalty: float

    def predict(self, features_mf: Tensor) -> Tensor:
        """Predicted targets (m,), float64."""
        return features_mf.double() @ self.weights_f + self.intercept


class PositionConsistency(NamedTuple):
    """Mean absolute errors of position, in millimeters.

    Attributes:
        samples_mm: of samples, against the position each was asked for.
        held_out_mm: of held-out real slices, against their own: what a perfect sample would be off by.
        samples_bias_mm: mean of found minus asked position; a shift that all samples share.
        constant_samples_mm: of the median training position, against the positions asked for.
        constant_held_out_mm: of the median training position, against the held-out slices'.
    """

    samples_mm: float
    held_out_mm: float
    samples_bias_mm: float
    constant_samples_mm: float
    constant_held_out_mm: float


def _ridge_path(features_nf: Tensor, targets_n: Tensor) -> list[RidgeModel]:
    """One ridge regression a penalty, from a single eigendecomposition, of features standardized on these rows."""
    mean_f, std_f = features_nf.mean(0), features_nf.std(0, unbiased=False)
    scale_f = torch.where(std_f > 0, std_f, 1.0)
    scaled_nf, mean_target = (features_nf - mean_f) / scale_f, targets_n.mean()
    values_f, vectors_ff = torch.linalg.eigh(scaled_nf.T @ scaled_nf / len(scaled_nf))
    rotated_f = vectors_ff.T @ (scaled_nf.T @ (targets_n - mean_target)) / len(scaled_nf)
    models = []
    for penalty in PENALTIES:
        weights_f = vectors_ff @ (rotated_f / (values_f.clamp(min=0) + penalty)) / scale_f
        models.append(RidgeModel(weights_f, float(mean_target - mean_f @ weights_f), penalty))
    return models


def fit_ridge(features_nf: Tensor, targets_n: Tensor, *, groups: Sequence[Hashable] | None = None) -> RidgeModel:
    """Ridge regression whose penalty has the least squared error in a cross-validation of five folds.

    Minimizes mean((y - X w - c)²) + penalty |w|² over standardized features, penalties 1e-4 to 1e2. Deterministic.

    Args:
        features_nf: one row a slice.
        targets_n: what to predict.
        groups: the subject of every slice: slices of one subject are never in two folds, since near slices would make
            the weakest penalty look best. None: every slice for itself.

    Raises:
        InputError: fewer than two slices or groups, mismatched lengths, values that are not finite.

    Examples:
        >>> features = torch.rand(50, 3)
        >>> model = fit_ridge(features, 2 * features[:, 0] + 1)
        >>> bool((model.predict(features) - 2 * features[:, 0] - 1).abs().max() < 0.01)
        True
    """
    features_nf = checked_features(features_nf, "training features", at_least=2)
    targets_n = _checked_targets(targets_n, len(features_nf), "training targets").to(features_nf.device)
    if groups is not None and (len(groups) != len(features_nf) or len(set(groups)) < 2):
        raise InputError(
            f"{len(groups)} subjects given, {len(set(groups))} of them different, for {len(features_nf)} training "
            "slices: give one for each slice, and at least two"
        )
    # Rows of one group share a fold; groups are dealt out in order of first appearance.
    numbers = subject_numbers(range(len(features_nf)) if groups is None else groups)
    folds = torch.tensor(numbers, device=features_nf.device) % FOLDS
    errors = torch.zeros(len(PENALTIES), dtype=torch.float64)
    for fold in folds.unique():
        out = folds == fold
        for index, model in enumerate(_ridge_path(features_nf[~out], targets_n[~out])):
            errors[index] += (model.predict(features_nf[out]) - targets_n[out]).square().sum().cpu()
    return _ridge_path(features_nf, targets_n)[int(errors.argmin())]


def _checked_targets(targets_n: Tensor, count: int, name: str) -> Tensor:
    targets_n = torch.as_tensor(targets_n).detach().double()
    if targets_n.shape != (count,) or not bool(targets_n.isfinite().all()):
        given = f"{name} of shape {tuple(targets_n.shape)} for {count} images"
        raise InputError(f"{given}: give one finite number an image")
    return targets_n


def position_consistency(
    training_nf: Tensor,
    training_mm: Tensor,
    *,
    held_out_mf: Tensor,
    held_out_mm: Tensor,
    samples_mf: Tensor,
    asked_mm: Tensor,
    training_subjects: Sequence[Hashable] | None = None,
) -> PositionConsistency:
    """How far from the position asked for a regressor fitted on real slices sees the samples.

    Args:
        training_nf: features of real training slices.
        training_mm: their positions.
        held_out_mf: features of real slices of other subjects.
        held_out_mm: their positions.
        samples_mf: features of samples.
        asked_mm: the position each was conditioned on.
        training_subjects: the subject of every training slice, for the choice of the penalty.

    Raises:
        InputError: mismatched lengths or feature sizes, values that are not finite, training slices at one position
            only.

    Examples:
        >>> x, y = torch.rand(60, 3), torch.rand(20, 3)
        >>> score = position_consistency(x, 9 * x[:, 0], held_out_mf=y, held_out_mm=9 * y[:, 0], samples_mf=y,
        ...                              asked_mm=9 * y[:, 0] + 2)
        >>> round(score.samples_mm, 1), round(score.held_out_mm, 1), round(score.samples_bias_mm, 1)
        (2.0, 0.0, -2.0)
    """
    held_out_mf = checked_features(held_out_mf, "held-out features")
    samples_mf = checked_features(samples_mf, "sample features")
    check_same_size(training_nf, held_out_mf, "training and held-out features")
    check_same_size(training_nf, samples_mf, "training and sample features")
    training_mm = _checked_targets(training_mm, len(training_nf), "training positions")
    held_out_mm = _checked_targets(held_out_mm, len(held_out_mf), "held-out positions").to(held_out_mf.device)
    asked_mm = _checked_targets(asked_mm, len(samples_mf), "positions asked for").to(samples_mf.device)
    if len(training_mm.unique()) < 2:
        raise InputError("all training slices lie at one position: a regressor of position needs several")
    model = fit_ridge(training_nf, training_mm, groups=training_subjects)
    off_m, constant = model.predict(samples_mf) - asked_mm, float(training_mm.quantile(0.5))
    return PositionConsistency(
        samples_mm=float(off_m.abs().mean()),
        held_out_mm=float((model.predict(held_out_mf) - held_out_mm).abs().mean()),
        samples_bias_mm=float(off_m.mean()),
        constant_samples_mm=float((asked_mm - constant).abs().mean()),
        constant_held_out_mm=float((held_out_mm - constant).abs().mean()),
    )
