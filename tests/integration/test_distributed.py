"""Two and four processes train as one does: equal codebooks on all, and the losses of a single process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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
WRITE_PID = f"$open({RANK_FILE} + '.pid', 'w').write(str(os.getpid()))"
SAVE_EVERY_RANK = f"$monai_vqgen.weights.save_weights(@network, {RANK_FILE})"
SAVE_EVERY_DISCRIMINATOR = f"$monai_vqgen.weights.save_weights(@discriminator, {RANK_FILE} + '.discriminator')"
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
    "num_codes": "$@store.codebook_sizes[@level]",
    "coarser_codes": "$@store.codebook_sizes[:@level]",
    "channels": 8,
    "num_layers": 1,
    "attention_every": 0,
    "condition_dim": "@condition_dim",
    "dropout": 0.0,
}
TINY_PRIOR = {**TINY_AUTOENCODER, "prior_def": PRIOR}
del TINY_PRIOR["network_def"]


TINY_GENERATIVE = {
    **TINY_AUTOENCODER,
    "network_def::strides": [4],
    "network_def::widths": [8, 8, 8],
    # no code restarts within these steps: against a discriminator, rounding grows with each
    "network_def::quantizers": [{**QUANTIZER, "decay": 0.9, "warm_up": False}],
    "discriminator_def::channels": 4,
    "discriminator_def::num_layers_d": 2,
    "adversarial_start": 2,
    "adversary::ramp": 4,
    "adversary::balance_every": 3,
    "affine_probability": 0.0,
    "gamma_probability": 0.0,
    "finalize": [SAVE_EVERY_RANK, SAVE_EVERY_DISCRIMINATOR, "$monai_vqgen.engines.end_distributed()"],
}
del TINY_GENERATIVE["network_def"]


class Losses(NamedTuple):
    training: list[float]
    validation: list[float]


def write_slices(folder: Path, *, training: int = 16) -> None:
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:32, :32] / 32 - 0.5
    datalist: dict = {}
    (folder / "images").mkdir(parents=True)
    for split, count in {"training": training, "validation": 5}.items():
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


def command_of(
    stage: str, *, processes: int, data: Path, output: Path, overlay: dict, resume: bool = False
) -> list[str]:
    """The command of the README; all processes together have batches of 8."""
    files = [str(CONFIGS / f"{stage}.json")]
    launcher = ["-m", "monai.bundle"]
    if "adversarial_start" in overlay:
        files.append(str(CONFIGS / f"{stage}_generative.json"))
    if processes > 1:
        files.append(str(CONFIGS / f"multi_gpu_{stage}.json"))
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *launcher]
    output.mkdir(parents=True, exist_ok=True)
    overlay_file = output / "overlay.json"
    overlay_file.write_text(json.dumps(overlay))
    return [
        sys.executable, *launcher, "run", "training", "--config_file", str([*files, str(overlay_file)]),
        "--dataset_dir", str(data), "--output_dir", str(output), "--batch_size", str(8 // processes),
        "--resume", str(resume),
    ]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def train(stage: str, *, processes: int, data: Path, output: Path, overlay: dict, resume: bool = False) -> Losses:
    """Train and return the loss of every epoch and of every validation."""
    command = command_of(stage, processes=processes, data=data, output=output, overlay=overlay, resume=resume)
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment())
    assert result.returncode == 0, result.stderr[-4000:]
    history = next(iter(output.glob("history*.json")))
    curves = json.loads(history.read_text())
    losses = Losses(curves["train"]["loss"], curves["validation"]["loss"])
    assert len(losses.training) == overlay["max_epochs"]
    return losses


def assert_equal_on_all_ranks(output: Path, *, processes: int) -> None:
    """Every weight and every statistic of a codebook, bit by bit."""
    states = [torch.load(output / f"rank{rank}.pt", weights_only=True) for rank in range(processes)]
    for name, tensor in states[0].items():
        assert all(torch.equal(tensor, state[name]) for state in states), name


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "train_prior"])
def test_two_and_four_processes_train_as_one_does(stage, tmp_path):
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
        for processes in (1, 2, 4)
    }
    assert len(runs[1].training) == STEPS
    assert runs[1].training[-1] < runs[1].training[0]
    for processes in (2, 4):
        np.testing.assert_allclose(runs[processes].training, runs[1].training, rtol=1e-3)
        np.testing.assert_allclose(runs[processes].validation, runs[1].validation, rtol=1e-3)
        assert_equal_on_all_ranks(tmp_path / f"run{processes}", processes=processes)
    state = torch.load(tmp_path / "run4" / "rank0.pt", weights_only=True)
    if stage == "train":
        names = {name.rpartition(".")[2] for name in state if name.startswith("quantizers")}
        assert {"embeddings_kd", "counts_k", "sums_kd"} <= names
    model = next(iter((tmp_path / "run2").glob("model*.pt")))
    assert torch.load(model, weights_only=True).keys() == state.keys()  # no prefix of DDP


@pytest.mark.slow
def test_two_processes_train_against_a_discriminator_as_one_does(tmp_path):
    """Blank cells differ between processes, and with them the rows that the codebooks learn from."""
    write_slices(tmp_path / "data")
    runs = {
        processes: train(
            "train",
            processes=processes,
            data=tmp_path / "data",
            output=tmp_path / f"run{processes}",
            overlay=TINY_GENERATIVE,
        )
        for processes in (1, 2)
    }
    np.testing.assert_allclose(runs[2].training, runs[1].training, rtol=1e-3)
    np.testing.assert_allclose(runs[2].validation, runs[1].validation, rtol=1e-3)
    assert_equal_on_all_ranks(tmp_path / "run2", processes=2)
    discriminators = [
        torch.load(tmp_path / f"run{processes}/rank{rank}.pt.discriminator", weights_only=True)
        for processes, rank in ((1, 0), (2, 0), (2, 1))
    ]
    for name, tensor in discriminators[1].items():
        assert torch.equal(tensor, discriminators[2][name])
        torch.testing.assert_close(tensor, discriminators[0][name], rtol=1e-2, atol=1e-4)
    curves = [json.loads((tmp_path / f"run{processes}/history.json").read_text())["train"] for processes in (1, 2)]
    for name in ("adversarial_loss", "feature_loss", "discriminator_loss"):
        np.testing.assert_allclose(curves[1][name], curves[0][name], rtol=1e-2)
        assert curves[0][name][-1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_numbers_of_slices_that_four_processes_do_not_divide_train_to_the_end(accumulation, tmp_path):
    """13 training slices and 5 of validation: the last batches, and validation, differ between processes."""
    write_slices(tmp_path / "data", training=13)
    overlay = {**TINY_AUTOENCODER, "max_epochs": 3, "val_interval": 1, "accumulation_steps": accumulation}
    del overlay["train::trainer::epoch_length"]
    overlay["train::dataloader::drop_last"] = False
    losses = train("train", processes=4, data=tmp_path / "data", output=tmp_path / "run", overlay=overlay)
    assert np.isfinite([*losses.training, *losses.validation]).all()
    assert_equal_on_all_ranks(tmp_path / "run", processes=4)


@pytest.mark.slow
def test_accumulated_steps_of_two_processes_are_those_of_one_that_takes_whole_batches(tmp_path):
    write_slices(tmp_path / "data")
    # k-means would start from the first part alone; restarts would let the rounding of four parts grow
    codebook = {**QUANTIZER, "kmeans": False, "warm_up": False}
    network = {**TINY_AUTOENCODER["network_def"], "quantizers": [codebook, codebook]}
    overlay = {**TINY_AUTOENCODER, "network_def": network}
    whole = train("train", processes=1, data=tmp_path / "data", output=tmp_path / "whole", overlay=overlay)
    overlay["accumulation_steps"] = 2
    parts = train("train", processes=2, data=tmp_path / "data", output=tmp_path / "parts", overlay=overlay)
    np.testing.assert_allclose(parts.training, whole.training, rtol=1e-3)
    assert_equal_on_all_ranks(tmp_path / "parts", processes=2)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_run_in_time_and_the_run_goes_on_from_whole_files(victim, tmp_path):
    """Rank 0 writes the checkpoints, rank 1 does not: neither death may hang the other or leave half a file."""
    write_slices(tmp_path / "data")
    overlay = {
        **TINY_AUTOENCODER,
        "max_epochs": 300,
        "val_interval": 1,
        "imports": ["$import monai_vqgen", "$import os"],
        "initialize": [*json.loads((CONFIGS / "multi_gpu_train.json").read_text())["initialize"], WRITE_PID],
    }
    output = tmp_path / "run"
    command = command_of("train", processes=2, data=tmp_path / "data", output=output, overlay=overlay)
    with open(tmp_path / "log", "w") as log:
        torchrun = subprocess.Popen(command, stdout=log, stderr=log, env=environment())
    try:
        # the first state is of no epoch; a state before the last tells that an epoch is done
        wait_until(lambda: (output / "training_state.previous.pt").exists(), torchrun)
        pids = [int((output / f"rank{rank}.pt.pid").read_text()) for rank in (0, 1)]
        os.kill(pids[victim], signal.SIGKILL)
        assert torchrun.wait(timeout=90) != 0, (tmp_path / "log").read_text()[-4000:]
    finally:
        torchrun.kill()
    wait_until(lambda: not any(is_running(pid) for pid in pids))
    assert torch.load(output / "model.pt", weights_only=True)
    done = torch.load(output / "training_state.pt", weights_only=True)["place"]["epoch"]
    assert 0 < done < 300
    overlay = {**TINY_AUTOENCODER, "val_interval": 1, "max_epochs": done + 3}
    resumed = train("train", processes=2, data=tmp_path / "data", output=output, overlay=overlay, resume=True)
    assert resumed.training[-1] < resumed.training[0]
    assert_equal_on_all_ranks(output, processes=2)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: Callable[[], bool], process: subprocess.Popen | None = None, *, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened in time"
        assert process is None or process.poll() is None, "the run ended before it was killed"
        time.sleep(0.05)
