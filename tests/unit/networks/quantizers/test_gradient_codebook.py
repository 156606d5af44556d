"""The codebook that is a parameter: its loss by hand, and which codes move."""

from __future__ import annotations

import pytest
import torch

from monai_vqgen.errors import InputError
from monai_vqgen.networks import GradientCodebook


@pytest.mark.parametrize("spatial", [(4, 4), (2, 3, 4)])
def test_loss_is_equation_3_of_the_paper(spatial: tuple[int, ...]) -> None:
    codebook = GradientCodebook(5, 2, commitment=0.5)
    latents = torch.randn(2, 2, *spatial, requires_grad=True)
    quantized = codebook(latents)
    distance = ((latents - codebook.lookup(quantized.codes_bs)) ** 2).mean()
    torch.testing.assert_close(quantized.loss, 1.5 * distance)
    (gradient,) = torch.autograd.grad(quantized.loss, latents)  # the codebook term stops at the latents
    (whole,) = torch.autograd.grad(distance, latents)
    torch.testing.assert_close(gradient, 0.5 * whole)


def test_gradient_codebook_moves_only_chosen_codes() -> None:
    codebook = GradientCodebook(6, 2)
    quantized = codebook(torch.ones(1, 2, 3, 3))
    quantized.loss.backward()
    assert codebook.embeddings_kd.grad is not None
    moved = codebook.embeddings_kd.grad.abs().sum(1) > 0
    assert set(torch.nonzero(moved).flatten().tolist()) == set(quantized.codes_bs.unique().tolist())


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: GradientCodebook(8, 0), "dim=0"),
        (lambda: GradientCodebook(1, 4), "num_codes=1"),
        (lambda: GradientCodebook(8, 4, gradient_estimator="gumbel"), "rotation"),
    ],
)
def test_a_value_out_of_range_is_named(build, match: str) -> None:
    with pytest.raises(InputError, match=match):
        build()
