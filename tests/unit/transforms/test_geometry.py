"""A slice is the same anatomy, at the same place in the world, however the volume is stored."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from nibabel.affines import apply_affine
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from scipy.spatial.transform import Rotation

from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.transforms import ExtractSlice
from monai_vqgen.transforms.geometry import LEFT_RIGHT_AXIS, VOLUME, three_planes, view_plane

ORIENTATIONS = [
    "".join(codes) for order in itertools.permutations(("LR", "PA", "IS")) for codes in itertools.product(*order)
]
SPACING = np.array([1.5, 2.0, 2.5])
LANDMARK = (5, 9, 11)  # RAS voxel of one bright spot


def head(turn: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A lopsided RAS volume with a border of zeros and one landmark."""
    volume = np.zeros((14, 18, 20), dtype=np.float32)
    volume[2:11, 3:16, 4:17] = np.random.default_rng(0).uniform(0.5, 1.0, (9, 13, 13))
    volume[LANDMARK] = 9.0
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if turn is None else turn) * SPACING
    affine[:3, 3] = (-7.0, 11.0, 3.0)
    return volume, affine


def stored(volume: np.ndarray, affine: np.ndarray, codes: str) -> MetaTensor:
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(tuple(codes)))
    turned = np.ascontiguousarray(apply_orientation(volume, change))
    return MetaTensor(torch.from_numpy(turned)[None], affine=affine @ inv_ornt_aff(change, volume.shape))


# plane, position from the brain's edge to the landmark, and the slice written down by hand from the RAS array
EXPECTED = {
    "axial": ((16 - LANDMARK[2]) * SPACING[2], lambda v: v[::-1, ::-1, LANDMARK[2]].T),
    "coronal": ((15 - LANDMARK[1]) * SPACING[1], lambda v: v[::-1, LANDMARK[1], ::-1].T),
    "sagittal": ((LANDMARK[0] - 2) * SPACING[0], lambda v: v[LANDMARK[0], ::-1, ::-1].T),
}
OBLIQUE = Rotation.from_euler("xyz", [14, -9, 11], degrees=True).as_matrix()


@pytest.mark.parametrize("turn", [None, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("plane", EXPECTED)
def test_all_48_storage_orders_give_the_same_slice_and_world_coordinates(plane, turn):
    volume, affine = head(turn)
    world = apply_affine(affine, LANDMARK)
    position, by_hand = EXPECTED[plane]
    for codes in ORIENTATIONS:
        found = ExtractSlice(plane, position)(stored(volume, affine, codes))
        np.testing.assert_array_equal(found[0].numpy(), by_hand(volume), err_msg=codes)
        row, column = np.unravel_index(int(found[0].argmax()), found.shape[1:])
        np.testing.assert_allclose(apply_affine(found.affine.numpy(), (row, column, 0)), world, atol=1e-9)
        assert found.meta["position_mm"] == pytest.approx(position)


@pytest.mark.parametrize("plane", EXPECTED)
def test_image_left_is_patient_right_and_the_normal_grows_with_position(plane):
    codes = {"axial": ("P", "L", "I"), "coronal": ("I", "L", "P"), "sagittal": ("I", "P", "R")}[plane]
    volume, affine = head(OBLIQUE)
    view = view_plane(volume, affine, plane)
    assert nib.aff2axcodes(view.affine) == codes
    assert view.volume_s.base is not None, "a view, not a copy"


def test_volumes_that_are_none_are_named():
    with pytest.raises(ScanError, match=r"x\.nii: shape \(4, 5\)"):
        view_plane(np.zeros((4, 5)), np.eye(4), "axial", name="x.nii")
    with pytest.raises(ScanError, match="no voxels"):
        view_plane(np.zeros((4, 0, 5)), np.eye(4), "axial")
    with pytest.raises(ScanError, match="NaN"):
        view_plane(np.zeros((4, 4, 5)), np.full((4, 4), np.nan), "axial")
    with pytest.raises(ScanError, match="singular"):
        view_plane(np.zeros((4, 4, 5)), np.diag([1.0, 0, 1, 1]), "axial")
    with pytest.raises(InputError, match="choose one of axial, coronal, sagittal"):
        view_plane(np.zeros((4, 4, 5)), np.eye(4), "transversal")


def test_a_volume_seen_as_a_whole_runs_right_front_and_up_whatever_the_storage_order():
    volume, affine = head()
    expected = nib.as_closest_canonical(nib.Nifti1Image(volume, affine))
    for codes in ORIENTATIONS:
        image = stored(volume, affine, "".join(codes))
        view = view_plane(image[0].numpy(), image.affine.numpy(), VOLUME)
        np.testing.assert_array_equal(view.volume_s, expected.get_fdata())
        np.testing.assert_allclose(view.affine, expected.affine, atol=1e-9)


def test_the_axis_between_left_and_right_is_that_of_slices_and_of_volumes():
    for shape, affine in (((4, 5), np.array([[0, -1], [-1, 0], [0, 0]])), ((4, 5, 6), np.eye(3))):  # axial; RAS+
        axis = LEFT_RIGHT_AXIS[len(shape)] + len(shape)
        assert abs(affine[0, axis]) == 1


def test_a_picture_of_a_volume_shows_its_three_middle_slices_as_radiologists_see_them():
    """One bright voxel at the right, front and top of each middle slice, found at the left, front and top."""
    volume = np.zeros((4, 8, 6))
    volume[3, 7, 2], volume[3, 3, 5], volume[2, 7, 5] = 1, 2, 3  # axial, coronal, sagittal: in the middle of one axis
    axial, coronal, sagittal = np.split(three_planes(volume), [4, 8], axis=1)
    assert axial.shape == (8, 4)
    assert coronal.shape == (8, 4)
    assert sagittal.shape == (8, 8)
    assert np.argwhere(axial == 1).tolist() == [[0, 0]]  # front at the top, the patient's right at the left
    assert np.argwhere(coronal == 2).tolist() == [[1, 0]]  # a row of padding above
    assert np.argwhere(sagittal == 3).tolist() == [[1, 0]]  # front at the left
