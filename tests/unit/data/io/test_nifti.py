"""MONAI's saver with our writer: a slice of any plane is written where it lies."""

from __future__ import annotations

import os

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, SaveImage, SaveImaged

from monai_vqgen.data import CompleteNiftiWriter, make_phantom
from monai_vqgen.data.io.nifti import write_slice_nifti
from monai_vqgen.errors import ScanError
from monai_vqgen.transforms import ExtractSliced, FitToSized, LoadSlice


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("resample", [True, False])
def test_monais_saver_writes_a_slice_of_any_plane_where_it_lies(tmp_path, plane, resample):
    head = make_phantom(3, 0, voxel_mm=6.0, orientation="LIA")
    volume = MetaTensor(torch.as_tensor(head.voxels_s[None]).float(), affine=torch.as_tensor(head.affine))
    volume.meta["filename_or_obj"] = "head.nii.gz"
    options = {"resample": resample, "separate_folder": False, "print_log": False}
    save = SaveImaged("image", output_dir=tmp_path, writer=CompleteNiftiWriter, **options)
    image = Compose([ExtractSliced("image", plane=plane), FitToSized("image", size=64), save])({"image": volume})[
        "image"
    ]
    (path,) = tmp_path.iterdir()
    written = nib.load(path)
    assert written.shape == (64, 64, 1)
    np.testing.assert_allclose(written.affine, image.affine, atol=1e-4)
    np.testing.assert_allclose(written.get_fdata()[..., 0], image[0], rtol=1e-6)


def test_channels_become_the_fourth_axis_as_slices_are_read_again(tmp_path):
    image = MetaTensor(torch.rand(2, 3, 4), affine=torch.eye(4))
    SaveImage(tmp_path, writer=CompleteNiftiWriter, separate_folder=False, print_log=False)(image)
    (path,) = tmp_path.iterdir()
    assert nib.load(path).shape == (3, 4, 1, 2)
    np.testing.assert_allclose(LoadSlice(channels=2)(path), image, atol=1e-6)
    with pytest.raises(ScanError, match=r"is not a slice of 3 channels \[H, W, 1, C\]"):
        LoadSlice(channels=3)(path)


def test_what_is_neither_a_volume_nor_a_slice_is_refused_and_no_file_is_left(tmp_path):
    with pytest.raises(RuntimeError) as error:  # MONAI wraps what its writers raise
        SaveImage(tmp_path, writer=CompleteNiftiWriter)(MetaTensor(torch.zeros(3, 4), affine=torch.eye(4)))
    assert "shape (3, 4): expected channels first" in str(error.value)
    assert ScanError.__name__ in str(error.value)
    assert not list(tmp_path.rglob("*.nii*"))


def _by_the_slices_writer(path):
    write_slice_nifti(path, np.ones((4, 5)), np.eye(4), {})


def _by_monais_saver(path):
    writer = CompleteNiftiWriter()
    writer.set_data_array(torch.ones(1, 4, 5))
    writer.set_metadata({"affine": np.eye(4)})
    writer.write(path)


@pytest.mark.parametrize("write", [_by_the_slices_writer, _by_monais_saver])
def test_a_file_that_could_not_be_finished_has_no_name(tmp_path, monkeypatch, write):
    path = tmp_path / "a.nii.gz"
    write(path)
    before = path.read_bytes()

    def refused(*_):
        raise OSError("killed here")

    monkeypatch.setattr(os, "replace", refused)
    for name in ("a.nii.gz", "b.nii.gz"):
        with pytest.raises(OSError, match="killed here"):
            write(tmp_path / name)
    assert [item.name for item in tmp_path.iterdir()] == ["a.nii.gz"]
    assert path.read_bytes() == before
