"""Views and projections of whole slabs against plain indexing."""

from __future__ import annotations

import itertools

import pytest
import torch

from monai_vqgen.networks.priors.gated.slabs import ContextRows, patches
from monai_vqgen.networks.priors.layers import spread


@pytest.mark.parametrize("slab", [(6,), (4, 5)])
def test_patches_are_the_neighborhoods_of_each_position(slab):
    padded = torch.randn(2, *(n + 2 for n in slab), 3)
    views = patches(padded, kernel_size=3)
    assert views.shape == (2, *slab, *[3] * len(slab), 3)
    for position in itertools.product(*(range(n) for n in slab)):
        for tap in itertools.product(range(3), repeat=len(slab)):
            here = padded[(slice(None), *(i + t for i, t in zip(position, tap, strict=True)))]
            assert torch.equal(views[(slice(None), *position, *tap)], here)


@pytest.mark.parametrize(("grid", "coarse"), [((5, 7), (3, 4)), ((4, 5, 6), (2, 3, 2)), ((3, 4), (1, 1))])
def test_gates_are_the_projected_context_repeated_over_the_grid(grid, coarse):
    context, weight = torch.randn(2, *coarse, 3), torch.randn(3, 8)
    whole = spread((context @ weight).movedim(-1, 1), grid).movedim(1, -1)
    for lead in range(1, len(grid)):
        rows = ContextRows(context, [weight], grid=grid, lead=lead)
        for index in itertools.product(*(range(n) for n in grid[:lead])):
            expected = whole[(slice(None), *index)].reshape(2, -1, 8)
            torch.testing.assert_close(rows.gates(index)[0], expected.contiguous())
