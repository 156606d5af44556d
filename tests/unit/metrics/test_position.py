"""The regressor of position against normal equations and positions known by construction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from monai_vqgen.errors import InputError
from monai_vqgen.metrics.position import FOLDS, PENALTIES, fit_ridge, position_consistency


def features_at(position_mm: torch.Tensor, seed: int, noise: float = 0.05) -> torch.Tensor:
    """Six features, four of which follow position (60 to 120 mm), and noise."""
    z = (position_mm.double() - 90) / 30
    clean = torch.stack([z, -2 * z, z + 1, 0.5 * z, 0 * z, 0 * z], 1)
    return clean + noise * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positions(count: int, seed: int) -> torch.Tensor:
    return 60 + 60 * torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ridge_by_normal_equations(x: np.ndarray, y: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    z, std = x - x.mean(0), x.std(0)
    z = z / std
    w = np.linalg.solve(z.T @ z / len(z) + penalty * np.eye(z.shape[1]), z.T @ (y - y.mean()) / len(z)) / std
    return w, y.mean() - x.mean(0) @ w


def test_the_model_is_ridge_regression_with_the_penalty_of_least_cross_validated_error():
    mm = positions(43, 0)
    x, y = features_at(mm, 1, noise=3.0).numpy(), mm.numpy()
    groups = [f"s{i // 2}" for i in range(43)]
    folds = np.array([(i // 2) % FOLDS for i in range(43)])
    errors = []
    for penalty in PENALTIES:
        total = 0.0
        for fold in range(FOLDS):
            w, c = ridge_by_normal_equations(x[folds != fold], y[folds != fold], penalty)
            total += np.square(x[folds == fold] @ w + c - y[folds == fold]).sum()
        errors.append(total)
    model = fit_ridge(torch.from_numpy(x), mm, groups=groups)
    assert model.penalty == PENALTIES[int(np.argmin(errors))]
    assert PENALTIES[0] < model.penalty < PENALTIES[-1]  # noise enough for the choice to matter
    w, c = ridge_by_normal_equations(x, y, model.penalty)
    np.testing.assert_allclose(model.weights_f.numpy(), w)
    np.testing.assert_allclose(model.predict(torch.from_numpy(x)).numpy(), x @ w + c)


def test_slices_of_one_subject_are_never_in_two_folds_or_the_penalty_would_be_too_weak():
    """Two slices a subject, alike but for the subject's own look: across folds each would give its twin away."""
    mm = positions(20, 0).repeat_interleave(2)
    look = torch.randn(20, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64).repeat_interleave(2, 0)
    x = torch.cat([features_at(mm, 1, noise=2.0), look], 1)
    subjects = [index // 2 for index in range(40)]
    assert fit_ridge(x, mm, groups=subjects).penalty > fit_ridge(x, mm).penalty


def test_samples_where_they_were_asked_for_are_off_as_little_as_real_slices():
    training, held_out = positions(80, 0), positions(40, 1)
    asked = 60 + positions(40, 2) / 2  # 90 to 120 mm, so that its median is not the training slices'
    score = position_consistency(
        features_at(training, 3),
        training,
        held_out_mf=features_at(held_out, 4),
        held_out_mm=held_out,
        samples_mf=features_at(asked, 5),
        asked_mm=asked,
    )
    assert score.held_out_mm < 2
    assert score.samples_mm == pytest.approx(score.held_out_mm, rel=0.5)
    middle = np.median(training.numpy())
    assert score.constant_samples_mm == pytest.approx((asked - middle).abs().mean().item())
    assert score.constant_held_out_mm == pytest.approx((held_out - middle).abs().mean().item())
    assert score.constant_samples_mm > 10


def test_samples_that_ignore_what_was_asked_are_worse_than_a_constant():
    training, held_out, asked, elsewhere = (positions(60, seed) for seed in range(4))
    score = position_consistency(
        features_at(training, 3),
        training,
        held_out_mf=features_at(held_out, 4),
        held_out_mm=held_out,
        samples_mf=features_at(elsewhere, 5),
        asked_mm=asked,
    )
    assert score.samples_mm == pytest.approx((elsewhere - asked).abs().mean().item(), abs=2)
    assert score.samples_mm > score.constant_samples_mm


def test_a_common_offset_is_read_in_millimeters_with_its_sign():
    training, held_out, asked = (positions(60, seed) for seed in range(3))
    score = position_consistency(
        features_at(training, 3),
        training,
        held_out_mf=features_at(held_out, 4),
        held_out_mm=held_out,
        samples_mf=features_at(asked + 7, 5),
        asked_mm=asked,
        training_subjects=[index // 3 for index in range(60)],
    )
    assert score.samples_bias_mm == pytest.approx(7, abs=0.7)
    assert score.samples_mm == pytest.approx(7, abs=0.7)


def test_features_that_never_change_do_not_count():
    mm = positions(30, 0)
    x = features_at(mm, 1)
    with_constant = torch.cat([x, torch.full((30, 1), 3.0, dtype=torch.float64)], 1)
    model = fit_ridge(with_constant, mm)
    np.testing.assert_allclose(model.predict(with_constant).numpy(), fit_ridge(x, mm).predict(x).numpy())


def consistency(training_mm: torch.Tensor, features: torch.Tensor, asked: torch.Tensor, subjects=None):
    return position_consistency(
        features,
        training_mm,
        held_out_mf=torch.rand(4, 6),
        held_out_mm=torch.rand(4),
        samples_mf=torch.rand(5, 6),
        asked_mm=asked,
        training_subjects=subjects,
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: consistency(torch.full((9,), 80.0), torch.rand(9, 6), torch.rand(5)), "one position"),
        (lambda: consistency(torch.rand(9), torch.rand(9, 7), torch.rand(5)), "sizes"),
        (lambda: consistency(torch.rand(9), torch.rand(9, 6), torch.rand(4)), "positions asked for"),
        (lambda: consistency(torch.rand(8), torch.rand(9, 6), torch.rand(5)), "training positions"),
        (lambda: consistency(torch.rand(9) * math.nan, torch.rand(9, 6), torch.rand(5)), "training positions"),
        (lambda: consistency(torch.rand(9), torch.rand(9, 6) * math.nan, torch.rand(5)), "not finite"),
        (lambda: consistency(torch.rand(9), torch.rand(9, 6), torch.rand(5), ["a"] * 9), "at least two"),
        (lambda: consistency(torch.rand(9), torch.rand(9, 6), torch.rand(5), ["a", "b"]), "one for each slice"),
        (lambda: fit_ridge(torch.rand(1, 2), torch.rand(1)), "too few"),
    ],
)
def test_what_cannot_be_fitted_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
