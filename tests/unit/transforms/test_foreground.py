"""Box and window against scipy and numpy at full resolution."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from monai_vqgen.data import make_phantom, read_volume
from monai_vqgen.transforms import ExtractSlice, FitToSize, ScaleForeground
from monai_vqgen.transforms.foreground import find_foreground, foreground_window
from monai_vqgen.transforms.intensity import scale_to_window
from monai_vqgen.transforms.volume_slicing import cut_plane, locate_planes, prepare_volume


def oracle_box(volume, threshold):
    labels, _ = ndimage.label(volume > threshold)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    found = ndimage.find_objects((labels == sizes.argmax()).astype(int))[0]
    return np.array([s.start for s in found]), np.array([s.stop for s in found])


def assert_boxes_agree(volume, voxels):
    threshold = 0.02 * np.percentile(volume, 99.5)
    start, stop = oracle_box(volume, threshold)
    box = find_foreground(volume).box
    assert np.abs(np.array(box.start) - start).max() <= voxels, (box, start, stop)
    assert np.abs(np.array(box.stop) - stop).max() <= voxels, (box, start, stop)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_box_is_the_largest_components_at_full_resolution_in_any_memory_order(order):
    volume = np.zeros((150, 97, 211), dtype=np.float32).transpose(order)
    big, speck = [slice(None)] * 3, [slice(None)] * 3
    for axis, size in enumerate(volume.shape):
        big[axis], speck[axis] = slice(size // 3 + axis, size - 7 - axis), slice(1, 4)
    volume[tuple(big)] = 100
    volume[tuple(speck)] = 100
    box = find_foreground(volume[::-1]).box
    assert box.slices[1:] == tuple(big[1:])
    assert (box.start[0], box.stop[0]) == (volume.shape[0] - big[0].stop, volume.shape[0] - big[0].start)


def test_box_of_a_phantom_is_scipys():
    assert_boxes_agree(make_phantom(3, 1, voxel_mm=2.5).voxels_s, 0)


def test_window_is_numpys_percentiles_of_the_foreground():
    volume = make_phantom(3, 2, voxel_mm=2.5).voxels_s.astype(np.float32)
    threshold = 0.02 * np.percentile(volume, 99.5)
    expected = np.percentile(volume[volume > threshold], [0.5, 99.5])
    window = foreground_window(volume)
    np.testing.assert_allclose(window, expected, atol=0.01 * expected[1])


def test_a_hot_voxel_does_not_move_the_window():
    volume = make_phantom(3, 2, voxel_mm=4).voxels_s.astype(np.float32)
    before = foreground_window(volume)
    volume[tuple(n // 2 for n in volume.shape)] = 1e7
    np.testing.assert_allclose(foreground_window(volume), before, rtol=0.01)


def test_empty_has_no_box_and_constant_has_a_window_without_width():
    assert find_foreground(np.zeros((8, 8, 8))).box is None
    assert foreground_window(np.zeros((8, 8, 8))) == (0, 0)
    constant = np.full((8, 9, 10), 7.0)
    assert find_foreground(constant).box.stop == (8, 9, 10)
    assert foreground_window(constant) == (7, 7)
    assert find_foreground(np.full((8, 8, 8), -3.0)).box is None


def test_a_mask_takes_the_foregrounds_place():
    volume = np.random.default_rng(0).uniform(1, 2, (20, 21, 22))
    mask = np.zeros(volume.shape, dtype=bool)
    mask[3:9, 4:12, 5:20] = True
    assert find_foreground(volume, mask_s=mask).box == ((3, 4, 5), (9, 12, 20))
    np.testing.assert_allclose(foreground_window(volume, mask_s=mask), np.percentile(volume[mask], [0.5, 99.5]))


@pytest.mark.real
def test_box_and_window_of_real_volumes_are_those_of_the_full_resolution(real_data):
    paths = sorted((real_data / "volumes").glob("*.nii.gz"))
    for path in [paths[0], paths[3], paths[4], paths[-1]]:
        volume = read_volume(path).voxels_s
        # in a full head the noise around it touches the skin: components closer than a block count as one
        assert_boxes_agree(volume, 4 if path.name.startswith("openms") else 1)
        foreground = find_foreground(volume)
        inside = volume[foreground.box.slices]
        expected = np.percentile(inside[inside > foreground.threshold], [0.5, 99.5])
        window = foreground_window(volume, foreground=foreground)
        np.testing.assert_allclose(window, expected, atol=0.01 * expected[1], err_msg=path.name)


def brain():
    """A ball of textured positive values in zeros, the background of 60 % of its voxels."""
    x, y, z = np.meshgrid(*(np.linspace(-1.1, 1.1, n) for n in (40, 44, 36)), indexing="ij")
    values = np.random.default_rng(0).uniform(200, 1000, x.shape)
    return np.where(x**2 + y**2 + z**2 < 1, values, 0.0)


def z_scored(volume):
    inside = volume > 0
    return np.where(inside, (volume - volume[inside].mean()) / volume[inside].std(), 0.0)


OTHER_BACKGROUNDS = {
    "z-scored in the mask": z_scored,
    "z-scored as a whole": lambda volume: (volume - volume.mean()) / volume.std(),
    "from -1 to 1": lambda volume: volume / 500 - 1,
    "Hounsfield units": lambda volume: volume - 1024,
    "lifted": lambda volume: volume + 3000,
    "NaN around a z-scored brain": lambda volume: np.where(volume > 0, z_scored(volume), np.nan),
}


@pytest.mark.parametrize("kind", OTHER_BACKGROUNDS)
def test_plane_and_picture_do_not_depend_on_the_value_of_the_background(kind, tmp_path):
    """The slices are those of the volume as it was, by the extraction and by the transforms."""
    clean, other = brain(), OTHER_BACKGROUNDS[kind](brain())
    pictures = []
    for name, volume in (("clean", clean), ("other", other)):
        nib.save(nib.Nifti1Image(volume.astype(np.float32), np.diag([2.0, 2, 2, 1])), tmp_path / f"{name}.nii")
        read = read_volume(tmp_path / f"{name}.nii")
        prepared = prepare_volume(read.voxels_s, read.affine, "axial")
        (plane,) = locate_planes(prepared, [20.0])
        cut = cut_plane(prepared, plane)
        image = MetaTensor(torch.from_numpy(volume.astype(np.float32)[None]), affine=torch.as_tensor(read.affine))
        piece = ExtractSlice("axial", 20.0)(image)
        pictures.append(
            [
                scale_to_window(cut.pixels, prepared.window),
                ScaleForeground()(piece)[0].numpy(),
                ExtractSlice("axial", 20.0)(ScaleForeground()(image))[0].numpy(),
                FitToSize(44)(ScaleForeground()(piece))[0].numpy(),
            ]
        )
    for expected, found in zip(*pictures, strict=True):
        assert expected.std() > 0.2
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_single_brain_voxels_of_the_backgrounds_value_stay(tmp_path):
    volume = np.rint(100 * z_scored(brain()))
    background = find_foreground(volume).background
    assert (background.value, background.inner) == (0, True)
    volume[20, 22, 18] = 0
    hidden = background.hide(volume[:, :, 18])
    assert hidden[20, 22] == 0
    assert hidden[0, 0] == volume.min()


def test_ringing_below_a_black_background_changes_nothing():
    volume = brain()
    before = find_foreground(volume)
    volume[3:6, 8:10, 8:30][volume[3:6, 8:10, 8:30] == 0] = -40
    assert volume.min() == -40
    assert find_foreground(volume) == before
    assert before.background == (0, before.threshold, False)


def test_one_negative_voxel_does_not_move_the_background_of_a_volume_cropped_into_the_brain():
    volume = np.random.default_rng(0).uniform(300, 1000, (40, 44, 36))
    before = foreground_window(volume)
    volume[0, 0, 0] = -1
    assert find_foreground(volume).background.value == 0
    np.testing.assert_allclose(foreground_window(volume), before, atol=1)
    volume[0, 0, 0] = -1000
    np.testing.assert_allclose(foreground_window(volume), before, atol=1)


def test_a_z_scored_volume_cropped_into_the_brain_is_brain_down_to_its_darkest():
    volume = np.random.default_rng(0).normal(size=(40, 44, 36))
    assert np.mean(find_foreground(volume).background.foreground(volume)) > 0.97


def test_noise_in_air_of_negative_values_is_background():
    noisy = brain() - 1024 + np.random.default_rng(1).normal(0, 5, brain().shape)
    assert find_foreground(noisy).box == find_foreground(brain()).box


@pytest.mark.parametrize("padding", [-3024, -2048])
@pytest.mark.parametrize("noise", [0, 5])
def test_padding_around_the_air_of_a_ct_changes_nothing(padding, noise):
    air = brain() - 1000 + np.random.default_rng(1).normal(0, noise, brain().shape)
    x, y = np.meshgrid(*(np.linspace(-1.05, 1.05, n) for n in air.shape[:2]), indexing="ij")
    padded = np.where((x**2 + y**2 < 1.1)[..., None], air, padding)
    padded[..., [0, -1]] = padding
    assert find_foreground(padded).box == find_foreground(air).box
    np.testing.assert_allclose(foreground_window(padded), foreground_window(air), atol=10)
    stripped = np.where(brain() > 0, air, padding)
    assert find_foreground(stripped).box == find_foreground(brain()).box


def test_a_slice_is_centered_on_its_brain_whatever_the_background():
    clean = np.zeros((1, 40, 40), dtype=np.float32)
    clean[0, 4:20, 6:30] = np.random.default_rng(0).uniform(200, 1000, (16, 24))
    expected = FitToSize(32)(clean)[0].numpy() > 0
    for other in (z_scored(clean), clean / 500 - 1):
        low = FitToSize(32, fill=float(other[0, 0, 0]))(other.astype(np.float32))[0].numpy()
        np.testing.assert_array_equal(low != low[0, 0], expected)
