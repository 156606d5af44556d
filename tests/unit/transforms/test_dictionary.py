"""Dictionary transforms do to their keys what the array transforms do, within MONAI's machinery."""

from __future__ import annotations

import pickle

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, list_data_collate
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImage, LoadImaged, Orientationd, SaveImaged

from monai_vqgen import transforms
from monai_vqgen.data import make_phantom
from monai_vqgen.data.io.nifti import write_slice_nifti
from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.transforms import (
    ExtractSlice,
    ExtractSliced,
    ExtractSlicesd,
    FitToSized,
    LoadSliced,
    ScaleForegroundd,
)
from monai_vqgen.transforms.foreground import foreground_window


@pytest.mark.parametrize("name", ["ExtractSlice", "ExtractSlices", "FitToSize", "LoadSlice", "ScaleForeground"])
def test_names_and_backends_are_as_monai_has_them(name):
    dictionary = getattr(transforms, f"{name}d")
    assert getattr(transforms, f"{name}D") is getattr(transforms, f"{name}Dict") is dictionary
    assert dictionary.backend == getattr(transforms, name).backend


def test_image_and_label_are_extracted_together_and_flatten_in_monai(tmp_path):
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


def test_one_slice_and_grids_that_differ():
    values = torch.zeros(1, 16, 18, 20)
    values[:, 3:13, 2:15, 4:17] = 50
    volume = MetaTensor(values, affine=np.diag([2.0, 2.0, 3.0, 1.0]))
    item = ExtractSliced("image", "axial", 9)({"image": volume, "age": 40})
    assert item["image"].shape == (1, 18, 16)
    assert (item["plane"], item["age"]) == ("axial", 40)
    with pytest.raises(ScanError, match="grid"):
        ExtractSliced(["image", "label"])({"image": volume, "label": torch.ones(1, 4, 4, 4)})


def test_a_missing_slice_file_is_named(tmp_path):
    with pytest.raises(ScanError, match="no such file"):
        LoadSliced("image")({"image": str(tmp_path / "gone.png")})


CUT_AS = {
    "axial": [[0, -2.0, 0, 5], [-2, 0, 0, 6], [0, 0, -3, 7], [0, 0, 0, 1]],
    "coronal": [[0, -2.0, 0, 5], [0, 0, -3, 6], [-2, 0, 0, 7], [0, 0, 0, 1]],
    "sagittal": [[0, 0, -3.0, 5], [0, -2, 0, 6], [-2, 0, 0, 7], [0, 0, 0, 1]],
}
NOT_AXIAL = {"squeeze_end_dims": False}  # as LoadSlice's page says


@pytest.mark.parametrize(
    ("plane", "options"), [("axial", {}), *((plane, NOT_AXIAL) for plane in ("axial", "coronal", "sagittal"))]
)
def test_monais_writer_writes_a_loaded_slice_where_it_lies(plane, options, tmp_path):
    values = np.random.default_rng(0).random((33, 47), dtype=np.float32)
    write_slice_nifti(tmp_path / "a.nii.gz", values, np.array(CUT_AS[plane]), {"subject": "sub-1", "plane": plane})
    item = LoadSliced("image")({"image": str(tmp_path / "a.nii.gz")})
    SaveImaged("image", output_dir=tmp_path, output_postfix="out", separate_folder=False, print_log=False, **options)(
        item
    )
    written = nib.load(tmp_path / "a_out.nii.gz")
    np.testing.assert_allclose(written.affine, CUT_AS[plane])
    np.testing.assert_array_equal(written.get_fdata().reshape(33, 47).astype(np.float32), values)


@pytest.mark.parametrize("loaded", [True, False])
def test_monais_writer_writes_a_slice_on_its_new_grid(loaded, tmp_path):
    values = np.zeros((33, 47), dtype=np.float32)
    values[10:20, 15:30] = 0.5
    if loaded:
        write_slice_nifti(tmp_path / "a.nii.gz", values, np.array(CUT_AS["axial"]), {})
        item = LoadSliced("image")({"image": str(tmp_path / "a.nii.gz")})
    else:
        volume = MetaTensor(torch.zeros(1, 47, 33, 9), affine=np.diag([2.0, 2, 3, 1]), meta={"filename_or_obj": "a"})
        volume[:, 9:20, 5:15, 2:7] = 0.5
        item = ExtractSliced("image")({"image": volume})
    item = FitToSized("image", 64)(item)
    SaveImaged("image", output_dir=tmp_path, output_postfix="out", separate_folder=False, print_log=False)(item)
    written = nib.load(tmp_path / "a_out.nii.gz")
    np.testing.assert_allclose(written.affine, item["image"].affine)
    np.testing.assert_array_equal(written.get_fdata().reshape(64, 64), item["image"].numpy()[0])


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_invertd_puts_a_slice_back_where_it_was_cut(plane, tmp_path):
    """The volume's own file is the oracle: the plane that is filled has its values, to the voxel."""
    phantom = make_phantom(0, 3, voxel_mm=5)
    flipped = phantom.affine @ np.array(
        [[-1, 0, 0, phantom.voxels_s.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]
    )
    nib.save(nib.Nifti1Image(phantom.voxels_s[::-1].astype(np.float32), flipped), tmp_path / "v.nii.gz")
    original = LoadImage(image_only=True)(tmp_path / "v.nii.gz")
    steps = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", "LAS", labels=None),
            ExtractSliced("image", plane),
            FitToSized("image", 64),
        ]
    )
    item = steps({"image": str(tmp_path / "v.nii.gz")})
    item["pred"] = MetaTensor(torch.cat([item["image"].as_tensor()] * 2))  # a network's, of two channels
    undone = Invertd("pred", steps, orig_keys="image", nearest_interp=False)(item)["pred"]
    np.testing.assert_allclose(undone.affine, original.affine, atol=1e-6)
    assert undone.shape == (2, *original.shape)
    filled = undone[1].numpy() != 0
    places = [np.unique(places) for places in np.nonzero(filled)]
    assert sorted(len(where) for where in places)[0] == 1, "one plane is filled"
    np.testing.assert_array_equal(undone[0].numpy()[filled], original.numpy()[filled])
    window = tuple(int(where[0]) if len(where) == 1 else slice(None) for where in places)
    missed = original.numpy()[window][~filled[window]]
    assert missed.max() <= 0.02 * original.numpy().max(), "only background was left out"


@pytest.mark.parametrize(("mode", "exact"), [("bilinear", False), ("nearest", True)])
def test_resampled_slices_of_several_keys_and_positions_come_back_one_by_one(mode, exact):
    phantom = make_phantom(0, 2, voxel_mm=4)
    volume = MetaTensor(torch.from_numpy(phantom.voxels_s.astype(np.float32))[None], affine=phantom.affine)
    finer = ExtractSlicesd(["image", "label"], "axial", [40, 60], pixel_mm=2.0, mode=mode)  # twice as many pixels
    items = finer({"image": volume, "label": (volume > 50).float()})
    plain = ExtractSlicesd("image", "axial", [40, 60])({"image": volume})
    for item, own in zip(items, plain, strict=True):
        undone = finer.inverse(item)
        cut_again = ExtractSlicesd("image", "axial", [item["position_mm"]], box_key="guide")(
            {"image": undone["image"], "guide": volume}
        )[0]["image"]
        assert undone["label"].shape == undone["image"].shape == volume.shape
        if exact:
            np.testing.assert_array_equal(cut_again.numpy(), own["image"].numpy())
        else:
            error = (cut_again.as_tensor() - own["image"].as_tensor()).abs().max()
            assert error < 0.02 * volume.max()


def test_an_inverse_of_another_size_is_refused():
    cut = ExtractSlice("axial")
    image = cut(torch.rand(1, 20, 24, 18) + 0.1)
    with pytest.raises(InputError, match=r"a slice of \(8, 8\) pixels was given and one of \(24, 20\) was cut"):
        cut.inverse(image[:, :8, :8])


def test_bilinear_is_monais_word_for_linear():
    volume = torch.rand(1, 20, 24, 18) + 0.1
    cuts = [ExtractSlice("axial", pixel_mm=1.7, mode=mode)(volume).numpy() for mode in ("linear", "bilinear")]
    np.testing.assert_array_equal(*cuts)
    with pytest.raises(InputError, match="mode is 'cubic'"):
        ExtractSliced("image", mode="cubic")
