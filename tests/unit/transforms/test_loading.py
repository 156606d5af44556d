"""Slice files: one shape, one range, faults named."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_vqgen.data.io.nifti import write_slice_nifti
from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.transforms import LoadSlice

GREY = np.arange(20, dtype=np.uint8).reshape(4, 5) * 12


def test_png_of_8_and_16_bit_and_gray_stored_as_color(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "8.png")
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "16.png")
    Image.fromarray(np.repeat(GREY[..., None], 3, axis=2)).save(tmp_path / "rgb.png")
    for name in ("8.png", "16.png", "rgb.png"):
        image = LoadSlice()(tmp_path / name)
        np.testing.assert_allclose(image.numpy(), GREY[None] / 255, atol=1e-6)
        assert str(image.dtype) == "torch.float32"


def test_color_is_an_error_or_its_luminance(tmp_path):
    Image.fromarray(np.stack([GREY, GREY // 2, 255 - GREY], axis=2)).save(tmp_path / "c.png")
    with pytest.raises(ScanError, match=r"c\.png: a color picture"):
        LoadSlice()(tmp_path / "c.png")
    expected = np.stack([GREY, GREY // 2, 255 - GREY], axis=2) @ [0.299, 0.587, 0.114] / 255
    np.testing.assert_allclose(LoadSlice(color="luminance")(tmp_path / "c.png").numpy()[0], expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1)])
def test_nifti_in_array_order_with_its_affine(tmp_path, shape):
    affine = np.array([[0, -2.0, 0, 3], [-2, 0, 0, 4], [0, 0, -3, 5], [0, 0, 0, 1]])
    values = (GREY / 255).astype(np.float32)
    nib.save(nib.Nifti1Image(values.reshape(shape), affine), tmp_path / "s.nii.gz")
    image = LoadSlice()(tmp_path / "s.nii.gz")
    np.testing.assert_array_equal(image.numpy(), values[None])
    if len(shape) == 3:
        np.testing.assert_allclose(image.affine, affine)


def test_what_was_written_comes_back_with_subject_plane_and_position(tmp_path):
    values = (GREY / 255).astype(np.float32)
    about = {"subject": "sub-01", "plane": "axial", "position_mm": 40.5}
    write_slice_nifti(tmp_path / "s.nii.gz", values, np.diag([2.0, 2, 3, 1]), about)
    image = LoadSlice()(tmp_path / "s.nii.gz")
    np.testing.assert_array_equal(image.numpy()[0], values)
    assert {key: image.meta[key] for key in about} == about
    assert nib.load(tmp_path / "s.nii.gz").shape == (4, 5, 1)


def test_unknown_ranges_are_refused_unless_named(tmp_path):
    nib.save(nib.Nifti1Image(GREY.astype(np.float32) * 10, np.eye(4)), tmp_path / "s.nii")
    with pytest.raises(ScanError, match=r"values from 0 to 2280 .*value_range"):
        LoadSlice()(tmp_path / "s.nii")
    scaled = LoadSlice(value_range=(0, 1200))(tmp_path / "s.nii").numpy()
    np.testing.assert_allclose(scaled[0], np.clip(GREY / 120, 0, 1), atol=1e-6)
    nib.save(nib.Nifti1Image(GREY, np.eye(4)), tmp_path / "b.nii")
    np.testing.assert_allclose(LoadSlice()(tmp_path / "b.nii").numpy()[0], GREY / 255, atol=1e-6)


def test_faults_are_named(tmp_path):
    good = tmp_path / "good.nii.gz"
    write_slice_nifti(good, np.random.default_rng(0).random((40, 40)), np.eye(4), {})
    content = bytearray(good.read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / "flip.nii.gz").write_bytes(content)
    (tmp_path / "short.nii.gz").write_bytes(good.read_bytes()[:900])
    (tmp_path / "text.png").write_text("no picture")
    nib.save(nib.Nifti1Image(np.full((4, 4), np.nan, dtype=np.float32), np.eye(4)), tmp_path / "nan.nii")
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), dtype=np.float32), np.eye(4)), tmp_path / "volume.nii")
    for name, fault in {
        "flip.nii.gz": "damaged",
        "short.nii.gz": "damaged",
        "text.png": "unreadable",
        "nan.nii": "NaN",
        "volume.nii": "slice",
        "gone.png": "no such file",
    }.items():
        with pytest.raises(ScanError, match=rf"{name}.*{fault}"):
            LoadSlice()(tmp_path / name)


def test_options_that_cannot_work_are_refused():
    with pytest.raises(InputError, match="value_range"):
        LoadSlice(value_range=(1, 0))
    with pytest.raises(InputError, match="color"):
        LoadSlice(color="red")
