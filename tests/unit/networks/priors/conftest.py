"""Priors of every kind, inputs that fit them, and the dependence of logits on codes as a matrix."""

from __future__ import annotations

import math

import pytest
import torch

from monai_vqgen.networks import DecoderOnlyPrior, GatedPixelCNN, MaskedPixelCNN

GATED = {"channels": 16, "num_layers": 4}


def _make(kind: str, spatial_dims: int, **context):
    torch.manual_seed(0)
    if kind == "gated":
        prior = GatedPixelCNN(7, spatial_dims, attention_every=0, first_kernel_size=5, **GATED, **context)
    elif kind == "attention":
        prior = GatedPixelCNN(7, spatial_dims, attention_every=2, num_output_blocks=2, **GATED, **context)
    elif kind == "wide":
        prior = GatedPixelCNN(7, spatial_dims, attention_every=3, kernel_size=5, num_heads=2, **GATED, **context)
    elif kind == "masked":
        prior = MaskedPixelCNN(7, spatial_dims, channels=8, num_blocks=4, **context)
    else:
        prior = DecoderOnlyPrior(7, spatial_dims, max_positions=64, channels=8, num_layers=2, num_heads=2, **context)
    return prior.eval()


def _inputs(prior, grid, *, batch=2):
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(prior.num_codes, (batch, *grid), generator=generator)
    # Sizes that do not divide: a coarse position covers ceil(fine / coarse) fine ones.
    steps = range(len(prior.coarser_codes), 0, -1)
    coarser = [
        torch.randint(k, (batch, *(math.ceil(n / 2**step) for n in grid)), generator=generator)
        for k, step in zip(prior.coarser_codes, steps, strict=True)
    ]
    condition = torch.randn(batch, prior.condition_dim, generator=generator) if prior.condition_dim else None
    return codes, coarser, condition


def _dependence(prior, grid):
    """`[i, j]`: how strongly the logits at raster position i change with the embedding of the code at position j."""
    codes, coarser, condition = _inputs(prior, grid, batch=1)
    embedding = prior.transformer.token_embeddings if isinstance(prior, DecoderOnlyPrior) else prior.embedding
    seen = []
    handle = embedding.register_forward_hook(lambda *args: seen.append(args[2].detach().requires_grad_()) or seen[-1])
    logits = prior.double()(codes, coarser, None if condition is None else condition.double()).flatten(2)
    handle.remove()
    rows = []
    for i in range(logits.shape[2]):
        (gradient,) = torch.autograd.grad(logits[0, :, i].square().sum(), seen[0], retain_graph=True)
        rows.append(gradient.abs().sum(-1).flatten())
    matrix = torch.stack(rows)
    if isinstance(prior, DecoderOnlyPrior):  # its sequence starts with the begin token and lacks the last code
        matrix = torch.cat([matrix[:, 1:], torch.zeros(len(rows), 1)], dim=1)
    return matrix


@pytest.fixture(scope="session")
def make():
    """`make(kind, spatial_dims, **context)`: a small prior in evaluation mode."""
    return _make


@pytest.fixture(scope="session")
def inputs():
    """`inputs(prior, grid, batch=2)`: codes, coarser grids and a condition."""
    return _inputs


@pytest.fixture(scope="session")
def dependence():
    """`dependence(prior, grid)`; see `_dependence`."""
    return _dependence
