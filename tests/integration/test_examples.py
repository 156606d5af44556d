"""Every example runs by the command of its first line, and draws its picture."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_vqgen.apps import run_stage
from monai_vqgen.data import make_phantoms

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("examples") / "scans"
    make_phantoms(folder, 8, seed=2)
    return folder


def example(name: str, *arguments: str | Path) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_three_planes_of_a_scan_are_written_where_they_lie(scans, tmp_path):
    scan = sorted(scans.rglob("*.nii.gz"))[0]
    example("clinical_pipeline.py", scan, tmp_path)
    volume = nib.load(scan)
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * [*volume.shape, 1]
    low, high = (getattr((volume.affine @ corners.T)[:3], name)(1) for name in ("min", "max"))
    for plane, axis in {"axial": 2, "coronal": 1, "sagittal": 0}.items():
        (path,) = (tmp_path / plane).glob(f"*_{plane}.nii.gz")
        image = nib.load(path)
        assert image.shape == (128, 128, 1)
        middle = (image.affine @ [63.5, 63.5, 0, 1])[:3]
        assert ((low < middle) & (middle < high)).all(), plane
        assert abs(image.affine[axis, 2]) == max(abs(image.affine[:3, 2])), plane
    assert np.asarray(Image.open(tmp_path / "planes.png")).std() > 10


def test_both_caches_give_the_slices_of_four_volumes(scans, tmp_path):
    printed = example("cached_datasets.py", scans, tmp_path)
    assert "memory: (12, 1, 128, 128), from 0.00 to 1.00" in printed
    assert "disk: (12, 1, 128, 128), from 0.00 to 1.00" in printed
    assert np.asarray(Image.open(tmp_path / "batch.png")).std() > 10


def test_the_networks_learn_in_a_loop_of_ones_own(scans, tmp_path):
    options = {"image_size": [32, 32], "pixel_mm": 7.0, "position_step_mm": 15.0}
    run_stage("extract_slices", options={"dataset_dir": str(scans), "output_dir": str(tmp_path / "slices"), **options})
    printed = example("plain_pytorch.py", tmp_path / "slices", tmp_path / "out", "--steps", "60")
    losses = [float(line.split()[-1]) for line in printed.splitlines() if line.startswith("step")]
    assert losses[-1] < 0.5 * losses[0]
    assert np.asarray(Image.open(tmp_path / "out/reconstructions.png")).std() > 10
