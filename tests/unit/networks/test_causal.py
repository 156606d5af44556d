"""A pointwise convolution is the same linear map whether gradients are recorded or not, and so are its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monai_vqgen.networks.causal import pointwise


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
