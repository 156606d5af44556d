"""Slices cut and codes written by several processes are those of one; a process that fails ends the command."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_vqgen.data import CodeStore, make_phantoms
from monai_vqgen.models import TrainedModel
from monai_vqgen.networks import EMACodebook, HierarchicalVQVAE

CONFIGS = Path(__file__).parents[2] / "bundle" / "configs"
CODES, SIZE = 12, 32
SECONDS = 120  # far more than a run takes, far less than the week for which processes wait for one another


def run(
    stage: str, *, processes: int, largest_file: int = resource.RLIM_INFINITY, **options: str | Path
) -> subprocess.CompletedProcess[str]:
    """Run a stage whose processes cannot write files above a number of bytes."""
    files, launcher = [f"{CONFIGS}/{stage}.json"], ["-m", "monai.bundle"]
    if processes > 1:
        files.append(f"{CONFIGS}/multi_gpu_{stage}.json")
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *launcher]
    command = [sys.executable, *launcher, "run", "--config_file", str(files)]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    limits = (largest_file, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        env=environment,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
    )


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    make_phantoms(folder, 3, voxel_mm=4.0, progress=False)
    return folder


@pytest.fixture(scope="module")
def slices(tmp_path_factory) -> Path:
    """Numbers of slices that neither batches of 3 nor 2 or 4 processes divide; one batch of the test split for all."""
    folder = tmp_path_factory.mktemp("slices")
    random = np.random.default_rng(0)
    datalist: dict = {"plane": "axial", "image_size": [SIZE, SIZE], "pixel_mm": 3.0}
    (folder / "images").mkdir()
    for split, count in {"training": 13, "validation": 5, "test": 2}.items():
        datalist[split] = []
        for i in range(count):
            name = f"images/{split}{i}.nii.gz"
            image = random.random((SIZE, SIZE, 1), dtype=np.float32) * random.random(dtype=np.float32)
            nib.save(nib.Nifti1Image(image, np.eye(4)), folder / name)
            datalist[split].append({"image": name, "subject": f"{split}{i}", "position_mm": 40.0 + i})
    (folder / "datalist.json").write_text(json.dumps(datalist))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    network = HierarchicalVQVAE(channels=8, residual_channels=4, quantizers=[EMACodebook(CODES, 16) for _ in (0, 1)])
    network.train_pass(torch.rand(16, 1, SIZE, SIZE))  # spreads the codes over the latents
    return TrainedModel(network).save(tmp_path_factory.mktemp("model")) / "model.pt"


@pytest.mark.slow
def test_two_and_four_processes_cut_the_slices_of_one(scans, tmp_path):
    for processes in (1, 2, 4):  # of four, one has no scan
        done = run(
            "extract_slices", processes=processes, dataset_dir=scans, output_dir=tmp_path / str(processes),
            positions_mm="[40.0,64.0,88.0]", num_workers="0",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
    expected = files_of(tmp_path / "1")
    assert len(expected) == 3 * 3 + 2
    for processes in (2, 4):
        assert files_of(tmp_path / str(processes)) == expected


@pytest.mark.slow
def test_two_and_four_processes_write_the_codes_of_one(slices, model, tmp_path):
    options = {"dataset_dir": slices, "model": model, "batch_size": "3", "mirror_training": "True"}
    for processes in (1, 2, 4):
        (tmp_path / str(processes) / ".parts").mkdir(parents=True)
        (tmp_path / str(processes) / ".parts" / "0.safetensors").write_text("left by a run that was killed")
        done = run("extract_codes", processes=processes, output_dir=tmp_path / str(processes), **options)
        assert done.returncode == 0, done.stderr[-4000:]
    shutil.rmtree(tmp_path / "1" / ".parts")  # one process has no parts, so it does not look for any
    expected = files_of(tmp_path / "1")
    assert set(map(str, expected)) == {"codes.json", "codes.safetensors"}
    for processes in (2, 4):
        assert files_of(tmp_path / str(processes)) == expected
    store = CodeStore(tmp_path / "4")
    assert store.codes("training", 1).shape == (26, 8, 8)
    assert [record["subject"] for record in store.records("training")[:13]] == [f"training{i}" for i in range(13)]
    assert len(store.codes("training", 1).unique()) > 4


@pytest.mark.slow
def test_a_process_that_cannot_read_its_slice_ends_the_run_with_that_error_and_no_store(slices, model, tmp_path):
    shutil.copytree(slices, tmp_path / "slices")
    (tmp_path / "slices" / "images" / "training12.nii.gz").write_bytes(b"no slice")  # the last process's
    done = run(
        "extract_codes",
        processes=2,
        dataset_dir=tmp_path / "slices",
        model=model,
        output_dir=tmp_path / "codes",
    )
    assert done.returncode != 0
    assert "training12.nii.gz" in done.stderr
    assert "ScanError" in done.stderr
    assert not any((tmp_path / "codes" / name).exists() for name in ("codes.json", "codes.safetensors"))


@pytest.mark.slow
def test_a_process_that_cannot_write_its_slices_ends_the_run_with_that_error_and_no_list(scans, tmp_path):
    done = run(
        "extract_slices", processes=2, largest_file=1024, dataset_dir=scans, output_dir=tmp_path / "slices",
        positions_mm="[64.0]", num_workers="0",
    )  # fmt: skip
    assert done.returncode != 0
    assert "File too large" in done.stderr
    assert not (tmp_path / "slices" / "datalist.json").exists()
