"""The figures of an evaluation stand beside the strongest baseline, and are of the images and passes they name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from factories import tiny_autoencoder
from near_ties import assert_same_codes

from monai_vqgen.evaluation import sections
from monai_vqgen.evaluation.sections import WHOLE_GRID_PASSES, encode_slices, prior_figures, whole_grid_seconds
from monai_vqgen.metrics import PositionHistogram
from monai_vqgen.models import SamplingSettings, TrainedModel
from monai_vqgen.models.loading import LoadedPriors
from monai_vqgen.networks import ConditionEncoder, GatedPixelCNN, HierarchicalVQVAE


def model_of(priors, grids, condition=None) -> TrainedModel:
    settings = SamplingSettings.recorded([{}] * len(priors))
    model = TrainedModel(tiny_autoencoder(), LoadedPriors(tuple(priors), grids, condition, settings))
    model.batch_size = 3
    return model


@pytest.mark.parametrize(("asked", "mirrors_help"), [(1, True), (0, False)])
def test_the_histogram_is_reported_with_or_without_mirror_images_whichever_is_lower(asked, mirrors_help):
    prior = GatedPixelCNN(4, channels=4, num_layers=1, attention_every=0).eval()
    grid = torch.zeros(6, 2, 3, dtype=torch.long)
    alone, both = PositionHistogram(4).fit(grid), PositionHistogram(4).fit(torch.cat([grid, grid + 1]))
    test = grid[:2] + asked
    bits = {True: both.bits_per_code(test), False: alone.bits_per_code(test)}
    assert bits[mirrors_help] < bits[not mirrors_help]
    (figures,) = prior_figures(
        model_of((prior,), ((2, 3),)),
        test_codes=[test],
        training_codes=[grid],
        mirrored_codes=[grid + 1],
        records=[{}, {}],
        training_records=[{}] * 6,
    )
    assert figures["histogram_bits_per_code"] == bits[mirrors_help]


def bits_by_hand(prior, codes, coarser, condition) -> float:
    with torch.no_grad():
        logits = prior(codes, coarser, condition).double().numpy()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    own = np.take_along_axis(log_p, codes.numpy()[:, None], axis=1)
    return float(-own.mean() / np.log(2))


def test_bits_per_code_are_those_of_test_slices_and_of_as_many_training_slices_evenly_chosen():
    torch.manual_seed(0)
    encoder, sizes, grids = ConditionEncoder({"position_mm": (0.0, 10.0)}), (4, 6), ((2, 3), (4, 6))
    priors = [
        GatedPixelCNN(
            size, channels=4, num_layers=1, attention_every=0, coarser_codes=sizes[:level], condition_dim=encoder.dim
        ).eval()
        for level, size in enumerate(sizes)
    ]
    for prior in priors:
        for parameter in prior.parameters():
            torch.nn.init.normal_(parameter, std=0.7)  # so that every slice has another price
    codes = {
        count: [torch.randint(size, (count, *grid)) for size, grid in zip(sizes, grids, strict=True)]
        for count in (4, 10)
    }
    records = {4: [{"position_mm": 2.5 * i} for i in range(4)], 10: [{"position_mm": 10.0 - i} for i in range(10)]}
    figures = prior_figures(
        model_of(priors, grids, encoder),
        test_codes=codes[4],
        training_codes=codes[10],
        mirrored_codes=codes[10],
        records=records[4],
        training_records=records[10],
    )
    chosen = {"bits_per_code": (4, [0, 1, 2, 3]), "training_bits_per_code": (10, [0, 3, 6, 9])}
    for level, prior in enumerate(priors):
        expected = {}
        for name, (count, rows) in chosen.items():
            grid, *coarser = (codes[count][i][rows] for i in (level, *range(level)))
            expected[name] = bits_by_hand(prior, grid, coarser, encoder.encode([records[count][i] for i in rows]))
            assert figures[level][name] == pytest.approx(expected[name], rel=1e-5), (level, name)
        assert abs(expected["bits_per_code"] - expected["training_bits_per_code"]) > 0.01  # or they could be swapped


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
