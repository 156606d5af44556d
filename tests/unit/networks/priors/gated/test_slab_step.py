"""A slab at a time gives the logits of the whole grid, from caches that know nothing of later codes."""

from __future__ import annotations

import math

import pytest
import torch

from monai_vqgen.networks import GatedPixelCNN
from monai_vqgen.networks.priors.gated.slab_step import GatedSlabStep

CASES = {
    "rows": ({"attention_every": 1}, (5, 4), []),
    "without attention": ({"attention_every": 0}, (4, 3), []),
    "wide kernels": ({"attention_every": 2, "kernel_size": 5, "num_output_blocks": 1}, (6, 4), []),
    "coarser grids that do not divide": ({"attention_every": 2, "coarser_codes": [4, 6]}, (5, 7), [(2, 2), (3, 4)]),
    "condition": ({"attention_every": 2, "condition_dim": 3}, (4, 4), []),
    "planes": ({"attention_every": 2, "spatial_dims": 3, "coarser_codes": [4]}, (4, 3, 5), [(2, 2, 3)]),
}


@pytest.mark.parametrize("case", CASES)
def test_every_slab_has_the_logits_of_the_whole_grid(case):
    arguments, grid, coarser_grids = CASES[case]
    torch.manual_seed(0)
    prior = GatedPixelCNN(8, **{"channels": 8, "num_layers": 2, "num_heads": 2, **arguments}).eval()
    with torch.no_grad():
        for weights in prior.parameters():
            weights.mul_(2)  # untrained logits hardly differ
    codes = torch.randint(8, (3, *grid))
    given = [torch.randint(k, (3, *size)) for k, size in zip(prior.coarser_codes, coarser_grids, strict=True)]
    condition = torch.rand(3, prior.condition_dim) if prior.condition_dim else None
    step = GatedSlabStep(prior, grid)
    caches = [torch.zeros(3, *shape) for shape in step.caches.values()]
    with torch.no_grad():
        expected = prior(codes, given, condition)
        assert float(expected.std()) > 0.1
        for row in range(grid[0]):
            for drawn in range(math.prod(grid[1:])):  # as a sampler has them: what comes later is not known
                known = codes.flatten(1).clone()
                known[:, row * math.prod(grid[1:]) + drawn :] = 0
                more = [] if condition is None else [condition]
                logits, *following = step(torch.tensor([row]), known.view_as(codes), *given, *more, *caches)
                found = logits.flatten(2)[:, :, drawn]
                torch.testing.assert_close(found, expected[:, :, row].flatten(2)[:, :, drawn], atol=1e-5, rtol=1e-5)
            caches = following
