"""The filter bank against waves of known amplitude, whitening against numpy's SVD."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from monai_vqgen.errors import InputError
from monai_vqgen.metrics.features import NetworkFeatures, WhitenedFeatures, distance_blocks
from monai_vqgen.metrics.filter_bank import FilterBankFeatures


def random_images(count: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed))


def wave(wavelength: float, degrees: float, amplitude: float, phase: float, size: int = 128) -> torch.Tensor:
    rows, columns = np.mgrid[:size, :size]
    along = columns * math.cos(math.radians(degrees)) + rows * math.sin(math.radians(degrees))
    image = 0.5 + amplitude * np.cos(2 * math.pi * along / wavelength + phase)
    return torch.tensor(image, dtype=torch.float32)[None, None]


def maps_of(images: torch.Tensor, **settings: int) -> torch.Tensor:
    """(n, maps, grid, grid)"""
    bank = FilterBankFeatures(**settings)
    return bank(images).reshape(len(images), -1, bank.grid, bank.grid)


@pytest.mark.parametrize("orientation", range(4))
@pytest.mark.parametrize("phase", [0.0, 1.0])
def test_the_matching_filter_reads_a_waves_amplitude_at_any_phase_and_the_crossing_one_nothing(orientation, phase):
    # the center of a 128-pixel image, away from the padded border
    amplitudes = maps_of(wave(4, 45 * orientation, 0.2, phase))[0, 2:, 1:3, 1:3].mean((1, 2)).reshape(3, 4)
    assert amplitudes[0, orientation].item() == pytest.approx(0.2, abs=0.002)
    assert amplitudes[0, (orientation + 2) % 4].item() < 0.002
    assert amplitudes.argmax().item() == orientation


@pytest.mark.parametrize("scale", [1, 2])
def test_waves_twice_as_long_are_read_one_scale_up(scale):
    amplitudes = maps_of(wave(4 * 2**scale, 0, 0.2, 0.3))[0, 2:, 1:3, 1:3].mean((1, 2)).reshape(3, 4)
    assert amplitudes.argmax().item() == 4 * scale
    assert amplitudes[scale, 0].item() > 0.15  # averaging of pixels before halving costs a little


def test_a_constant_image_is_brightness_alone():
    maps = maps_of(torch.full((1, 1, 40, 52), 0.3))
    torch.testing.assert_close(maps[0, 0], torch.full((4, 4), 0.3))
    assert maps[0, 1:].abs().max().item() < 1e-6


def test_brightness_is_the_mean_of_each_part():
    images = random_images(2)
    expected = images.reshape(2, 4, 8, 4, 8).mean((2, 4))
    torch.testing.assert_close(maps_of(images)[:, 0], expected)


def test_blur_lowers_the_pixel_scale_residual():
    images = random_images(2)
    blurred = torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    assert (maps_of(blurred)[:, 1] < 0.5 * maps_of(images)[:, 1]).all()


def test_features_are_a_fixed_function_of_each_image_alone():
    images = random_images(7)
    whole = FilterBankFeatures()(images)
    torch.testing.assert_close(FilterBankFeatures(batch_size=2)(images), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(FilterBankFeatures()(images[3:4]), whole[3:4], rtol=1e-5, atol=1e-6)
    assert whole.shape == (7, 224)


def test_whitening_equals_principal_components_by_svd():
    training, others = random_images(60), random_images(9, seed=1)
    bank = FilterBankFeatures(scales=1, orientations=2, grid=2)
    space = WhitenedFeatures(bank, components=5).fit(training)
    x, y = bank(training).double().numpy(), bank(others).double().numpy()
    _, singular, rows = np.linalg.svd(x - x.mean(0), full_matrices=False)
    expected = (y - x.mean(0)) @ rows[:5].T / singular[:5] * math.sqrt(59)
    signs = np.sign(rows[np.arange(5), np.abs(rows[:5]).argmax(1)])
    np.testing.assert_allclose(space(others).numpy(), expected * signs, atol=1e-7)
    np.testing.assert_allclose(np.cov(space(training).numpy().T), np.eye(5), atol=1e-9)


def test_whitening_leaves_out_components_of_rounding():
    def three_in_two_dimensions(images):
        means = images.mean((2, 3))
        halves = images[..., :16].mean((2, 3))
        return torch.cat([means, halves, means + halves], 1).double()

    space = WhitenedFeatures(three_in_two_dimensions).fit(random_images(20))
    assert space(random_images(4)).shape == (4, 2)
    assert space.description.startswith("2 principal components")


def test_a_network_sees_resized_normalized_images_and_its_maps_are_averaged():
    seen = []

    def network(images):
        seen.append(images)
        return images * torch.tensor([1.0, 2.0, 3.0])[:, None, None]

    space = NetworkFeatures(network, name="probe", image_size=(16, 16), mean=[0.5, 0.25, 0.0], std=0.5, batch_size=2)
    features = space(torch.full((3, 1, 32, 32), 0.75))
    assert [tuple(x.shape) for x in seen] == [(2, 3, 16, 16), (1, 3, 16, 16)]
    torch.testing.assert_close(features, torch.tensor([[0.5, 2.0, 4.5]], dtype=torch.float64).expand(3, 3))


def test_a_torchscript_file_is_a_feature_space_in_evaluation_mode(tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Dropout(0.5))
    torch.jit.save(torch.jit.script(network), tmp_path / "features.pt")
    space = NetworkFeatures.from_file(tmp_path / "features.pt", channels=1)
    images = random_images(3)
    expected = network.eval()(images).detach().mean((2, 3)).double()
    torch.testing.assert_close(space(images), expected, rtol=1e-5, atol=1e-6)
    assert space.description == "features of features at the images' own size"
    smaller = NetworkFeatures.from_file(tmp_path / "features.pt", image_size=[16, 12], channels=1, mean=0.5, std=0.25)
    assert smaller.description == "features of features at 16 x 12"
    half = torch.full((2, 1, 32, 32), 0.5)
    expected = network(torch.zeros(2, 1, 16, 12)).detach().mean((2, 3)).double()
    torch.testing.assert_close(smaller(half), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 299}, r"image_size=299: give rows and columns"),
        ({"image_size": [299]}, r"two whole numbers above 0"),
        ({"image_size": [0, 299]}, r"two whole numbers above 0"),
        ({"channels": 0}, r"at least one channel"),
        ({"channels": 1, "mean": [0.1, 0.2, 0.3]}, r"one for each of the 1 channels"),
        ({"std": [0.1, 0.2]}, r"one for each of the 3 channels"),
        ({"std": 0.0}, r"std=0.0: must be above 0"),
    ],
)
def test_what_no_network_can_want_is_refused(tmp_path, wrong, message):
    torch.jit.save(torch.jit.script(torch.nn.Conv2d(3, 2, 3)), tmp_path / "features.pt")
    with pytest.raises(InputError, match=message):
        NetworkFeatures.from_file(tmp_path / "features.pt", **wrong)


def test_images_that_a_network_does_not_take_are_refused_with_their_shape():
    space = NetworkFeatures(torch.nn.Conv2d(3, 2, 3), name="colors", channels=1)
    with pytest.raises(InputError, match=r"colors does not take images of shape \(2, 1, 32, 32\)"):
        space(random_images(2))


def test_a_file_that_holds_no_network_is_named(tmp_path):
    (tmp_path / "notes.pt").write_text("not a network")
    for name in ("notes.pt", "nowhere.pt"):
        with pytest.raises(InputError, match=rf"{name} cannot be read as TorchScript"):
            NetworkFeatures.from_file(tmp_path / name)


def test_distances_by_blocks_equal_a_double_loop_and_a_copy_is_at_zero(monkeypatch):
    monkeypatch.setattr("monai_vqgen.metrics.features.DISTANCE_CHUNK", 3)
    x = 1e4 + torch.rand(7, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = torch.cat([block for _, block in distance_blocks(x, x)])
    expected = [[math.dist(a, b) for b in x.tolist()] for a in x.tolist()]
    np.testing.assert_allclose(got.numpy(), expected)
    assert (got.diagonal() == 0).all()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 32, 32), "shape"),
        (torch.rand(0, 1, 32, 32), "too few"),
        (torch.full((2, 1, 32, 32), math.nan), "not finite"),
        (torch.full((2, 1, 32, 32), 200.0), "scale images to"),
        (torch.rand(2, 1, 40, 31), "at least 32"),
    ],
)
def test_images_without_features_are_named(images, message):
    with pytest.raises(InputError, match=message):
        FilterBankFeatures()(images)


def test_spaces_that_cannot_work_are_refused():
    with pytest.raises(InputError, match="scales=0"):
        FilterBankFeatures(scales=0)
    with pytest.raises(InputError, match="components=0"):
        WhitenedFeatures(FilterBankFeatures(), components=0)
    with pytest.raises(InputError, match="Fit the whitening"):
        WhitenedFeatures(FilterBankFeatures())(random_images(2))
    with pytest.raises(InputError, match="all alike"):
        WhitenedFeatures(FilterBankFeatures()).fit(random_images(1).expand(9, -1, -1, -1))
    with pytest.raises(InputError, match="too few"):
        WhitenedFeatures(FilterBankFeatures()).fit(random_images(1))
    with pytest.raises(InputError, match="returned tuple"):
        NetworkFeatures(lambda images: (images, images), name="two heads")(random_images(2))
