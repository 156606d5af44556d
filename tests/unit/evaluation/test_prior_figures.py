"""What priors know of codes, by hand, beside the strongest baseline, and where there is something to know."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from factories import tiny_autoencoder, tiny_model

from monai_vqgen.evaluation.prior_figures import _with_content, inside_figures, prior_figures
from monai_vqgen.metrics import PositionHistogram
from monai_vqgen.models import SamplingSettings, TrainedModel
from monai_vqgen.models.loading import LoadedPriors
from monai_vqgen.networks import ConditionEncoder, GatedPixelCNN


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


class Slices(list):
    """A data set of images, of which nothing else is known."""

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__({"image": image} for image in images)
        self.data = [{}] * len(images)


class Told(torch.nn.Module):
    """A prior that gives the logits of one code table, for all positions alike."""

    condition_dim = 0

    def __init__(self, num_codes: int, logits_k: torch.Tensor) -> None:
        super().__init__()
        self.num_codes, self.logits_k = num_codes, logits_k

    def forward(self, codes_bs, coarser, condition):
        return self.logits_k.view(1, -1, 1, 1).expand(len(codes_bs), -1, *codes_bs.shape[1:])


def test_inside_figures_are_those_of_cells_with_content_by_hand():
    torch.manual_seed(0)
    model = tiny_model()
    model.batch_size = 2
    images = torch.zeros(3, 1, 16, 16)
    images[:, :, :5, 8:] = 0.5  # of four coarse cells the one above on the right, and of the fine ones two by two there
    codes = [torch.randint(8, (3, 2, 2)), torch.randint(8, (3, 4, 4))]
    logits = torch.randn(2, 8)
    model.priors = [Told(8, row) for row in logits]
    inside = [codes[0][:, 0, 1].flatten(), codes[1][:, :2, 2:].flatten()]
    for level, figures in enumerate(inside_figures(model, Slices(images), codes)):
        p = np.exp(logits[level].double().numpy())
        p /= p.sum()
        chosen = inside[level].numpy()
        assert figures["inside_bits_per_code"] == pytest.approx(-np.log2(p[chosen]).mean(), rel=1e-6)
        book = model.autoencoder.codebooks()[level].double().numpy()
        expected, mean = p @ book, book[chosen].mean(0)
        share = 1 - ((book[chosen] - expected) ** 2).sum() / ((book[chosen] - mean) ** 2).sum()
        assert figures["explained_variance"] == pytest.approx(share, rel=1e-5)


def test_cells_are_those_of_the_autoencoder_where_its_strides_do_not_divide_the_image():
    images = torch.zeros(1, 1, 9, 13)  # grids of 2 x 2 and 4 x 4 cells of 8 and 4 pixels, padded at the end
    images[:, :, 6, 7] = 0.5
    coarse, fine = (_with_content(images, (16 // stride, 16 // stride), stride) for stride in (8, 4))
    assert coarse.nonzero().tolist() == [[0, 0, 0]]
    assert fine.nonzero().tolist() == [[0, 1, 1]]


def test_where_slices_are_empty_nothing_is_said_of_their_inside():
    model = tiny_model()
    images = torch.zeros(2, 1, 16, 16)
    figures = inside_figures(model, Slices(images), model.encode(images))
    assert figures == [{"inside_bits_per_code": None, "explained_variance": None}] * 2
