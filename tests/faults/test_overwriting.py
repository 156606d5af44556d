"""The last good results of every stage outlive a run that was to replace them: a typo, a full disk, a kill."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from factories import tiny_autoencoder, tiny_model
from tiny_training import run, write_slices

from monai_vqgen.bundles import run_stage
from monai_vqgen.data import make_phantoms
from monai_vqgen.errors import in_one_line, root_cause

FAILED, NOT_ALLOWED = 7, 77
NEW_MOUNTS, PRIVATE = 0x00020000, 0x00040000 | 0x4000  # CLONE_NEWNS; MS_PRIVATE | MS_REC
PROCESSES = multiprocessing.get_context("forkserver")  # threads that have worked here would not survive a plain fork
PROCESSES.set_forkserver_preload(["monai.bundle", "monai_vqgen.models", "monai_vqgen.evaluation", "tiny_training"])
STAGES = ("extract_slices", "extract_codes", "sample", "inference", "evaluate", "export")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Scans, slices, codes and a complete model."""
    folder = tmp_path_factory.mktemp("inputs")
    make_phantoms(folder / "scans", 3, voxel_mm=8.0, progress=False)
    write_slices(folder / "slices")
    tiny_model((16, 16), autoencoder=tiny_autoencoder(), record={"plane": "coronal"}).save(folder / "model")
    where = {"dataset_dir": str(folder / "slices"), "model": str(folder / "model" / "model.pt")}
    run_stage("extract_codes", options={**where, "output_dir": str(folder / "codes")})
    return folder


def options_of(stage: str, inputs: Path) -> dict[str, Any]:
    model, slices = {"model": str(inputs / "model" / "model.pt")}, {"dataset_dir": str(inputs / "slices")}
    extraction = {"pixel_mm": 8.0, "image_size": 32, "positions_mm": [40.0, 60.0, 80.0], "on_trim": "warn"}
    return {
        "extract_slices": {"dataset_dir": str(inputs / "scans"), "num_workers": 0, **extraction},
        "extract_codes": {**model, **slices},
        "sample": {**model, "num_samples": 3},
        "inference": {**model, **slices},
        "evaluate": {**model, **slices, "num_samples": 4},
        "export": {**model, "formats": ["torchscript"], "image_size": [16, 16]},
    }[stage]


def in_process(action: Callable[[], None]) -> int:
    """The status of a process of its own, in which locks are its own; negative where a signal ended it."""
    process = PROCESSES.Process(target=_act, args=(action,))
    process.start()
    process.join()
    return process.exitcode or 0


def _act(action: Callable[[], None]) -> None:
    status = FAILED
    try:
        signal.alarm(200)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        action()
        status = 0
    finally:
        atexit._run_exitfuncs()
        os._exit(status)


def on_a_full_disk(action: Callable[[], None]) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit then fails as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, 60))
    action()


def on_a_small_tmpfs(stage: str, options: dict[str, Any], folder: Path) -> None:
    """Run a stage, and again with `overwrite` while 8 kB are free, and again with room, on a file system of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_MOUNTS) or libc.mount(None, b"/", None, PRIVATE, None):
        os._exit(NOT_ALLOWED)
    assert libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=32m") == 0
    run_stage(stage, options=options)
    before, again, filler = visible(folder), {**options, "overwrite": True}, folder / "filler"
    room = os.statvfs(folder)
    filler.write_bytes(bytes(room.f_bavail * room.f_frsize - 8192))
    with pytest.raises(Exception) as caught:
        run_stage(stage, options=again)
    assert "disk" in in_one_line(caught.value) or "No space" in str(root_cause(caught.value))
    filler.unlink()
    assert visible(folder) == before
    run_stage(stage, options=again)
    assert set(visible(folder)) == set(before)


def killed_at(count: int, action: Callable[[], None]) -> None:
    """Run with a kill in place of a rename; a file's last step is one."""
    replace, left = os.replace, [count]

    def killing(source: Any, target: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = killing
    action()


def visible(folder: Path) -> dict[str, bytes]:
    """Files by their path, without those in hidden folders, or hidden themselves."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {str(p): (folder / p).read_bytes() for p in paths if not any(part[0] == "." for part in p.parts)}


def hidden(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob(".*") if not path.name.endswith(".lock")}


@pytest.mark.parametrize("stage", STAGES)
def test_results_outlive_a_typo_a_full_disk_and_a_kill_and_are_then_replaced(stage, inputs, tmp_path):
    options = {**options_of(stage, inputs), "output_dir": str(tmp_path)}
    assert in_process(partial(run_stage, stage, options=options)) == 0
    before = visible(tmp_path)
    again = {**options, "overwrite": True, "num_samples": 2} if "num_samples" in options else options
    again = {**again, "overwrite": True}
    wrong = "model" if "model" in options else "dataset_dir"
    typo = {**again, wrong: str(inputs / "typo.pt")}
    assert in_process(partial(run_stage, stage, options=typo)) == FAILED
    assert (visible(tmp_path), hidden(tmp_path)) == (before, set())
    assert in_process(partial(on_a_full_disk, partial(run_stage, stage, options=again))) == FAILED
    assert (visible(tmp_path), hidden(tmp_path)) == (before, set())
    for count in (1, 2):  # the first is that of the first file
        assert in_process(partial(killed_at, count, partial(run_stage, stage, options=again))) == -signal.SIGKILL
        assert visible(tmp_path) == before
        assert len(hidden(tmp_path)) >= 1
    (tmp_path / "notes.txt").write_text("mine")
    assert in_process(partial(run_stage, stage, options=again)) == 0
    assert hidden(tmp_path) == set()
    fewer = stage == "sample"  # the third of three samples went with the others
    after = set(before) - ({"images/sample_0002.nii.gz", "images/sample_0002.png"} if fewer else set())
    assert set(visible(tmp_path)) == {*after, "notes.txt"}


@pytest.mark.skipif(sys.platform != "linux", reason="file systems of a process are Linux's")
@pytest.mark.parametrize("stage", STAGES)
def test_results_outlive_a_file_system_without_room(stage, inputs, tmp_path):
    options = {**options_of(stage, inputs), "output_dir": str(tmp_path)}
    status = in_process(partial(on_a_small_tmpfs, stage, options, tmp_path))
    if status == NOT_ALLOWED:
        pytest.skip("mounting a tmpfs takes the rights of root")
    assert status == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "train_prior"])
def test_a_training_that_replaces_another_keeps_it_until_the_end(name, inputs, tmp_path):
    data = inputs / ("slices" if name == "train" else "codes")
    options: dict[str, Any] = {"dataset_dir": data, "output_dir": tmp_path, "val_interval": 1}
    assert in_process(partial(run, name, **options)) == 0
    before = visible(tmp_path)
    model = next(file for file in before if file.startswith("model") and file.endswith(".pt"))
    again = {**options, "seed": 1, "overwrite": True}
    assert in_process(partial(on_a_full_disk, partial(run, name, **again))) == FAILED
    assert (visible(tmp_path), hidden(tmp_path)) == (before, set())
    places = len(before)  # so many renames set the earlier files aside, and one names their folder
    for count in (2, places + 1):
        assert in_process(partial(killed_at, count, partial(run, name, **again))) == -signal.SIGKILL
        assert in_process(partial(run, name, **options)) == FAILED  # without overwrite: refused, and all is there again
        assert (visible(tmp_path), hidden(tmp_path)) == (before, set())
    assert in_process(partial(killed_at, places + 5, partial(run, name, **again))) == -signal.SIGKILL
    kept = tmp_path / f".{model}.earlier"
    assert visible(kept) == before
    assert in_process(partial(run, name, **{**options, "seed": 1, "resume": True})) == 0
    assert hidden(tmp_path) == set()
    assert set(visible(tmp_path)) >= {model, model.replace(".pt", ".json")}
    assert visible(tmp_path)[model] != before[model]
