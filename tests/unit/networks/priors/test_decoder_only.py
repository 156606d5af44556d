"""MONAI's transformer as a prior: what the adapter adds to it."""

from __future__ import annotations

import pytest
import torch

from monai_vqgen.errors import InputError
from monai_vqgen.networks import DecoderOnlyPrior


def test_a_grid_longer_than_the_transformer_is_refused_with_the_number_to_give(make):
    with pytest.raises(InputError, match="max_positions=81"):
        make("decoder_only", 2)(torch.zeros(1, 9, 9, dtype=torch.long))


@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 2)])
def test_the_logits_are_those_of_the_transformer_over_the_shifted_raster_sequence(make, grid):
    prior = make("decoder_only", len(grid))
    codes = torch.randint(7, (2, *grid))
    sequence = torch.cat([torch.full((2, 1), 7), codes.flatten(1)[:, :-1]], 1)  # 7 is the begin token
    expected = prior.transformer(sequence)
    for i, position in enumerate(torch.cartesian_prod(*(torch.arange(n) for n in grid)).tolist()):
        torch.testing.assert_close(prior(codes)[(slice(None), slice(None), *position)], expected[:, i, :7])


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(InputError, match="num_heads"):
        DecoderOnlyPrior(8, channels=16, num_heads=3)
