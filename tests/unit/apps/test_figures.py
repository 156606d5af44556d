"""The figures of an evaluation stand beside the strongest baseline, and look at the images they say they look at."""

from __future__ import annotations

import pytest
import torch

from monai_vqgen.apps.figures import encode_slices, prior_figures
from monai_vqgen.apps.priors import TrainedPriors
from monai_vqgen.metrics import PositionHistogram
from monai_vqgen.networks import GatedPixelCNN, HierarchicalVQVAE


@pytest.mark.parametrize(("asked", "mirrors_help"), [(1, True), (0, False)])
def test_the_histogram_is_reported_with_or_without_mirror_images_whichever_is_lower(asked, mirrors_help):
    prior = GatedPixelCNN(4, channels=4, num_layers=1, attention_every=0).eval()
    grid = torch.zeros(6, 2, 3, dtype=torch.long)
    alone, both = PositionHistogram(4).fit(grid), PositionHistogram(4).fit(torch.cat([grid, grid + 1]))
    test = grid[:2] + asked
    bits = {True: both.bits_per_code(test), False: alone.bits_per_code(test)}
    assert bits[mirrors_help] < bits[not mirrors_help]
    (figures,) = prior_figures(
        TrainedPriors((prior,), ((2, 3),), None, "abc"),
        test_codes=[test],
        training_codes=[grid],
        mirrored_codes=[grid + 1],
        records=[{}, {}],
        training_records=[{}] * 6,
        sizes=[4],
        batch_size=2,
    )
    assert figures["histogram_bits_per_code"] == bits[mirrors_help]


def test_mirrored_codes_are_those_of_images_flipped_along_the_last_axis():
    torch.manual_seed(0)
    network = HierarchicalVQVAE(channels=8, residual_channels=4)
    images = torch.rand(5, 1, 16, 24)
    network.train_pass(images)
    slices = [{"image": image} for image in images]
    mirrored = encode_slices(network.eval(), slices, batch_size=2, mirror=True)
    expected = network.encode(images.flip(-1))
    for level in (0, 1):
        assert torch.equal(mirrored[level], expected[level])
    assert not torch.equal(mirrored[1], encode_slices(network, slices, batch_size=2)[1])
