"""A module in a fork prints, ends and cleans up as the program that `python -m` would start."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from factories import tiny_model
from forks import run_program

ARGUMENTS = ["python", "-m", "monai_vqgen"]


def test_it_prints_and_ends_as_the_program_does(tmp_path):
    environment = {**os.environ, "COLUMNS": "100"}
    for words in (["--version"], ["sample", "--help"], ["sample", "--num_sampels", "2"], ["verify", "nowhere"], []):
        forked = run_program([*ARGUMENTS, *words], tmp_path, environment, timeout=120)
        command = [sys.executable, *ARGUMENTS[1:], *words]
        real = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert (forked.returncode, forked.stdout, forked.stderr) == (real.returncode, real.stdout, real.stderr), words


def test_it_works_in_its_folder_and_removes_its_lock_as_programs_do_at_their_end(tmp_path):
    tiny_model((16, 16)).save(tmp_path / "model")
    words = ["sample", "--model", "model/model.pt", "--num_samples", "2", "--output_dir", "samples"]
    done = run_program([*ARGUMENTS, *words], tmp_path, os.environ, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Written to samples" in done.stderr
    assert len(list((tmp_path / "samples").rglob("*.nii.gz"))) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "samples"]
    assert not [path for path in tmp_path.rglob("*") if "lock" in path.name]


def test_it_draws_other_numbers_than_the_last_waits_for_its_threads_and_does_not_see_the_tests(tmp_path):
    def printed(expression: str, *, after_s: float = 0.0) -> str:
        later = f"__import__('threading').Timer({after_s}, lambda: print('printed', {expression})).start()"
        (tmp_path / "print.json").write_text(json.dumps({"run": [f"${later}"]}))
        command = ["python", "-m", "monai.bundle", "run", "--config_file", "print.json"]
        lines = run_program(command, tmp_path, os.environ, timeout=120).stdout.splitlines()
        return next((line for line in lines if line.startswith("printed ")), "")

    assert printed("__import__('numpy').random.rand()") != printed("__import__('numpy').random.rand()") != ""
    assert printed("'late'", after_s=1.0) == "printed late"
    path = printed("__import__('sys').path")
    assert str(tmp_path) in path
    assert str(Path(__file__).parents[1]) not in path


def test_a_program_that_takes_too_long_is_ended(tmp_path):
    begun = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        run_program([*ARGUMENTS, "demo", "--output", "out"], tmp_path, os.environ, timeout=1)
    assert not [child for child in multiprocessing.active_children() if child.is_alive()]
    assert time.monotonic() - begun < 60, "it was not waited for"
