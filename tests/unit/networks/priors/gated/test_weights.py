"""Rearranged weights give what the layers give, by the identities in the module."""

from __future__ import annotations

import pytest
import torch

from monai_vqgen.networks.priors.gated.weights import attention_weights, gated_weights, halve_gates, linear
from monai_vqgen.networks.priors.layers import CausalAttention, coordinate_features, pointwise, tanh_gate


def test_a_halved_gate_is_one_tanh_and_one_multiply_add():
    pre = torch.randn(5, 8, dtype=torch.float64)
    t, u = halve_gates(pre, channels=4).tanh().chunk(2, dim=1)
    torch.testing.assert_close((t + t * u) / 2, tanh_gate(pre))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_pointwise_layer_is_a_product_with_its_matrix(spatial_dims):
    layer, features = pointwise(spatial_dims, 3, 5), torch.randn(4, 3)
    matrix, bias = linear(layer)
    expected = layer(features.reshape(4, 3, *[1] * spatial_dims)).flatten(1)
    torch.testing.assert_close(torch.addmm(bias, features, matrix), expected)


def test_queries_hold_the_scale_of_the_softmax_and_a_channel_of_ones():
    attention = CausalAttention(6, num_heads=2, width=4, num_coordinates=28, dropout=0.0)
    coordinates = coordinate_features((2, 3))
    weights, features = attention_weights(attention, coordinates), torch.randn(6, 6)
    ours = (features @ weights.qkv + weights.position_n).view(6, 3, 2, 3)
    theirs = (attention.qkv(features) + attention.position(coordinates.flatten(1).t())).view(6, 3, 2, 2)
    torch.testing.assert_close(ours[:, 0, :, :2], theirs[:, 0] * 2**-0.5)
    torch.testing.assert_close(ours[:, 1:, :, :2], theirs[:, 1:])
    assert torch.equal(ours[..., 2], torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1).expand(6, 3, 2))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_there_are_weights_for_every_axis_layer_and_attention(make, spatial_dims):
    prior = make("attention", spatial_dims, coarser_codes=[5])
    weights = gated_weights(prior, prior.coordinates((3,) * spatial_dims))
    assert [len(stack) for stack in weights.stacks] == [4] * spatial_dims
    assert [stack[0].link is None for stack in weights.stacks] == [*[False] * (spatial_dims - 1), True]
    assert all(layer.context is not None for stack in weights.stacks for layer in stack)
    assert sorted(weights.attentions) == [1, 3]
