"""Lookup-free quantization against signs, and entropies counted over all codes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from monai_vqgen.errors import InputError
from monai_vqgen.networks import LookupFreeQuantizer


def test_a_code_is_the_binary_number_of_the_positive_dimensions() -> None:
    quantizer = LookupFreeQuantizer(3)
    latents = torch.tensor([[[-2.0, 0.1, -0.3], [0.5, -1.0, -4.0], [1.0, 3.0, -0.1]]])  # dimensions by positions
    quantized = quantizer(latents)
    assert quantized.codes_bs.tolist() == [[6, 5, 0]]
    assert quantized.embeddings_bds.tolist() == [[[-1, 1, -1], [1, -1, -1], [1, 1, -1]]]
    every = quantizer.lookup(torch.arange(8)[None])[0].t()
    assert every.tolist() == [[a, b, c] for c in (-1, 1) for b in (-1, 1) for a in (-1, 1)]


@pytest.mark.parametrize("dim", [2, 5])
def test_loss_is_commitment_and_the_entropies_of_a_softmax_over_all_codes(dim: int) -> None:
    """Numpy takes the softmax over every code's distance; ours never lists the codes."""
    rng = np.random.default_rng(0)
    rows, sharpness = rng.normal(size=(50, dim)) * 0.7, 0.6
    codes = np.array(list(itertools.product((-1.0, 1.0), repeat=dim)))
    logits = -sharpness * ((rows[:, None] - codes[None]) ** 2).sum(-1)
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    own = -(chances * np.log(chances)).sum(1).mean()
    shared = -(chances.mean(0) * np.log(chances.mean(0))).sum()
    commitment = ((rows - np.where(rows > 0, 1, -1)) ** 2).mean()
    quantizer = LookupFreeQuantizer(dim, commitment=0.5, entropy_weight=0.3, sharpness=sharpness)
    latents = torch.from_numpy(rows.T[None]).float()
    np.testing.assert_allclose(float(quantizer(latents).loss), 0.5 * commitment + 0.3 * (own - shared), rtol=1e-5)


def test_descent_on_the_entropies_brings_every_code_into_use() -> None:
    latents = (torch.randn(1, 4, 512, generator=torch.Generator().manual_seed(0)) * 0.3 + 1.0).requires_grad_()
    quantizer = LookupFreeQuantizer(4, commitment=0.0, entropy_weight=1.0)
    assert quantizer(latents).codes_bs.unique().numel() < 8
    optimizer = torch.optim.Adam([latents], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        quantizer(latents).loss.backward()
        optimizer.step()
    assert quantizer(latents).codes_bs.unique().numel() == 16


def test_many_dimensions_are_counted_in_groups_without_overflow() -> None:
    loss = LookupFreeQuantizer(16)(100 * torch.randn(1, 16, 8, 8)).loss
    assert torch.isfinite(loss)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dim": 0}, "dim=0"),
        ({"dim": 17}, "1..16"),
        ({"entropy_weight": -1.0}, "negative"),
        ({"sharpness": 0}, "sharp"),
    ],
)
def test_a_value_out_of_range_is_named(options: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        LookupFreeQuantizer(**options)
