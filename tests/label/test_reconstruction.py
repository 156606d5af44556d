"""A reconstruction fetched from the server overlays its input and is the command line's."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

PLANES = ("axial", "coronal", "sagittal")


def ssim(image, result) -> float:
    return float(structural_similarity(image, result, data_range=float(image.max() - image.min())))


def test_the_server_tells_its_models_knobs_and_trainer(client, bundle):
    info = client.info()
    assert set(info["models"]) == {"reconstruction", "sampling", "completion", "anomaly", "anomaly_map"}
    assert set(info["trainers"]) == {"autoencoder"}
    knobs = info["models"]["reconstruction"]["config"]
    assert {name: knobs[name] for name in ("plane", "pixel_mm", "batch_size", "intensity")} == {
        "plane": "axial",
        "pixel_mm": 4.0,
        "batch_size": 16,
        "intensity": "input",
    }
    assert {"num_samples", "seed", "temperature", "position_mm"} <= set(info["models"]["sampling"]["config"])


@pytest.mark.parametrize("storage", PLANES)
def test_a_volume_comes_back_in_its_own_geometry_and_as_the_command_line_gives_it(
    client, studies, command_line, storage
):
    original = nib.load(studies / f"{storage}.nii.gz")
    path, answer = client.infer("reconstruction", storage, {})
    result = nib.load(path)
    assert result.shape == original.shape
    np.testing.assert_allclose(result.affine, original.affine, atol=1e-5)
    assert nib.aff2axcodes(result.affine) == nib.aff2axcodes(original.affine)
    image, pixels = original.get_fdata(), result.get_fdata()
    expected = nib.load(command_line / f"{storage}_recon.nii.gz").get_fdata()
    assert abs(ssim(image, pixels) - ssim(image, expected)) < 1e-3
    np.testing.assert_allclose(pixels, expected, rtol=1e-3, atol=1e-3 * image.max())
    assert answer["synthetic"] is False
    assert answer["model_version"]


def test_a_knob_changes_the_answer_and_the_next_request_has_the_default_again(client):
    voxels = [
        nib.load(client.infer("reconstruction", "axial", knobs)[0]).get_fdata()
        for knobs in ({}, {"plane": "coronal"}, {})
    ]
    assert np.abs(voxels[0] - voxels[1]).max() > 0
    np.testing.assert_array_equal(voxels[0], voxels[2])
    unit = nib.load(client.infer("reconstruction", "axial", {"intensity": "unit"})[0]).get_fdata()
    assert 0 <= unit.min() <= unit.max() <= 1


def test_a_slice_that_the_client_sends_comes_back_as_it_is_stored(client, studies):
    path = studies / "slices" / "slice.nii.gz"
    result = nib.load(client.infer("reconstruction", "", {"pixel_mm": 4.0}, file=str(path))[0])
    original = nib.load(path)
    assert result.shape == original.shape == (32, 32, 1)
    np.testing.assert_allclose(result.affine, original.affine, atol=1e-6)
    assert 0 <= result.get_fdata().min() <= result.get_fdata().max() <= 1


def test_a_picture_comes_back_as_a_picture_and_shows_what_the_slice_shows(client, studies):
    path, _ = client.infer("reconstruction", "", {}, file=str(studies / "slices" / "picture.png"))
    with Image.open(path) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (32, 32))
        pixels = np.asarray(picture) / 255
    same, _ = client.infer("reconstruction", "", {"pixel_mm": 4.0}, file=str(studies / "slices" / "slice.nii.gz"))
    # The PNG holds eight bits of the slice: a code may change here and there, not the picture.
    assert np.mean(np.abs(pixels - nib.load(same).get_fdata()[..., 0])) < 0.02
