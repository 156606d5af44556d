"""A tiny training that is killed again and again and resumed, until it ends, against one that nothing happened to.

phantoms --> slices --> training, left alone
                    --> training, killed within each minute, resumed ... until it ends; byte for byte the same? again
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from monai_vqgen.bundles import bundle_root, run_stage
from monai_vqgen.data import make_phantoms
from monai_vqgen.errors import StageError
from monai_vqgen.files import claim_folder, write_json
from monai_vqgen.weights import read_state

__all__ = ["RESULTS", "soak"]

logger = logging.getLogger(__name__)

RESULTS = ("model.pt", "model.json", "history.json")
"""Compared byte for byte; of the training state, which tells the time too, what it holds of networks and optimizer."""
SLICES = {"image_size": 32, "pixel_mm": 6.5, "position_start_mm": 50.0, "position_stop_mm": 80.0}
TINY = {"network_def::channels": 8, "network_def::residual_channels": 4, "network_def::num_codes": 16, "batch_size": 4}


def soak(output: str | Path, *, minutes: float = 30.0, within: float = 60.0, epochs: int = 60, seed: int = 0) -> int:
    """Kill and resume trainings for a while, and print how they ended.

    Args:
        output: an empty or new folder; runs that differ are kept there, and `soak.json`.
        minutes: after this time no other training begins.
        within: a kill comes after a random time of at most so many seconds, counted from a process' start.
        epochs: of the training; so many that it takes several of these times.
        seed: of the moments.

    Returns:
        How many trainings ended otherwise than the one left alone.

    Raises:
        StageError: a process that was not killed failed.
        OutputExistsError: the folder holds an earlier soak.
    """
    folder, random = Path(output).resolve(), np.random.default_rng(seed)
    claim_folder(folder, ["soak.json", "scans", "slices", "whole"], overwrite=False)
    make_phantoms(folder / "scans", 6, voxel_mm=4.0, progress=False)
    slices = {"dataset_dir": str(folder / "scans"), "output_dir": str(folder / "slices"), **SLICES}
    run_stage("extract_slices", options=slices)
    start = time.monotonic()
    _train(folder, "whole", epochs=epochs, seconds=None)
    logger.info("The training left alone took %.0f s", time.monotonic() - start)
    whole, runs, kills, others = folder / "whole", 0, 0, list[str]()
    start = time.monotonic()
    while time.monotonic() - start < 60 * minutes or not runs:
        name = f"run{runs}"
        while not _train(folder, name, epochs=epochs, seconds=float(random.uniform(0, within))):
            kills += 1
        differing = _differences(folder / name, whole)
        others += [f"{name}: {', '.join(differing)}"] if differing else []
        runs += 1
        told = {"minutes": round((time.monotonic() - start) / 60, 1), "runs": runs, "kills": kills, "differ": others}
        write_json(folder / "soak.json", told)
        print(f"{told['minutes']} min: {runs} trainings, {kills} kills, {len(others)} ended otherwise", flush=True)
        if not differing:
            shutil.rmtree(folder / name)
    return len(others)


def _train(folder: Path, name: str, *, epochs: int, seconds: float | None) -> bool:
    """Start or resume a training, and kill it with all its children after some time; whether it ended before."""
    options = {"dataset_dir": folder / "slices", "output_dir": folder / name, **TINY}
    options |= {"max_epochs": epochs, "resume": (folder / name).exists(), "bundle_root": bundle_root()}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    config = str(bundle_root() / "configs" / "train.json")
    with open(folder / f"{name}.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "monai_vqgen", "run", "training", "--config_file", config, *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(seconds)
        except BaseException as error:  # its time is over, or ours
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return False
    if status:
        raise StageError(f"a training that nobody killed ended with status {status}; see {folder / name}.log")
    return True


def _differences(run: Path, whole: Path) -> list[str]:
    """What of a run is not as in the other."""
    found = [name for name in RESULTS if (run / name).read_bytes() != (whole / name).read_bytes()]
    left = [path.name for path in run.iterdir() if not (whole / path.name).exists()]
    parts = [str(read_state(folder / "training_state.pt")["parts"]) for folder in (run, whole)]
    return found + left + (["training_state.pt"] if parts[0] != parts[1] else [])
