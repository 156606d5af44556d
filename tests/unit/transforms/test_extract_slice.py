"""Slices as transforms: places, pixel sizes, channels, MONAI's machinery."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from nibabel.affines import apply_affine

from monai_vqgen.data import make_phantom
from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.transforms import (
    ExtractSlice,
    ExtractSlices,
)

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])  # RAS; the top of the box is z index 16


@pytest.fixture
def volume():
    values = torch.zeros(1, 16, 18, 20)
    values[:, 3:13, 2:15, 4:17] = torch.arange(1.0, 14.0) + 50  # brightness says which plane it is
    return MetaTensor(values, affine=AFFINE, meta={"filename_or_obj": "scan.nii"})


@pytest.mark.parametrize(
    ("position", "unit", "reference", "plane"),
    [
        (0, "mm", "brain_edge", 16),
        (9, "mm", "brain_edge", 13),
        (10, "mm", "brain_edge", 13),
        (36, "mm", "brain_edge", 4),
        (0, "fraction", "brain_edge", 16),
        (0.5, "fraction", "brain_edge", 10),
        (1, "fraction", "brain_edge", 4),
        (0, "mm", "brain_center", 10),
        (-6, "mm", "brain_center", 12),
        (1.5, "mm", "volume_center", 9),
        (-1.5, "mm", "volume_center", 10),
        (None, "mm", "brain_edge", 10),
    ],
)
def test_a_position_is_the_plane_that_arithmetic_by_hand_gives(volume, position, unit, reference, plane):
    found = ExtractSlice("axial", position, unit=unit, reference=reference)(volume)
    np.testing.assert_array_equal(found[0].numpy(), volume.numpy()[0, ::-1, ::-1, plane].T)


def test_position_mm_is_the_planes_own_not_the_requests(volume):
    assert ExtractSlice("axial", 10)(volume).meta["position_mm"] == pytest.approx(9)
    assert ExtractSlice("axial", 0.5, unit="fraction")(volume).meta["position_mm"] == pytest.approx(18)


def test_outside_names_file_position_and_range(volume):
    with pytest.raises(ScanError, match=r"scan\.nii: position 60 mm from brain_edge lies outside 0\.0 to 36\.0 mm"):
        ExtractSlices("axial", [9, 60])(volume)
    with pytest.raises(ScanError, match=r"-18\.0 to 18\.0 mm"):
        ExtractSlice("axial", 21, reference="brain_center")(volume)
    with pytest.raises(ScanError, match=r"outside 0\.0 to 1\.0"):
        ExtractSlice("axial", float("nan"), unit="fraction")(volume)


@pytest.mark.parametrize(
    "options",
    [
        {"plane": "oblique"},
        {"unit": "cm"},
        {"reference": "nose"},
        {"unit": "fraction", "reference": "volume_center"},
        {"pixel_mm": 0},
        {"pixel_mm": (1, 2, 3)},
        {"mode": "cubic"},
        {"positions": []},
        {"positions": "here"},
    ],
)
def test_options_that_cannot_work_are_refused_at_once(options):
    with pytest.raises(InputError):
        ExtractSlices(**options)


@pytest.mark.parametrize("shape", [(16, 18, 20), (1, 16, 18)])
def test_a_volume_without_channel_or_depth_is_refused(shape):
    with pytest.raises(ScanError, match=r"\[C, X, Y, Z\]"):
        ExtractSlice()(torch.ones(shape))


def test_empty_volume_is_refused_and_nan_counts_as_background(volume):
    with pytest.raises(ScanError, match="empty"):
        ExtractSlice()(torch.zeros(1, 8, 8, 8))
    clean = ExtractSlice("axial", 9)(volume)
    volume[0, 0, 0, 13] = float("nan")
    volume[0, 0, 1, 13] = float("inf")
    np.testing.assert_array_equal(ExtractSlice("axial", 9)(volume).numpy(), clean.numpy())


def test_channels_and_numpy_and_a_mask(volume):
    both = torch.cat([volume.as_tensor(), 2 * volume.as_tensor()])
    pair = ExtractSlice("coronal", 6)(MetaTensor(both, affine=AFFINE))
    assert pair.shape == (2, 20, 16)
    np.testing.assert_array_equal(pair[1], 2 * pair[0])
    assert ExtractSlice("axial")(both.numpy()).shape == (2, 18, 16)
    mask = torch.zeros(1, 16, 18, 20)
    mask[:, 5:9, 5:9, 6:11] = 1
    masked = ExtractSlice("axial", 0)(volume, mask)
    assert masked.max() == volume[0, 5, 5, 10]
    assert masked.meta["foreground_box"] == ((9.0, 12.0), (7.0, 10.0))


def test_one_position_needs_no_list(volume):
    (only,) = ExtractSlices("axial", 9)(volume)
    np.testing.assert_array_equal(only.numpy(), ExtractSlice("axial", 9)(volume).numpy())


def test_a_mask_is_turned_by_its_own_affine_however_it_is_stored(volume):
    mask = torch.zeros(1, 16, 18, 20)
    mask[:, 5:9, 4:9, 6:11] = 1
    expected = ExtractSlice("axial", 3)(volume, MetaTensor(mask, affine=AFFINE))
    for codes in (("L", "P", "S"), ("S", "A", "R"), ("I", "L", "P")):
        change = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
        )
        stored = nib.orientations.apply_orientation(mask[0].numpy(), change)
        affine = AFFINE @ nib.orientations.inv_ornt_aff(change, (16, 18, 20))
        found = ExtractSlice("axial", 3)(volume, MetaTensor(torch.from_numpy(stored.copy())[None], affine=affine))
        np.testing.assert_array_equal(found.numpy(), expected.numpy())
        assert found.meta["foreground_box"] == expected.meta["foreground_box"]
        assert found.meta["position_mm"] == expected.meta["position_mm"]


@pytest.mark.parametrize("shift_mm", [1e-4, 5.0])
def test_a_mask_on_another_grid_is_refused(volume, shift_mm):
    affine = AFFINE.copy()
    affine[0, 3] = shift_mm
    mask = MetaTensor((volume.as_tensor() > 0).float(), affine=affine)
    if shift_mm < 1:  # a header's rounding
        ExtractSlice("axial", 3)(volume, mask)
        return
    with pytest.raises(ScanError, match=r"scan\.nii: the brain mask lies on another grid"):
        ExtractSlice("axial", 3)(volume, mask)


def test_a_volume_is_searched_for_nan_once_not_once_a_slice(volume, monkeypatch):
    searched = []
    real = np.isfinite
    monkeypatch.setattr(np, "isfinite", lambda values, **k: (searched.append(np.size(values)), real(values, **k))[1])
    counts = []
    for positions in ([9], [3, 6, 9, 12, 15, 18, 21]):
        searched.clear()
        ExtractSlices("axial", positions)(volume)
        counts.append(sum(searched))
    assert counts[1] - counts[0] <= 6 * 16 * 18 + 1000


def test_the_box_moves_with_resampling():
    phantom = make_phantom(0, 0, voxel_mm=3)
    image = MetaTensor(torch.from_numpy(phantom.voxels_s.astype(np.float32))[None], affine=phantom.affine)
    plain, fine = (ExtractSlice("axial", 60, pixel_mm=p)(image) for p in (None, 1.0))
    corner = lambda s: np.array([*np.array(s.meta["foreground_box"])[:, 0], 0])  # noqa: E731
    np.testing.assert_allclose(
        apply_affine(plain.affine.numpy(), corner(plain)), apply_affine(fine.affine.numpy(), corner(fine)), atol=1e-6
    )


def test_threads_do_not_disturb_each_other(volume):
    cut = ExtractSlices("axial", [3, 9, 15], pixel_mm=1.3)
    expected = [s.numpy() for s in cut(volume)]
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: cut(volume), range(16)):
            for a, b in zip(result, expected, strict=True):
                np.testing.assert_array_equal(a.numpy(), b)
