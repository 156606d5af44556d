"""An installed package holds what the repository's folder holds, and its Python interface works outside the clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

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


@pytest.mark.slow
def test_a_trained_model_works_from_the_wheel_outside_the_clone(wheel, tmp_path):
    from monai_vqgen.data import make_phantoms

    venv.create(tmp_path / "env", with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env")}))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    # what the package depends on comes from here; a plain path runs no .pth file, so the clone stays out
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (scan,) = make_phantoms(tmp_path / "scans", 1, seed=7, voxel_mm=4.0, progress=False)
    shutil.move(scan, tmp_path / "scan.nii.gz")
    shape = "SHAPE = __import__('nibabel').load('scan.nii.gz').shape\n"
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), "-c", shape + LINES], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
