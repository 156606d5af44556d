"""The figures of an evaluation stand beside the strongest baseline, and are of the images and passes they name."""

from __future__ import annotations

import pytest
import torch
from near_ties import assert_same_codes

from monai_vqgen.evaluation import sections
from monai_vqgen.evaluation.sections import WHOLE_GRID_PASSES, encode_slices, whole_grid_seconds
from monai_vqgen.models import TrainedModel
from monai_vqgen.networks import HierarchicalVQVAE


@pytest.mark.parametrize(("size", "axis"), [((16, 24), 3), ((16, 24, 8), 2)], ids=["columns", "first of a volume"])
def test_mirrored_codes_are_those_of_images_flipped_from_left_to_right(size, axis):
    torch.manual_seed(0)
    network = HierarchicalVQVAE(len(size), channels=8, residual_channels=4, num_codes=16)
    images = torch.rand(5, 1, *size)
    network.train_pass(images)
    slices = [{"image": image} for image in images]
    model = TrainedModel(network)
    model.batch_size = 2
    mirrored = encode_slices(model, slices, mirror=True)
    expected = network.encode(images.flip(axis))
    for found, grid in zip(mirrored, expected, strict=True):
        assert_same_codes(found, grid)  # computed in batches of 2 and of 5
    assert not torch.equal(mirrored[1], encode_slices(model, slices)[1])


class Clocked(torch.nn.Module):
    """A prior whose pass over the whole grid takes as many seconds, on a clock of the test's, as it is told."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds
        self.seen: list[tuple] = []

    def forward(self, codes, coarser, condition):
        self.clock[0] += self.seconds
        self.seen.append((codes.shape, len(coarser), condition))


def test_whole_grid_time_is_one_pass_for_every_position_of_every_level(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(sections, "finished_time", lambda device: clock[0])
    networks = (Clocked(clock, 0.5), Clocked(clock, 2.0))
    codes = [torch.zeros(3, 2, 4, dtype=torch.long), torch.zeros(3, 4, 8, dtype=torch.long)]
    condition = torch.zeros(3, 1)
    assert whole_grid_seconds(networks, codes, condition) == 8 * 0.5 + 32 * 2.0
    for level, network in enumerate(networks):
        assert network.seen == [(codes[level].shape, level, condition)] * (WHOLE_GRID_PASSES + 1)  # one to warm up
