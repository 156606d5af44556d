"""Bits of each position add up to the priors' own, and restorations change what they may."""

from __future__ import annotations

import math

import pytest
import torch
from factories import POSITIONS, tiny_autoencoder, tiny_model

from monai_vqgen.anomaly import restore, unlikely_codes
from monai_vqgen.errors import CheckpointError, InputError
from monai_vqgen.models import TrainedModel


def images(count: int = 2, *, size: tuple[int, ...] = (16, 16)) -> torch.Tensor:
    return torch.rand(count, 1, *size, generator=torch.Generator().manual_seed(0))


def model_of_many_codes(size: tuple[int, ...] = (16, 16), **more: object) -> TrainedModel:
    """Whose codebooks lie among the latents of noise: an untrained one writes nearly everything as one code."""
    network = tiny_autoencoder(spatial_dims=len(size))
    network.train_pass(images(16, size=size))
    assert all(grid.unique().numel() > 3 for grid in network.encode(images(size=size)))
    return tiny_model(size, autoencoder=network.eval(), spatial_dims=len(size), **more)


def test_the_bits_of_all_positions_are_those_of_log_prob_and_each_covers_its_pixels():
    model, shown = model_of_many_codes(condition=POSITIONS), images()
    maps = model.nll_maps(shown, mirrored=False, position_mm=50.0)
    nats = model.log_prob(model.encode(shown), position_mm=50.0)
    for map_bhw, nats_b, stride in zip(maps, nats, (8, 4), strict=True):
        assert map_bhw.shape == (2, 16, 16)
        torch.testing.assert_close(map_bhw.flatten(1).sum(1) / stride**2, -nats_b / math.log(2))
        corner_bhw = map_bhw[:, ::stride, ::stride]
        assert torch.equal(corner_bhw.repeat_interleave(stride, 1).repeat_interleave(stride, 2), map_bhw)


def test_the_mirrored_map_is_the_mean_of_both_readings_and_mirrors_with_the_slice():
    model, shown = model_of_many_codes(), images()
    both, turned = model.nll_maps(shown), model.nll_maps(shown.flip(-1))
    one, other = model.nll_maps(shown, mirrored=False), model.nll_maps(shown.flip(-1), mirrored=False)
    for level in range(2):
        torch.testing.assert_close(both[level], (one[level] + other[level].flip(-1)) / 2)
        torch.testing.assert_close(both[level], turned[level].flip(-1))


def test_volumes_are_mirrored_along_their_first_axis_and_sagittal_slices_not_at_all():
    volumes, shown = model_of_many_codes((16, 16, 16)), images(size=(16, 16, 16))
    for both, turned in zip(volumes.nll_maps(shown), volumes.nll_maps(shown.flip(2)), strict=True):
        torch.testing.assert_close(both, turned.flip(1))
    sagittal = model_of_many_codes(record={"plane": "sagittal"})
    for both, one in zip(sagittal.nll_maps(images()), sagittal.nll_maps(images(), mirrored=False), strict=True):
        assert torch.equal(both, one)


def test_a_map_has_the_pixels_of_a_slice_that_the_stride_does_not_divide():
    model = tiny_model((13, 18), autoencoder=tiny_autoencoder())
    maps = model.nll_maps(images(size=(13, 18)))
    assert [tuple(map_bhw.shape) for map_bhw in maps] == [(2, 13, 18)] * 2


def test_a_restoration_draws_only_codes_that_touch_the_mask(monkeypatch):
    model, shown = model_of_many_codes(), images()
    kept, decode = model.encode(shown), model.decode
    drawn: list[list[torch.Tensor]] = []
    monkeypatch.setattr(model, "decode", lambda codes, size: drawn.append(codes) or decode(codes, size))
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[12:, 12:] = True
    model.restore(shown, mask=mask, draws=8)
    for grid, before, cells in zip(drawn[0], kept, (2, 4), strict=True):
        touched = torch.zeros(cells, cells, dtype=torch.bool)
        touched[-1, -1] = True
        changed = grid != before.repeat_interleave(8, 0)
        assert not changed[:, ~touched].any()
        assert changed[:, touched].any()


def test_a_restoration_depends_on_the_seed_alone_and_its_draws_differ():
    model, shown = tiny_model(), images()
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[12:, 12:] = True
    drawn = model.restore(shown, mask=mask, draws=4, seed=5)
    assert drawn.shape == (2, 4, 1, 16, 16)
    model.batch_size = 3
    torch.testing.assert_close(model.restore(shown, mask=mask, draws=4, seed=5), drawn)
    torch.testing.assert_close(model.restore(shown[:1], mask=mask, draws=4, seed=5), drawn[:1])
    assert not torch.equal(model.restore(shown, mask=mask, draws=4, seed=6), drawn)
    assert drawn.flatten(0, 1).unique(dim=0).shape[0] > 2, "draws differ"


def test_the_codes_of_the_most_bits_of_each_slice_are_the_unlikely_ones():
    model, shown = tiny_model((32, 32)), images(size=(32, 32))
    codes = model.encode(shown)
    masks = unlikely_codes(model, codes, quantile=0.75)
    for nats_bs, mask_bs in zip(model.log_prob_maps(codes), masks, strict=True):
        for nats_s, mask_s in zip(nats_bs, mask_bs, strict=True):
            assert 0 < mask_s.float().mean() <= 0.25
            assert nats_s[mask_s].max() < nats_s[~mask_s].min()
    drawn = model.restore(shown, quantile=0.75, draws=2, seed=1)
    by_hand = model.sampler().complete(
        [grid.repeat_interleave(2, 0) for grid in codes], [mask.repeat_interleave(2, 0) for mask in masks], seed=1
    )
    torch.testing.assert_close(drawn.flatten(0, 1), model.decode(by_hand, (32, 32)))


def test_a_full_mask_gives_samples():
    model = tiny_model()
    everything = model.restore(images(), mask=torch.ones(16, 16), draws=1, seed=2)
    drawn = model.sampler().sample(model.grids, num_samples=2, seed=2)
    torch.testing.assert_close(everything[:, 0], model.decode(drawn, (16, 16)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": torch.zeros(16, 16)}, "marks no pixel"),
        ({"mask": torch.ones(8, 16)}, r"the mask has shape \(8, 16\)"),
        ({"draws": 0}, "draws is 0"),
        ({"quantile": 1.0}, "quantile is 1.0"),
        ({"age": 30}, "take no condition"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        tiny_model().restore(images(), **options)


def test_masks_that_do_not_fit_the_codes_are_refused():
    model = tiny_model()
    codes = model.encode(images())
    for masks in ([codes[0] > 0], [codes[0] > 0, codes[0] > 0]):
        with pytest.raises(InputError, match="give one like the codes for each level"):
            restore(model, codes, masks, image_size=(16, 16))


def test_slices_of_another_size_and_models_without_priors_are_refused():
    with pytest.raises(InputError, match=r"trained on images of \(16, 16\)"):
        tiny_model().nll_maps(images(size=(32, 16)))
    with pytest.raises(CheckpointError, match="no priors"):
        tiny_model(with_priors=False).nll_maps(images())
