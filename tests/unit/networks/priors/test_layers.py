"""The layers of the priors against plain convolutions and indexing."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from monai_vqgen.networks.priors.layers import ContextNetwork, CroppedConv, pointwise, spread


@pytest.mark.parametrize("size", [(5, 6), (3, 4, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_pointwise_map_and_its_gradients_are_those_of_the_convolution(size, bias):
    torch.manual_seed(0)
    layer = pointwise(len(size), 3, 7, bias=bias).double()
    features = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    convolve = F.conv2d if len(size) == 2 else F.conv3d
    expected = convolve(features, layer.weight, layer.bias)
    torch.testing.assert_close(layer(features), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(features), expected)
    given = torch.randn_like(expected)
    inputs = [features, *layer.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(layer(features), inputs, given), torch.autograd.grad(expected, inputs, given)
    )


def test_a_pointwise_map_takes_features_in_any_memory_format():
    layer = pointwise(2, 4, 6)
    features = torch.randn(2, 4, 5, 5)
    expected = F.conv2d(features, layer.weight, layer.bias)
    torch.testing.assert_close(layer(features.contiguous(memory_format=torch.channels_last)), expected)
    torch.testing.assert_close(layer(features.transpose(2, 3)).transpose(2, 3), expected)


@pytest.mark.parametrize(("coarse", "grid"), [((3, 4), (5, 7)), ((2, 1, 3), (4, 5, 5)), ((4, 4), (4, 4))])
def test_spread_reads_the_position_divided_by_the_ratio(coarse, grid):
    features = torch.randn(2, 3, *coarse)
    found = spread(features, grid)
    assert found.shape == (2, 3, *grid)
    for position in itertools.product(*(range(n) for n in grid)):
        home = [i // math.ceil(n / m) for i, n, m in zip(position, grid, coarse, strict=True)]
        assert torch.equal(found[(..., *position)], features[(..., *home)])


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("strict", [True, False])
def test_a_cropped_convolution_reaches_back_along_its_axis_only(spatial_dims, strict):
    for axis in range(spatial_dims):
        conv = CroppedConv(spatial_dims, 1, out_channels=1, axis=axis, kernel_size=3, strict=strict)
        torch.nn.init.ones_(conv.conv.weight)
        torch.nn.init.zeros_(conv.conv.bias)
        pulse = torch.zeros(1, 1, *[5] * spatial_dims)
        pulse[(0, 0, *[2] * spatial_dims)] = 1
        reached = {tuple(index) for index in conv(pulse)[0, 0].nonzero().tolist()}
        own = {3} if strict else {2, 3}  # the pulse is seen from the next slab, and from its own unless strict
        sides = [{2}] * axis + [own] + [{1, 2, 3}] * (spatial_dims - axis - 1)
        assert reached == set(itertools.product(*sides))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_context_of_three_levels_has_the_finest_ones_grid_and_hears_every_level(spatial_dims):
    torch.manual_seed(0)
    network = ContextNetwork(spatial_dims, 4, coarser_codes=[5, 6, 7], condition_dim=2)
    grids = [torch.randint(k, (1, *[n] * spatial_dims)) for k, n in ((5, 2), (6, 3), (7, 5))]
    condition = torch.randn(1, 2)
    whole = network(grids, condition)
    assert whole.shape == (1, 4, *[5] * spatial_dims)
    for level, size in enumerate((5, 6, 7)):
        other = [(grid + 1) % size if i == level else grid for i, grid in enumerate(grids)]
        assert not torch.allclose(network(other, condition), whole)
    assert not torch.allclose(network(grids, condition + 1), whole)
