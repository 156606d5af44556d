"""Processes end with the one that started them, however that ended: none goes on to write."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from monai_vqgen.bundles import PARENT_VARIABLE, run_stage_apart

SECONDS = 120.0  # until a child has started; a few are enough for its end
CHILD = """
import sys, time
from pathlib import Path
from monai_vqgen.data.processes import end_with_parent
end_with_parent(by_kernel=sys.argv[2] == "True")
while True:
    Path(sys.argv[1]).write_text(str(time.time()))
    time.sleep(0.05)
"""
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", *sys.argv[1:]])
time.sleep(600)
"""
RANK = """
import os, sys, time
from pathlib import Path
from monai_vqgen.engines import start_distributed
start_distributed("cpu")
while True:
    Path(sys.argv[1] + os.environ["RANK"]).write_text(str(time.time()))
    time.sleep(0.05)
"""
WORKER = """
import multiprocessing, sys, time
from pathlib import Path
from monai_vqgen.data.processes import end_worker_with_parent
def busy(path):
    end_worker_with_parent()
    while True:
        Path(path).write_text(str(time.time()))
        time.sleep(0.05)
if __name__ == "__main__":
    worker = multiprocessing.get_context(sys.argv[2]).Process(target=busy, args=(sys.argv[1],))
    worker.start()
    worker.join()
"""
WORKERS = """
import sys, time
from pathlib import Path
import monai_vqgen.data.slices.extraction as extraction
def busy(record, options, images):
    while True:
        (Path(sys.argv[2]) / record.name).write_text(str(time.time()))
        time.sleep(0.05)
extraction.slices_of_scan = busy
extraction.extract_slices(sys.argv[1], sys.argv[2], num_workers=2, progress=False)
"""


def stop_with_their_parent(command: list[str], files: list[Path]) -> bool:
    """Kill the parent when all children write; say whether they then write no more."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + SECONDS
        while not all(file.is_file() for file in files):
            assert time.monotonic() < until, "no child has started"
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    time.sleep(4)
    written = [file.read_text() for file in files]
    time.sleep(1)
    return [file.read_text() for file in files] == written


@pytest.mark.parametrize("by_kernel", [True, False])
def test_a_child_ends_with_its_parent(tmp_path, by_kernel):
    command = [sys.executable, "-c", PARENT, CHILD, str(tmp_path / "child"), str(by_kernel)]
    assert stop_with_their_parent(command, [tmp_path / "child"])


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_worker_lives_as_long_as_its_parent_however_it_was_started(tmp_path, method):
    script = tmp_path / "work.py"
    script.write_text(WORKER)
    assert stop_with_their_parent(
        [sys.executable, str(script), str(tmp_path / "worker"), method], [tmp_path / "worker"]
    )


def test_the_workers_of_an_extraction_end_with_it(tmp_path):
    from monai_vqgen.data import make_phantoms

    make_phantoms(tmp_path / "scans", 3, voxel_mm=8.0, progress=False)
    command = [sys.executable, "-c", WORKERS, str(tmp_path / "scans"), str(tmp_path / "slices")]
    assert stop_with_their_parent(command, [tmp_path / "slices" / name for name in ("sub-01", "sub-02")])


def test_the_processes_of_torchrun_end_with_it(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script), f"{tmp_path}/rank"]
    assert stop_with_their_parent([sys.executable, *launcher], [tmp_path / "rank0", tmp_path / "rank1"])


def test_a_stage_whose_starter_has_ended_before_it_began_does_not_begin():
    code = "from monai_vqgen.engines import check_command_line\n"
    code += "check_command_line(['/monai/bundle/__main__.py', 'run'])\nraise SystemExit(7)"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for parent, status in ((gone.pid, 1), (os.getpid(), 7)):
        environment = {**os.environ, PARENT_VARIABLE: str(parent)}
        command = [sys.executable, "-c", code]
        assert subprocess.run(command, env=environment, check=False, timeout=SECONDS).returncode == status


def test_a_stage_apart_is_told_who_has_started_it(tmp_path, monkeypatch):
    class Started:
        def __init__(self, command, *, env, **options):
            told.append(env[PARENT_VARIABLE])

        def wait(self):
            return 0

    told: list[str] = []
    monkeypatch.setattr(subprocess, "Popen", Started)
    run_stage_apart("train", options={}, log=tmp_path / "log", environment={"OMP_NUM_THREADS": "1"})
    assert told == [str(os.getpid())]
