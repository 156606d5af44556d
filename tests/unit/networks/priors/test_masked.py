"""The plain masked PixelCNN: its masks written out, its blind spot, and the reference system B."""

from __future__ import annotations

import pytest
import torch

from monai_vqgen.errors import InputError
from monai_vqgen.networks import GatedPixelCNN, MaskedPixelCNN
from monai_vqgen.networks.priors.masked import MaskedConv


@pytest.mark.parametrize(("spatial_dims", "slab"), [(2, 3), (3, 9)])
@pytest.mark.parametrize("include_center", [False, True])
def test_a_masked_kernel_has_the_taps_before_its_center_in_raster_order(spatial_dims, slab, include_center):
    conv = MaskedConv(spatial_dims, 1, out_channels=1, kernel_size=3, include_center=include_center)
    taps = (conv.masked_weight() != 0).flatten().tolist()
    before = 3**spatial_dims // 2
    assert taps == [i < before + include_center for i in range(2 * slab)]  # what follows the center's slab is cropped


def test_a_plain_masked_pixelcnn_has_the_blind_spot_that_the_gated_one_has_not(dependence):
    grid = (4, 9)
    torch.manual_seed(0)
    masked = MaskedPixelCNN(7, channels=8, num_blocks=9, first_kernel_size=3).eval()
    gated = GatedPixelCNN(7, attention_every=0, first_kernel_size=3, channels=8, num_layers=9).eval()
    last_row, right_end_of_row_0 = 3 * 9 + 3, 8
    assert dependence(masked, grid)[last_row, right_end_of_row_0] == 0
    assert dependence(gated, grid)[last_row, right_end_of_row_0] > 0


def test_system_b_has_the_shapes_of_its_publication():
    prior = MaskedPixelCNN(256)
    shapes = [tuple(block.masked.conv.weight.shape) for block in prior.blocks]
    assert shapes == [(64, 128, 2, 3)] * 7
    assert not any("BatchNorm" in type(module).__name__ for module in prior.modules())


@pytest.mark.parametrize("argument", ["kernel_size", "first_kernel_size"])
def test_kernels_without_a_center_are_refused(argument):
    with pytest.raises(InputError, match=argument):
        MaskedPixelCNN(8, **{argument: 4})
