"""The incremental pass: precision at full size, and weights as they were when it began."""

from __future__ import annotations

import torch

from monai_vqgen.networks import GatedPixelCNN


def test_the_gate_at_full_size_keeps_its_precision():
    """Fifteen layers of the default width, saturated gates: still within 1e-5 of the full forward."""
    torch.manual_seed(0)
    prior = GatedPixelCNN(64, channels=64, num_layers=15).eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(1.5)
    codes = torch.randint(64, (2, 6, 6))
    with torch.no_grad():
        expected = prior(codes).flatten(2)
    steps = prior.incremental((6, 6), batch_size=2)
    for i, codes_b in enumerate(codes.flatten(1).t()):
        torch.testing.assert_close(steps.logits(), expected[:, :, i], atol=1e-5, rtol=1e-5)
        steps.push(codes_b)


def test_a_pass_keeps_the_weights_that_it_began_with(make):
    prior = make("attention", 2)
    codes = torch.randint(7, (1, 3, 4))
    with torch.no_grad():
        expected = prior(codes).flatten(2)
    steps = prior.incremental((3, 4), batch_size=1)
    with torch.no_grad():
        for parameter in prior.layers.parameters():
            parameter.add_(1.0)
    for i, codes_b in enumerate(codes.flatten(1).t()):
        torch.testing.assert_close(steps.logits(), expected[:, :, i], atol=1e-5, rtol=0)
        steps.push(codes_b)
