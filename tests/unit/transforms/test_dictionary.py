"""Dictionary transforms do to their keys what the array transforms do, within MONAI's machinery."""

from __future__ import annotations

import pickle

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, list_data_collate
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from monai_vqgen import transforms
from monai_vqgen.data import make_phantom
from monai_vqgen.errors import ScanError
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
