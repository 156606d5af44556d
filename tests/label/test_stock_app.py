"""MONAI Label's own app for bundles serves ours."""

from __future__ import annotations

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from tools.package_bundle import BUNDLE_NAME


@pytest.fixture(scope="module")
def stock(tools, tmp_path_factory, bundle, studies):
    folder = tmp_path_factory.mktemp("stock")
    command = [sys.executable, "-m", "monailabel.main", "apps", "--download", "--name", "monaibundle"]
    subprocess.run([*command, "--output", str(folder)], check=True, capture_output=True, timeout=300)
    app = folder / "monaibundle"
    (app / "model").mkdir(exist_ok=True)
    (app / "model" / BUNDLE_NAME).symlink_to(bundle)
    conf = ["models", BUNDLE_NAME], ["zoo_source", "local"], ["sam2", "false"], ["skip_trainers", "true"]
    words = [word for pair in conf for word in ("--conf", *pair)]
    with tools.serving(app, studies, folder / "log", *words) as server:
        tools.wait_until_up(server)
        yield tools.label_client(server, folder)


@pytest.mark.parametrize("storage", ["axial", "coronal", "sagittal"])
def test_the_stock_app_gives_the_command_lines_reconstruction_in_the_volumes_geometry(
    stock, studies, command_line, storage
):
    original = nib.load(studies / f"{storage}.nii.gz")
    path, _ = stock.infer(BUNDLE_NAME, storage, {})
    result = nib.load(path)
    assert result.shape == original.shape
    np.testing.assert_allclose(result.affine, original.affine, atol=1e-3)
    image, pixels = original.get_fdata(), result.get_fdata()
    expected = nib.load(command_line / f"{storage}_recon.nii.gz").get_fdata()
    np.testing.assert_allclose(pixels, expected, rtol=1e-3, atol=1e-3 * image.max())


def test_the_stock_app_shows_the_knobs_and_they_work(stock):
    assert stock.info()["models"][BUNDLE_NAME]["config"]["plane"] == "axial"
    axial, coronal = (
        nib.load(stock.infer(BUNDLE_NAME, "axial", {"plane": plane})[0]).get_fdata() for plane in ("axial", "coronal")
    )
    assert np.abs(axial - coronal).max() > 0
