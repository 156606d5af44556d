"""Two processes train as one does: equal codebooks on both, and the losses of a single process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_vqgen.data import save_codes

CONFIGS = Path(__file__).parents[2] / "bundle" / "configs"
STEPS = 20
QUANTIZER = {"_target_": "monai_vqgen.networks.EMACodebook", "num_codes": 16, "dim": 4}
RANK_FILE = "@output_dir + '/rank' + str(monai_vqgen.engines.process_rank()) + '.pt'"
SAVE_EVERY_RANK = f"$monai_vqgen.handlers.save_weights(@network, {RANK_FILE})"
TINY_AUTOENCODER = {
    "network_def": {
        "_target_": "monai_vqgen.networks.HierarchicalVQVAE",
        "channels": 8,
        "residual_channels": 4,
        "quantizers": [QUANTIZER, QUANTIZER],
        "finer_dropout": 0.0,
    },
    "train::trainer::epoch_length": 1,  # so that the history holds the loss of every step
    "max_epochs": STEPS,
    "val_interval": 10,
    "image_interval": 0,
    "finalize": [SAVE_EVERY_RANK, "$monai_vqgen.engines.end_distributed()"],
}
PRIOR = {
    "_target_": "monai_vqgen.networks.GatedPixelCNN",
    "num_codes": 16,
    "channels": 8,
    "num_layers": 1,
    "attention_every": 0,
    "condition_dim": "@condition_dim",
    "dropout": 0.0,
}
TINY_PRIOR = {**TINY_AUTOENCODER, "prior_defs": [PRIOR]}
del TINY_PRIOR["network_def"]


class Losses(NamedTuple):
    training: list[float]
    validation: list[float]


def write_slices(folder: Path) -> None:
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:32, :32] / 32 - 0.5
    datalist: dict = {}
    (folder / "images").mkdir(parents=True)
    for split, count in {"training": 16, "validation": 5}.items():
        datalist[split] = []
        for i in range(count):
            disc = (rows**2 + columns**2 < random.uniform(0.02, 0.2)) * random.uniform(0.4, 1.0)
            image = (disc + 0.1 * random.random((32, 32)) * (disc > 0)).clip(0, 1).astype(np.float32)
            nib.save(nib.Nifti1Image(image[:, :, None], np.eye(4)), folder / "images" / f"{split}{i}.nii.gz")
            datalist[split].append({"image": f"images/{split}{i}.nii.gz", "subject": f"{split}{i}"})
    (folder / "datalist.json").write_text(json.dumps(datalist))


def write_codes(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    grids = {
        split: [torch.randint(0, 16, (n, 4, 4), generator=generator)]
        for split, n in (("training", 16), ("validation", 5))
    }
    records = {split: [{"position_mm": float(i)} for i in range(len(levels[0]))] for split, levels in grids.items()}
    save_codes(folder, grids, records, codebook_sizes=(16,), fingerprint="abc")


def train(stage: str, *, processes: int, data: Path, output: Path, overlay: dict) -> Losses:
    """Train by the command of the README and return the loss of every step and of every validation."""
    files = [str(CONFIGS / f"{stage}.json")]
    launcher = ["-m", "monai.bundle"]
    if processes > 1:
        files.append(str(CONFIGS / f"multi_gpu_{stage}.json"))
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *launcher]
    output.mkdir(parents=True)
    overlay_file = output / "overlay.json"
    overlay_file.write_text(json.dumps(overlay))
    command = [
        sys.executable, *launcher, "run", "training", "--config_file", str([*files, str(overlay_file)]),
        "--dataset_dir", str(data), "--output_dir", str(output), "--batch_size", str(8 // processes),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr[-4000:]
    history = next(iter(output.glob("history*.json")))
    curves = json.loads(history.read_text())
    losses = Losses(curves["train"]["loss"], curves["validation"]["loss"])
    assert len(losses.training) == STEPS
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "train_prior"])
def test_two_processes_train_as_one_does(stage, tmp_path):
    if stage == "train":
        write_slices(tmp_path / "data")
        overlay = TINY_AUTOENCODER
    else:
        write_codes(tmp_path / "data")
        overlay = TINY_PRIOR
    runs = {
        processes: train(
            stage, processes=processes, data=tmp_path / "data", output=tmp_path / f"run{processes}", overlay=overlay
        )
        for processes in (1, 2)
    }
    np.testing.assert_allclose(runs[2].training, runs[1].training, rtol=1e-3)
    np.testing.assert_allclose(runs[2].validation, runs[1].validation, rtol=1e-3)
    assert runs[1].training[-1] < runs[1].training[0]
    first, second = (torch.load(tmp_path / "run2" / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    model = next(iter((tmp_path / "run2").glob("model*.pt")))
    assert torch.load(model, weights_only=True).keys() == first.keys()  # no prefix of DDP
