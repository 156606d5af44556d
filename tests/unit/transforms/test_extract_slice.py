"""Slices as transforms: places, pixel sizes, channels, MONAI's machinery."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, list_data_collate
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from nibabel.affines import apply_affine

from monai_vqgen.data import make_phantom
from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.transforms import (
    ExtractSlice,
    ExtractSliced,
    ExtractSlices,
    ExtractSlicesd,
    FitToSized,
    LoadSliced,
    ScaleForegroundd,
)
from monai_vqgen.transforms.foreground import foreground_window
from monai_vqgen.transforms.resampling import resample_plane

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


def test_resampling_places_a_linear_ramp_exactly():
    affine = np.array([[0, 1.1, 0, 4], [-0.9, 0, 0.2, -7], [0.1, 0.2, 2, 1], [0, 0, 0, 1.0]])
    rows, columns = np.meshgrid(np.arange(40.0), np.arange(31.0), indexing="ij")
    world = apply_affine(affine, np.stack([rows, columns, 0 * rows], axis=-1))
    for pixel_mm in (0.5, 1.736, (2.2, 0.7)):
        result = resample_plane(world[..., 0] + 2 * world[..., 1], affine, pixel_mm)
        height, width = result.pixels.shape
        grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), [0], indexing="ij"), axis=-1)[:, :, 0]
        where = apply_affine(result.affine, grid)
        inner = (slice(4, -4), slice(4, -4))  # at the border the widened kernel is cut
        np.testing.assert_allclose(result.pixels[inner], (where[..., 0] + 2 * where[..., 1])[inner], atol=2e-4)
        np.testing.assert_allclose(np.linalg.norm(result.affine[:3, :2], axis=0), pixel_mm, rtol=1e-9)
        middles = [
            apply_affine(a, [(h - 1) / 2, (w - 1) / 2, 0])
            for a, (h, w) in ((affine, (40, 31)), (result.affine, (height, width)))
        ]
        np.testing.assert_allclose(*middles, atol=1e-9)


def test_shrinking_is_antialiased_and_stays_in_range():
    stripes = np.zeros((64, 64), dtype=np.float32)
    stripes[:, ::2] = 1
    shrunk = resample_plane(stripes, np.eye(4), 4.0).pixels[2:-2, 2:-2]
    np.testing.assert_allclose(shrunk, 0.5, atol=0.07)
    assert set(np.unique(resample_plane(stripes, np.eye(4), 4.0, mode="nearest").pixels)) <= {0.0, 1.0}


def test_the_box_moves_with_resampling():
    phantom = make_phantom(0, 0, voxel_mm=3)
    image = MetaTensor(torch.from_numpy(phantom.voxels_s.astype(np.float32))[None], affine=phantom.affine)
    plain, fine = (ExtractSlice("axial", 60, pixel_mm=p)(image) for p in (None, 1.0))
    corner = lambda s: np.array([*np.array(s.meta["foreground_box"])[:, 0], 0])  # noqa: E731
    np.testing.assert_allclose(
        apply_affine(plain.affine.numpy(), corner(plain)), apply_affine(fine.affine.numpy(), corner(fine)), atol=1e-6
    )


def test_dictionary_twins_cut_image_and_label_together_and_flatten_in_monai(tmp_path):
    phantom = make_phantom(0, 1, voxel_mm=4)
    nib.save(nib.Nifti1Image(phantom.voxels_s.astype(np.float32), phantom.affine), tmp_path / "image.nii.gz")
    label = (phantom.voxels_s > phantom.voxels_s.max() / 2).astype(np.float32)
    nib.save(nib.Nifti1Image(label, phantom.affine), tmp_path / "label.nii.gz")
    steps = Compose(
        [
            LoadImaged(["image", "label"], reader="NibabelReader"),
            EnsureChannelFirstd(["image", "label"]),
            ExtractSlicesd(["image", "label"], "axial", [40, 60, 80], pixel_mm=2.0, mode=["linear", "nearest"]),
            ScaleForegroundd("image"),
            FitToSized(["image", "label"], 112),
        ]
    )
    item = {"image": str(tmp_path / "image.nii.gz"), "label": str(tmp_path / "label.nii.gz")}
    data = Dataset([item], pickle.loads(pickle.dumps(steps)))
    batch = next(iter(DataLoader(data, batch_size=1, collate_fn=list_data_collate)))
    assert batch["image"].shape == batch["label"].shape == (3, 1, 112, 112)
    assert set(np.unique(batch["label"].numpy())) == {0, 1}
    assert 0 <= batch["image"].min() < batch["image"].max() <= 1
    np.testing.assert_allclose(batch["position_mm"], [40, 60, 80], atol=2.5)
    brain = batch["image"].numpy() > 0.6
    assert (batch["label"].numpy()[brain]).mean() > 0.7, "the label lies on the image"


def test_the_volumes_window_scales_its_slices():
    phantom = make_phantom(0, 2, voxel_mm=4)
    values = torch.from_numpy(phantom.voxels_s.astype(np.float32))[None]
    window = foreground_window(phantom.voxels_s)
    cut = ExtractSlice("axial", 60)(MetaTensor(values, affine=phantom.affine))
    scaled = ScaleForegroundd("image")({"image": cut})["image"]
    expected = np.clip((cut.numpy() - window.low) / (window.high - window.low), 0, 1)
    np.testing.assert_allclose(scaled.numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(ScaleForegroundd("image")({"image": scaled})["image"].numpy(), scaled.numpy())


def test_one_slice_twin_and_grids_that_differ(volume):
    item = ExtractSliced("image", "axial", 9)({"image": volume, "age": 40})
    assert item["image"].shape == (1, 18, 16)
    assert (item["plane"], item["age"]) == ("axial", 40)
    with pytest.raises(ScanError, match="grid"):
        ExtractSliced(["image", "label"])({"image": volume, "label": torch.ones(1, 4, 4, 4)})


def test_threads_do_not_disturb_each_other(volume):
    cut = ExtractSlices("axial", [3, 9, 15], pixel_mm=1.3)
    expected = [s.numpy() for s in cut(volume)]
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: cut(volume), range(16)):
            for a, b in zip(result, expected, strict=True):
                np.testing.assert_array_equal(a.numpy(), b)


def test_a_missing_slice_file_is_named(tmp_path):
    with pytest.raises(ScanError, match="no such file"):
        LoadSliced("image")({"image": str(tmp_path / "gone.png")})
