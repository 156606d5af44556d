"""Options of the training configurations that change how a step is computed, and nothing else about the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import CONFIGS, write_slices

from monai_vqgen.networks import EMACodebook, HierarchicalVQVAE
from monai_vqgen.weights import fingerprint

NETWORK = {
    "network_def::channels": "8",
    "network_def::residual_channels": "4",
    "network_def::num_codes": "8",
}


def run(config: str, **options: str | Path) -> None:
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", f"{CONFIGS}/{config}.json"]
    network = NETWORK if config == "train" else {}  # the other stages read it in the model's record
    for name, value in {**network, **options}.items():
        command += [f"--{name}", str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
def test_a_compiled_training_learns_alike_and_its_model_is_one_like_any_other(tmp_path):
    """Traced, but not translated to C++ ("eager"), so that no compiler is needed."""
    write_slices(tmp_path / "slices")
    training = {"dataset_dir": tmp_path / "slices", "max_epochs": "2", "val_interval": "1", "batch_size": "4"}
    run("train", output_dir=tmp_path / "plain", **training)
    run("train", output_dir=tmp_path / "compiled", compile="True", compile_backend="eager", **training)
    losses = [json.loads((tmp_path / name / "history.json").read_text()) for name in ("plain", "compiled")]
    for part in ("train", "validation"):
        np.testing.assert_allclose(losses[1][part]["loss"], losses[0][part]["loss"], rtol=1e-3)
    states = [torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("plain", "compiled")]
    assert list(states[1]) == list(states[0])
    saved = torch.load(tmp_path / "compiled" / "training_state.pt", weights_only=True)
    assert not [name for name in saved["parts"]["objective"] if "_orig_mod" in name]
    network = HierarchicalVQVAE(
        channels=8, residual_channels=4, quantizers=[EMACodebook(8, 16) for _ in (0, 1)], blank_threshold=0.01
    )
    before = fingerprint(network)
    network.load_state_dict(states[1])
    assert fingerprint(network) != before
    run(
        "inference", dataset_dir=tmp_path / "slices" / "images", model=tmp_path / "compiled" / "model.pt",
        output_dir=tmp_path / "reconstructions",
    )  # fmt: skip
    assert len(list((tmp_path / "reconstructions").rglob("*.nii.gz"))) == 14


@pytest.mark.slow
def test_autocast_asked_for_in_lower_case_is_autocast(tmp_path):
    """MONAI's command line makes a text of it, which torch would not take."""
    write_slices(tmp_path / "slices")
    training = {"dataset_dir": tmp_path / "slices", "max_epochs": "1", "batch_size": "4"}
    for text in ("true", "True", "False"):
        run("train", output_dir=tmp_path / text, amp=text, **training)
    lower, upper, off = (
        json.loads((tmp_path / text / "history.json").read_text())["train"]["loss"]
        for text in ("true", "True", "False")
    )
    assert lower == upper != off


@pytest.mark.parametrize("stage", ["train", "train_prior"])
def test_both_trainings_have_the_same_knobs_of_a_step(stage):
    config = json.loads((CONFIGS / f"{stage}.json").read_text())
    knobs = ("accumulation_steps", "amp", "compile", "compile_backend")
    assert {name: config[name] for name in knobs} == dict(zip(knobs, (1, False, False, "inductor"), strict=True))
    trainer = config["train"]["trainer"]
    assert trainer["iteration_update"] == "$monai_vqgen.engines.accumulated_update(@accumulation_steps)"
    assert (trainer["compile"], trainer["compile_kwargs"]) == ("@compile", "$dict(backend=@compile_backend)")
