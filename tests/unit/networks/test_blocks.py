"""Blocks of the autoencoders: shapes that mirror each other, and which levels are hidden how often."""

from __future__ import annotations

import pytest
import torch

from monai_vqgen.errors import InputError
from monai_vqgen.networks.blocks import Downsampler, Upsampler, ceil_to, halvings, hide_finer


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("stride", [1, 2, 8])
def test_upsampling_mirrors_downsampling(spatial_dims: int, stride: int) -> None:
    sizes = {"channels": 8, "stride": stride, "residual_channels": 4, "num_blocks": 2}
    images = torch.rand(2, 3, *[2 * stride] * spatial_dims)
    features = Downsampler(spatial_dims, 3, **sizes)(images)
    assert features.shape == (2, 8, *[2] * spatial_dims)
    assert Upsampler(spatial_dims, 8, out_channels=3, **sizes)(features).shape == images.shape


def test_hidden_samples_and_levels_are_drawn_as_promised() -> None:
    torch.manual_seed(1)
    shown = hide_finer([torch.ones(20000, 1, 1, 1)] * 3, 0.3)
    kept = [level[:, 0, 0, 0].bool() for level in shown]
    assert kept[0].all()
    assert abs((~kept[2]).float().mean() - 0.3) < 0.02  # whatever is hidden, the finest is
    assert abs((~kept[1]).float().mean() - 0.15) < 0.02  # the first hidden level is uniform among the finer two
    assert not (kept[2] & ~kept[1]).any()  # never a level without the coarser one


def test_strides_are_powers_of_two_and_sizes_are_rounded_up() -> None:
    assert [halvings(stride) for stride in (1, 2, 16)] == [0, 1, 4]
    for stride in (0, 3, -2):
        with pytest.raises(InputError, match="power of two"):
            halvings(stride)
    assert [ceil_to(size, 8) for size in (1, 8, 9)] == [8, 8, 16]
