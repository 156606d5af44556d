"""Kills at the stages of a training, and a second run into the folder of one that lives."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from tiny_training import run, write_slices

from monai_vqgen.errors import OutputExistsError, root_cause
from monai_vqgen.files import hold_alone
from monai_vqgen.handlers import claim_training

TESTS = Path(__file__).parents[1]
KILLED_BEFORE = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import monai_vqgen.files, monai_vqgen.weights, monai_vqgen.handlers.checkpoints, monai_vqgen.handlers.history
from tiny_training import run
replace = os.replace
left = {count}
def killing(source, target):
    global left
    if {name!r} in Path(target).name:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = killing
run("train", dataset_dir={data!r}, output_dir={output!r}, total_steps=8)
"""
HOLDER = """
import sys, time
from pathlib import Path
from monai_vqgen.files import hold_alone
hold_alone(Path(sys.argv[1]), "model.pt")
print("held", flush=True)
if len(sys.argv) > 2:
    import torch.multiprocessing as mp
    worker = mp.get_context("fork").Process(target=time.sleep, args=(600,))
    worker.start()
    print(worker.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_slices(folder)
    return folder


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run("train", dataset_dir=data, output_dir=folder, total_steps=8)
    return folder


# Each rename of a run of two epochs, and how often it came before: a state at the start and one an epoch, of which the
# earlier one is kept.
RENAMES = [
    ("training_state.pt", 1),
    *[(name, epoch) for epoch in (1, 2) for name in ("model.pt", "model.json", "history.json", "state.previous.pt")],
    ("model.json", 3),  # of the second epoch's two, the one that says that the earlier weights are replaced
    ("training_state.pt", 2),
    ("training_state.pt", 3),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), RENAMES)
def test_a_run_killed_before_any_of_its_renames_is_resumed_to_the_same_bytes(name, count, data, whole, tmp_path):
    code = KILLED_BEFORE.format(tests=str(TESTS), name=name, count=count, data=str(data), output=str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    run("train", dataset_dir=data, output_dir=tmp_path, total_steps=8, resume=True)
    for file in ("model.pt", "model.json", "history.json"):
        assert (tmp_path / file).read_bytes() == (whole / file).read_bytes(), file
    states = [torch.load(folder / "training_state.pt", weights_only=True) for folder in (tmp_path, whole)]
    for part, tensor in states[0]["parts"]["objective"].items():
        assert torch.equal(tensor, states[1]["parts"]["objective"][part]), part


def test_a_run_killed_after_its_first_weights_is_resumed(data, whole, tmp_path, monkeypatch):
    """The same in this process: what the handlers have written when the first weights lie there is all there is."""
    from monai_vqgen.handlers import BestCheckpoint

    class Killed(BaseException):
        pass

    save = BestCheckpoint.__call__

    def and_die(self, engine):
        save(self, engine)
        raise Killed

    monkeypatch.setattr(BestCheckpoint, "__call__", and_die)
    with pytest.raises(Killed):
        run("train", dataset_dir=data, output_dir=tmp_path, total_steps=8)
    monkeypatch.undo()
    assert (tmp_path / "model.pt").is_file()
    run("train", dataset_dir=data, output_dir=tmp_path, total_steps=8, resume=True)
    assert (tmp_path / "model.pt").read_bytes() == (whole / "model.pt").read_bytes()
    assert (tmp_path / "history.json").read_bytes() == (whole / "history.json").read_bytes()


@pytest.mark.parametrize("left", ["training_state.pt", "training_state.previous.pt"])
def test_a_folder_with_either_state_can_be_resumed_and_one_with_none_is_refused(tmp_path, left):
    (tmp_path / "model.pt").touch()
    with pytest.raises(OutputExistsError):
        claim_training(tmp_path, resume=True)
    (tmp_path / left).touch()
    claim_training(tmp_path, resume=True)
    with pytest.raises(OutputExistsError):
        claim_training(tmp_path)
    claim_training(tmp_path, overwrite=True)
    assert not (tmp_path / left).exists()


def holder_of(folder: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder), *more]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
def test_a_second_run_into_the_folder_of_one_that_lives_is_refused_and_touches_nothing(tmp_path, options):
    for name in ("model.pt", "training_state.pt", "history.json"):
        (tmp_path / name).write_text("of the first run")
    process = holder_of(tmp_path)
    try:
        with pytest.raises(OutputExistsError, match=rf"another run is writing model\.pt.*process {process.pid} on "):
            claim_training(tmp_path, **options)
        names = ("model.pt", "training_state.pt", "history.json")
        assert all((tmp_path / name).read_text() == "of the first run" for name in names)
        claim_training(tmp_path, level=0, **options)  # the training of a prior is another run
    finally:
        end(process)
    claim_training(tmp_path, **{"resume": True, **options})  # killed, it holds nothing


def test_a_second_run_through_a_linked_folder_is_refused_too(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk", target_is_directory=True)
    for held, asked in (("disk", "link"), ("link", "disk")):
        process = holder_of(tmp_path / held)
        try:
            with pytest.raises(OutputExistsError, match=r"another run is writing model\.pt"):
                claim_training(tmp_path / asked)
        finally:
            end(process)


@pytest.mark.parametrize("locks", [True, False])
def test_a_resumed_run_removes_the_place_of_another_machines_only_where_a_lock_says_that_it_is_dead(
    tmp_path, monkeypatch, locks
):
    def refused(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / "training_state.pt").touch()
    place = tmp_path / ".00000000-1-0.partial.model.pt"
    place.mkdir()
    if not locks:
        monkeypatch.setattr(fcntl, "lockf", refused)
    claim_training(tmp_path, resume=True)
    assert place.exists() is not locks


def test_the_second_of_two_trainings_is_refused_by_its_command(data, tmp_path):
    process = holder_of(tmp_path)
    try:
        with pytest.raises(RuntimeError) as caught:
            run("train", dataset_dir=data, output_dir=tmp_path)
        assert isinstance(root_cause(caught.value), OutputExistsError)
        assert not (tmp_path / "model.pt").exists()
    finally:
        end(process)


def test_a_lock_dies_with_its_process_though_a_forked_worker_lives_on(tmp_path):
    process = holder_of(tmp_path, "with a worker")
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    end(process)
    try:
        os.kill(worker, 0)  # it lives
        hold_alone(tmp_path, "model.pt")
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_run_that_ends_well_takes_its_lock_file_with_it(tmp_path):
    process = holder_of(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".model.pt.lock"]
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_one_process_may_take_up_its_own_folder_also_when_it_was_made_anew(tmp_path):
    for _ in range(2):
        folder = tmp_path / "run"
        claim_training(folder)
        claim_training(folder)
        process = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder)],
            input="", capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert process.returncode == 1
        assert "another run is writing model.pt" in process.stderr
        shutil.rmtree(folder)
