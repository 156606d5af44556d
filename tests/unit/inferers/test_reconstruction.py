"""Slice-wise reconstruction: any geometry in, the same geometry out."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.inferers.reconstruction import VolumeReconstructionInferer
from monai_vqgen.models.scans import as_volume
from monai_vqgen.networks import HierarchicalVQVAE


def smooth_volume(shape=(21, 18, 15), peak=900.0) -> np.ndarray:
    """An asymmetric bright blob on exact zeros, with two blank slices at either end of every axis."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    blob = peak * np.exp(-2 * ((grid[0] - 0.1) ** 2 + (grid[1] + 0.1) ** 2 + grid[2] ** 2)) * (1 + 0.3 * grid[0])
    inside = np.zeros(shape, bool)
    inside[2:-2, 2:-2, 2:-2] = True
    return np.where(inside, blob, 0).astype(np.float32)


def as_input(volume: np.ndarray, affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.tensor(volume.copy())[None], affine=torch.tensor(affine))[None]


def test_all_48_axis_orders_and_flips_give_the_same_anatomy():
    """The network sees the same slices whatever the storage, so a left-right asymmetric network is equivariant."""
    volume, affine = smooth_volume(), np.diag([2.0, 2.5, 3.0, 1.0])

    def network(images_bcs):  # not symmetric in any direction
        rows = torch.linspace(0, 0.4, images_bcs.shape[2])[:, None]
        return images_bcs * (0.5 + rows + torch.linspace(0, 0.1, images_bcs.shape[3]))

    inferer = VolumeReconstructionInferer("coronal", pixel_mm=2.2, image_size=20, intensity="unit")
    expected = inferer(as_input(volume, affine), network)[0, 0].numpy()
    for order, flips in itertools.product(itertools.permutations(range(3)), itertools.product([1, -1], repeat=3)):
        change = np.array([[axis, flip] for axis, flip in zip(order, flips, strict=True)], float)
        stored = nib.orientations.apply_orientation(volume, change)
        stored_affine = affine @ nib.orientations.inv_ornt_aff(change, volume.shape)
        result = inferer(as_input(stored, stored_affine), network)
        assert isinstance(result, MetaTensor)
        np.testing.assert_array_equal(result.affine.numpy(), stored_affine)
        np.testing.assert_allclose(
            result[0, 0].numpy(), nib.orientations.apply_orientation(expected, change), atol=1e-5
        )


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_identity_network_returns_the_input_in_its_units(plane):
    volume = smooth_volume() + 0
    result = VolumeReconstructionInferer(plane)(as_input(volume, np.eye(4)), torch.nn.Identity())[0, 0].numpy()
    low, high = np.percentile(volume[volume > 0.02 * np.percentile(volume, 99.5)], [0.5, 99.5])
    within = (volume > low + 0.03 * (high - low)) & (volume < high)
    np.testing.assert_allclose(result[within], volume[within], rtol=1e-3)
    assert (result[volume == 0] == 0).all()


@pytest.mark.parametrize(("lower", "upper"), [(0, 100), (5, 90)])
def test_the_window_is_between_the_given_percentiles_of_the_foreground(lower, upper):
    volume = smooth_volume()
    low, high = np.percentile(volume[volume > 0.02 * np.percentile(volume, 99.5)], [lower, upper])
    inferer = VolumeReconstructionInferer(intensity="unit", lower=lower, upper=upper)
    result = inferer(as_input(volume, np.eye(4)), torch.nn.Identity())[0, 0].numpy()
    np.testing.assert_allclose(result, np.clip((volume - low) / (high - low), 0, 1), atol=1e-5)


def test_resampling_to_the_models_pixels_and_back_keeps_smooth_anatomy_in_place():
    volume = ndimage.gaussian_filter(smooth_volume((41, 37, 6)), (2, 2, 0))
    affine = np.diag([0.8, 0.9, 3.0, 1.0])
    inferer = VolumeReconstructionInferer("axial", pixel_mm=1.3, intensity="unit")
    direct = VolumeReconstructionInferer("axial", intensity="unit")
    through = inferer(as_input(volume, affine), torch.nn.Identity())[0, 0].numpy()
    plain = direct(as_input(volume, affine), torch.nn.Identity())[0, 0].numpy()
    assert np.abs(through - plain).mean() < 0.01
    middle = [ndimage.center_of_mass(x) for x in (through, plain)]
    np.testing.assert_allclose(*middle, atol=0.05)


def test_blank_slices_are_not_shown_to_the_network_and_stay_blank():
    seen = []

    def network(images_bcs):
        seen.append(images_bcs)
        return torch.ones_like(images_bcs)

    volume = smooth_volume()
    for intensity in ("input", "unit"):
        result = VolumeReconstructionInferer("axial", batch_size=4, intensity=intensity)(
            as_input(volume, np.eye(4)), network
        )[0, 0].numpy()
        assert (result[..., :2] == 0).all()
        assert (result[..., -2:] == 0).all()
        assert (result[..., 7] > 0.9).all()
    assert all(len(batch) <= 4 and (batch.flatten(1).amax(1) > 0).all() for batch in seen)
    assert sum(len(batch) for batch in seen) == 2 * 11


def test_small_slices_are_padded_and_large_ones_never_cropped():
    sizes = []

    def network(images_bcs):
        sizes.append(tuple(images_bcs.shape[2:]))
        return images_bcs

    VolumeReconstructionInferer("axial", image_size=(16, 32))(as_input(smooth_volume(), np.eye(4)), network)
    assert set(sizes) == {(18, 32)}  # rows of an axial slice run front to back: the volume's second axis


@pytest.mark.parametrize(("shape", "codes"), [((9, 7, 1), "PLI"), ((1, 9, 7), "RIP"), ((9, 1, 7), "IPL")])
def test_a_single_slice_keeps_its_plane_and_its_range(shape, codes):
    affine = nib.orientations.inv_ornt_aff(
        nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
        ),
        shape,
    )
    image = np.random.default_rng(0).random(shape).astype(np.float32) * 0.5
    result = VolumeReconstructionInferer("coronal", image_size=12)(as_input(image, affine), torch.nn.Identity())
    np.testing.assert_allclose(result[0, 0].numpy(), image, atol=1e-6)


def test_pictures_without_geometry_pass_through_a_real_network():
    network = HierarchicalVQVAE(channels=8, residual_channels=4).eval()
    images = torch.rand(3, 1, 19, 23)
    result = VolumeReconstructionInferer(pixel_mm=None, batch_size=2)(images, network)
    with torch.no_grad():  # in the same batches: in others a near-tie may choose another code
        expected = torch.cat([network(images[:2]), network(images[2:])]).clamp(0, 1)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plane": "oblique"}, "axial"),
        ({"pixel_mm": 0}, "pixel_mm"),
        ({"batch_size": 0}, "batch_size"),
        ({"lower": 50, "upper": 50}, "percentiles"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(InputError, match=message):
        VolumeReconstructionInferer(**change)


def test_volumes_that_cannot_be_reconstructed_are_refused():
    inferer = VolumeReconstructionInferer()
    with pytest.raises(ScanError, match="no contrast"):
        inferer(torch.full((1, 1, 4, 4, 4), 3.0), torch.nn.Identity())
    with pytest.raises(InputError, match="one channel"):
        inferer(torch.zeros(1, 2, 4, 4, 4), torch.nn.Identity())


def test_what_cannot_be_reconstructed_is_told_beforehand():
    inferer = VolumeReconstructionInferer()
    with pytest.raises(ScanError, match="no contrast"):
        inferer.check(torch.full((1, 4, 4, 4), 3.0))
    for usable in (torch.from_numpy(smooth_volume())[None], torch.zeros(1, 8, 8), torch.zeros(1, 8, 8, 1)):
        inferer.check(usable)


def test_real_volumes_survive_both_resamplings(real_data):
    """Compared at the pixel size of the slices, blank ones included: 36 dB with linear interpolation back."""
    for path in sorted((real_data / "volumes").glob("ds002748_*.nii.gz")):
        volume = as_volume(path)
        inferer = VolumeReconstructionInferer("axial", pixel_mm=1.736, intensity="unit")
        same_grid = VolumeReconstructionInferer("axial", intensity="unit")
        result, wanted = (i(volume[None], torch.nn.Identity())[0, 0] for i in (inferer, same_grid))
        error = torch.nn.functional.avg_pool2d((result - wanted).movedim(-1, 0)[:, None], 2)
        assert -10 * error.square().mean().log10() >= 40


def test_a_window_is_what_the_network_sees_and_its_ends_are_what_comes_back():
    seen = []

    def network(images):
        seen.append(images)
        return images

    volume = torch.full((1, 1, 12, 12, 4), -1000.0)
    volume[..., 3:9, 3:9, :] = torch.linspace(-150, 450, 6 * 6 * 4).reshape(6, 6, 4)
    result = VolumeReconstructionInferer("axial", window=(0, 200))(volume, network)
    assert torch.cat(seen).min() == 0
    assert torch.cat(seen).max() == 1
    inside = (volume > 10) & (volume < 200)
    torch.testing.assert_close(result[inside], volume[inside], atol=1e-3, rtol=0)
    assert result[volume >= 200].unique().tolist() == pytest.approx([200.0])
    assert (result[volume == -1000] == -1000).all()


@pytest.mark.parametrize("shape", [(3, 2, 8, 8), (3, 2, 8, 8, 1)])
def test_images_of_several_channels_are_shown_as_they_are_and_blank_ones_not_changed(shape):
    images = torch.rand(shape)
    images[1] = 0
    shown = []

    def network(batch):
        shown.append(batch)
        return 2 * batch + 0.1

    result = VolumeReconstructionInferer("axial", batch_size=2, pixel_mm=3.0)(images, network)
    assert [batch.shape for batch in shown] == [(2, 2, 8, 8), (1, 2, 8, 8)]
    torch.testing.assert_close(result[[0, 2]], (2 * images[[0, 2]] + 0.1).clamp(0, 1))
    assert not result[1].any()


def test_pictures_know_no_millimeters_and_are_not_resampled():
    images = torch.rand(2, 1, 9, 7)
    result = VolumeReconstructionInferer("axial", pixel_mm=3.0)(images, torch.nn.Identity())
    torch.testing.assert_close(result, images)


@pytest.mark.parametrize("fits", [2, 1])
def test_slices_of_a_volume_that_do_not_fit_into_memory_together_are_shown_in_halves(fits):
    """Once: then the error says so."""
    volume = torch.rand(1, 1, 12, 10, 8, generator=torch.Generator().manual_seed(0)) + 0.1
    infer = VolumeReconstructionInferer("axial", batch_size=4)

    def scarce(images):
        if len(images) > fits:
            raise RuntimeError("CUDA out of memory")
        return images

    if fits == 2:
        assert torch.equal(infer(volume, scarce), infer(volume, torch.nn.Identity()))
    else:
        with pytest.raises(InputError, match="memory ran out with a batch of 4, and with its halves"):
            infer(volume, scarce)


def test_of_large_slices_fewer_are_shown_at_once(monkeypatch):
    """Few voxels that a header makes large ask for no more memory than many small slices."""
    monkeypatch.setattr("monai_vqgen.inferers.reconstruction.PIXELS_AT_ONCE", 1000)
    shown = []

    def network(images):
        shown.append(len(images))
        return images

    for side, expected in ((30, [1] * 5), (20, [2, 2, 1]), (5, [5])):
        volume = torch.rand(1, 1, side, side, 5, generator=torch.Generator().manual_seed(0)) + 0.1
        result = VolumeReconstructionInferer("axial", batch_size=16)(volume, network)
        assert (shown, result.shape) == (expected, volume.shape)
        shown.clear()


def test_a_network_of_volumes_sees_the_same_volume_in_all_48_axis_orders():
    volume, affine = smooth_volume(), np.diag([2.0, 2.5, 3.0, 1.0])
    seen = []

    def network(images_bcs):  # not symmetric in any direction
        seen.append(images_bcs.shape)
        ramps = [torch.linspace(0.3, 0.3 + 0.1 * n, size) for n, size in enumerate(images_bcs.shape[2:], start=1)]
        return images_bcs * (ramps[0][:, None, None] + ramps[1][:, None] + ramps[2])

    inferer = VolumeReconstructionInferer("volume", pixel_mm=2.2, image_size=(20, 24, 22), intensity="unit")
    expected = inferer(as_input(volume, affine), network)[0, 0].numpy()
    for order, flips in itertools.product(itertools.permutations(range(3)), itertools.product([1, -1], repeat=3)):
        change = np.array([[axis, flip] for axis, flip in zip(order, flips, strict=True)], float)
        stored = nib.orientations.apply_orientation(volume, change)
        result = inferer(as_input(stored, affine @ nib.orientations.inv_ornt_aff(change, volume.shape)), network)
        np.testing.assert_allclose(
            result[0, 0].numpy(), nib.orientations.apply_orientation(expected, change), atol=1e-5
        )
    assert set(seen) == {(1, 1, 20, 24, 22)}


def test_a_network_of_volumes_gives_back_the_input_in_its_units_and_what_is_normalized_as_it_is():
    volume = smooth_volume()
    result = VolumeReconstructionInferer("volume")(as_input(volume, np.eye(4)), torch.nn.Identity())[0, 0].numpy()
    low, high = np.percentile(volume[volume > 0.02 * np.percentile(volume, 99.5)], [0.5, 99.5])
    within = (volume > low + 0.03 * (high - low)) & (volume < high)
    np.testing.assert_allclose(result[within], volume[within], rtol=1e-3)
    scaled = volume / 1800
    same = VolumeReconstructionInferer("volume")(as_input(scaled, np.eye(4)), torch.nn.Identity())[0, 0].numpy()
    np.testing.assert_allclose(same, scaled, atol=1e-6)


def test_a_network_of_volumes_is_shown_no_slices():
    inferer = VolumeReconstructionInferer("volume")
    with pytest.raises(ScanError, match="a single slice of shape"):
        inferer(torch.rand(1, 1, 8, 8, 1), torch.nn.Identity())
    with pytest.raises(InputError, match="for a network of volumes"):
        inferer(torch.rand(1, 1, 8, 8), torch.nn.Identity())
    with pytest.raises(InputError, match="give 3 numbers"):
        VolumeReconstructionInferer("volume", image_size=(8, 8))
