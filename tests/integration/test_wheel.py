"""An installed package holds what the repository's folder holds, and its Python interface works outside the clone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_vqgen.data import make_phantoms

ROOT = Path(__file__).parents[2]
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "monai_vqgen", "bundle", "configs")

LINES = """
import torch, monai_vqgen
from monai_vqgen import TrainedModel

assert "site-packages" in monai_vqgen.__file__, monai_vqgen.__file__
model = TrainedModel.from_bundle()
slices = model.sample(2, position_mm=65, sex="f", age=30, seed=7)
assert slices.images.shape == (2, 1, 128, 128) and slices.synthetic
codes = model.encode(slices.images)
images = model.decode(codes)
mask = torch.zeros(128, 128, dtype=torch.bool)
mask[60:80, 40:60] = True
filled = model.complete(images, mask, seed=7)
assert torch.equal(filled[..., ~mask], images[..., ~mask])
nats = model.log_prob(codes, position_mm=65)
assert [tuple(level.shape) for level in nats] == [(2,), (2,)]
volume = model.reconstruct("scan.nii.gz")
assert volume.shape[-3:] == SHAPE
model.save("folder")
again = TrainedModel.from_bundle("folder").to("cpu")
assert repr(again) == repr(model) and "128 x 128" in repr(model)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-build-isolation", "--no-deps", "-w", str(folder)]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False, timeout=300)
    assert built.returncode == 0, built.stderr[-3000:]
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_a_wheel_holds_every_module_and_the_bundle(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    package = [path for path in (ROOT / "monai_vqgen").rglob("*") if path.suffix in (".py", ".html", ".typed")]
    bundle = [path for name in ("configs", "models") for path in (ROOT / "bundle" / name).rglob("*") if path.is_file()]
    expected = {path.relative_to(ROOT).as_posix() for path in package}
    expected |= {f"monai_vqgen/_bundle/{path.relative_to(ROOT / 'bundle').as_posix()}" for path in bundle}
    assert expected - packed == set()


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Callable[..., str]:
    """Runs Python, in a folder, of an environment that has nothing but the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "env", with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env")}))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    # what the package depends on comes from here; a plain path runs no .pth file, so the clone stays out
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments: str, cwd: Path) -> str:
        options = {"cwd": cwd, "env": environment, "capture_output": True, "text": True, "timeout": 900}
        done = subprocess.run([str(python), *arguments], check=False, **options)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.mark.slow
def test_a_trained_model_works_from_the_wheel_outside_the_clone(installed, tmp_path):
    (scan,) = make_phantoms(tmp_path / "scans", 1, seed=7, voxel_mm=4.0, progress=False)
    shutil.move(scan, tmp_path / "scan.nii.gz")
    shape = "SHAPE = __import__('nibabel').load('scan.nii.gz').shape\n"
    installed("-c", shape + LINES, cwd=tmp_path)
    assert (tmp_path / "folder/model.pt").is_file()


@pytest.mark.slow
def test_from_scans_to_samples_of_ones_own_model_with_the_wheel_alone(installed, tmp_path, write_series):
    """Twelve scans, one of them as a DICOM series too: look at them, train on them, use what was trained."""
    scan, *_ = make_phantoms(tmp_path / "SCANS", 12, seed=7, voxel_mm=1.9, progress=False)
    image = nib.load(scan)
    write_series(tmp_path / "SERIES/one", np.round(image.get_fdata()), image.affine)

    def verb(*arguments: str) -> str:
        return installed("-m", "monai_vqgen", *arguments, cwd=tmp_path)

    verb("sample", "--num_samples", "2", "--position_mm", "65", "--sex", "f")
    assert len(list((tmp_path / "out/samples").rglob("*.nii.gz"))) == 2
    assert list((tmp_path / "out/samples").rglob("*.png"))
    for given, name in ((str(scan), scan.name.removesuffix(".nii.gz")), ("SERIES", "one")):
        verb("reconstruct", given, "--output_dir", name)
        (written,) = (tmp_path / name).rglob("*_recon.nii.gz")
        again = nib.load(written)
        assert again.shape == image.shape
        seen, read = (nib.as_closest_canonical(one) for one in (image, again))
        np.testing.assert_allclose(read.affine, seen.affine, atol=0.01)
        assert np.corrcoef(seen.get_fdata().ravel(), read.get_fdata().ravel())[0, 1] > 0.8
        assert written.with_name(f"{name}_recon_planes.png").is_file()
    assert "no findings" in verb("verify", "SCANS")
    verb("plan", "SCANS", "--minutes", "1", "--output", "plan.yaml")
    verb("train", "SCANS", "--size", "plan.yaml")
    trained = tmp_path / "out/model"
    assert {"model.pt", "model_prior_level0.pt", "report.html"} <= {path.name for path in trained.iterdir()}
    verb("evaluate", str(trained / "slices"), "--model", str(trained / "model.pt"), "--output_dir", "EVALUATION")
    metrics = json.loads((tmp_path / "EVALUATION/metrics.json").read_text())
    assert metrics["judged"] == "test"
    verb("sample", "--model", str(trained / "model.pt"), "--num_samples", "2", "--output_dir", "OWN")
    assert len(list((tmp_path / "OWN").rglob("*.nii.gz"))) == 2
