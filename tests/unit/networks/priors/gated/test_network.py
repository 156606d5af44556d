"""The gated PixelCNN: its stacks see all of the past, and what its constructor refuses."""

from __future__ import annotations

import pytest
import torch

from monai_vqgen.errors import InputError
from monai_vqgen.networks import GatedPixelCNN


@pytest.mark.parametrize(("spatial_dims", "grid"), [(2, (5, 6)), (3, (3, 4, 4))])
def test_without_attention_the_stacks_still_see_every_earlier_code(make, dependence, spatial_dims, grid):
    matrix = dependence(make("gated", spatial_dims), grid)
    assert torch.all(matrix[torch.ones_like(matrix).tril(-1).bool()] > 0)


def test_system_a_can_be_built():
    prior = GatedPixelCNN(
        512, channels=128, num_layers=20, attention_every=5, num_heads=2, first_kernel_size=7, num_output_blocks=10
    )
    assert len(prior.attentions) == 4
    assert not any("BatchNorm" in type(module).__name__ for module in prior.modules())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"spatial_dims": 4}, "spatial_dims"),
        ({"num_codes": 0}, "num_codes"),
        ({"kernel_size": 4}, "kernel_size"),
        ({"first_kernel_size": 1}, "first_kernel_size"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_heads": 3}, "num_heads"),
        ({"attention_every": -1}, "attention_every"),
        ({"condition_dim": -1}, "condition_dim"),
    ],
)
def test_arguments_that_cannot_work_are_named(arguments, named):
    with pytest.raises(InputError, match=named):
        GatedPixelCNN(**{"num_codes": 8, **arguments})
