"""Residual quantization against stages written out in numpy, and against a single codebook of as many vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_vqgen.errors import InputError
from monai_vqgen.networks import EMACodebook, ResidualQuantizer


def written_out(quantizer: ResidualQuantizer, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Digits, sums of vectors and the sum of the mean squared distances to the sums so far."""
    left, digits, distance = rows.copy(), [], 0.0
    for stage in quantizer.stages:
        vectors = stage.embeddings_kd.double().numpy()
        digits.append(((left[:, None] - vectors) ** 2).sum(-1).argmin(1))
        left = left - vectors[digits[-1]]
        distance += (left**2).mean()
    return np.stack(digits, 1), rows - left, distance


@pytest.mark.parametrize("spatial", [(4, 5), (2, 3, 4)])
def test_stages_agree_with_numpy(spatial: tuple[int, ...]) -> None:
    quantizer = ResidualQuantizer(5, 3, dim=4, commitment=0.5)
    latents = torch.randn(2, 4, *spatial)
    rows = latents.movedim(1, -1).reshape(-1, 4).double().numpy()
    digits, sums, distance = written_out(quantizer, rows)
    quantized = quantizer(latents)
    np.testing.assert_array_equal(quantized.codes_bs.flatten(), digits @ [1, 5, 25])
    found = quantized.embeddings_bds.movedim(1, -1).reshape(-1, 4)
    np.testing.assert_allclose(found.numpy(), sums, atol=1e-5)
    np.testing.assert_allclose(float(quantized.loss), 0.5 * distance, rtol=1e-5)


def test_each_stage_learns_from_what_the_earlier_ones_left_over() -> None:
    quantizer = ResidualQuantizer(4, 2, dim=2, decay=0.9, kmeans=False, restart_below=0.0)
    first, second = (EMACodebook(4, 2, decay=0.9, kmeans=False, restart_below=0.0) for _ in range(2))
    first.load_state_dict(quantizer.stages[0].state_dict())
    second.load_state_dict(quantizer.stages[1].state_dict())
    latents = torch.randn(3, 2, 6, 6)
    left = latents - first(latents).embeddings_bds
    second.learn(left, second(left).codes_bs)
    first.learn(latents, first(latents).codes_bs)
    quantizer.learn(latents, quantizer(latents).codes_bs)
    for stage, alone in zip(quantizer.stages, (first, second), strict=True):
        torch.testing.assert_close(stage.embeddings_kd, alone.embeddings_kd)


def test_stages_come_closer_than_one_codebook_of_as_many_vectors() -> None:
    quantizer, single = ResidualQuantizer(16, 2, dim=6), EMACodebook(32, 6)
    for step in range(30):
        latents = torch.randn(8, 6, 16, 16, generator=torch.Generator().manual_seed(step))
        for each in (quantizer, single):
            each.prepare(latents)
            each.learn(latents, each(latents).codes_bs)
    fresh = torch.randn(8, 6, 16, 16, generator=torch.Generator().manual_seed(99))
    errors = [float((each(fresh).embeddings_bds - fresh).square().mean()) for each in (quantizer, single)]
    assert errors[0] < 0.85 * errors[1]
    assert quantizer(fresh).codes_bs.unique().numel() > 0.8 * quantizer.num_codes


@pytest.mark.parametrize(("codes", "stages"), [(256, 3), (32, 0)])
def test_more_codes_than_a_prior_can_hold_are_refused(codes: int, stages: int) -> None:
    with pytest.raises(InputError, match="at most 65,536"):
        ResidualQuantizer(codes, stages)


@pytest.mark.parametrize("warm_up", [True, False])
def test_its_stages_warm_up_as_it_is_told(warm_up: bool) -> None:
    stages = ResidualQuantizer(4, 2, dim=2, warm_up=warm_up).stages
    assert [stage.warm_up for stage in stages] == [warm_up, warm_up]
