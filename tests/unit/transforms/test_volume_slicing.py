"""The plane at a position is the one that a search over all planes in the world finds."""

from __future__ import annotations

import numpy as np
import pytest
from nibabel.affines import apply_affine

from monai_vqgen.data import make_phantom
from monai_vqgen.errors import ScanError
from monai_vqgen.transforms.volume_slicing import allowed_range, cut_plane, locate_planes, prepare_volume


@pytest.fixture(scope="module")
def head():
    return make_phantom(2, 1, voxel_mm=5.0, orientation="PIR")


def straight(head):
    """The phantom on a grid along the world's axes, so that distances along the normal are world distances."""
    affine = np.zeros((4, 4))
    for axis in range(3):
        largest = np.abs(head.affine[:3, axis]).argmax()
        affine[largest, axis] = np.sign(head.affine[largest, axis]) * (4.0 + axis)
    affine[3, 3] = 1
    return head.voxels_s, affine


@pytest.mark.parametrize(("plane", "world", "sign"), [("axial", 2, -1), ("coronal", 1, -1), ("sagittal", 0, 1)])
def test_the_nearest_plane_is_found_and_its_own_position_told(head, plane, world, sign):
    voxels, affine = straight(head)
    prepared = prepare_volume(voxels, affine, plane)
    edge_voxels = np.argwhere(voxels > prepared.threshold)
    coordinate = sign * apply_affine(affine, edge_voxels)[:, world]
    centers = np.unique(coordinate)
    low, high = allowed_range(prepared)
    assert (low, high) == pytest.approx((0, centers.max() - centers.min()))
    for position in np.random.default_rng(0).uniform(low, high, 20):
        (found,) = locate_planes(prepared, [position])
        distances = np.abs(centers - centers.min() - position)
        assert found is not None
        assert found.position_mm == pytest.approx(centers[distances.argmin()] - centers.min())
        pixels = cut_plane(prepared, found).pixels
        depth = sign * apply_affine(affine, np.indices(voxels.shape).reshape(3, -1).T)[:, world].reshape(voxels.shape)
        expected = voxels[np.isclose(depth, found.position_mm + centers.min())].astype(np.float32)
        np.testing.assert_array_equal(np.sort(pixels.ravel()), np.sort(expected))


def test_outside_there_is_no_plane_but_half_a_plane_beyond_the_edge_counts(head):
    prepared = prepare_volume(*straight(head), "axial")
    spacing = prepared.view.spacing[2]
    _, high = allowed_range(prepared)
    asked = [-0.49 * spacing, -0.51 * spacing, high + 0.49 * spacing, high + 0.51 * spacing, float("nan")]
    assert [plane is not None for plane in locate_planes(prepared, asked)] == [True, False, True, False, False]


def test_nan_counts_as_background(head):
    voxels, affine = straight(head)
    voxels = voxels.astype(np.float32)
    clean = prepare_volume(voxels, affine, "axial")
    (plane,) = locate_planes(clean, [60.0])
    volume = clean.view.volume_s
    damaged = clean._replace(view=clean.view._replace(volume_s=np.where(volume == 0, np.nan, volume)))
    np.testing.assert_array_equal(cut_plane(damaged, plane).pixels, cut_plane(clean, plane).pixels)


def test_an_empty_volume_or_mask_is_refused_by_name():
    with pytest.raises(ScanError, match=r"a\.nii: the volume is empty"):
        prepare_volume(np.zeros((4, 4, 4)), np.eye(4), "axial", name="a.nii")
    with pytest.raises(ScanError, match=r"a\.nii: the brain mask is empty"):
        prepare_volume(np.ones((4, 4, 4)), np.eye(4), "axial", mask_s=np.zeros((4, 4, 4)), name="a.nii")
