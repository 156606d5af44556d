"""Box and window against scipy and numpy at full resolution."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from monai_vqgen.data import make_phantom, read_volume
from monai_vqgen.transforms.foreground import find_foreground, foreground_window


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
