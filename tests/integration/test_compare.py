"""Designs side by side, at a tiny size: a failure costs the others nothing, a second call trains none again."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from monai_vqgen.data import make_phantoms
from monai_vqgen.errors import OutputExistsError, StageError
from tools.compare import Comparison, compare

pytestmark = pytest.mark.slow

GOOD = """
- {name: ours, group: architecture}
- {name: "one level", group: architecture, overlay: configs/system_b.yaml, options: {"network_def::channels": 8}}
"""
BAD = '- {name: "one code", group: quantizer, options: {"network_def::num_codes": 1}}\n'


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "scans"
    make_phantoms(folder, 6, seed=1)
    return folder


def test_designs_are_trained_judged_and_tabled_once(scans, tmp_path):
    designs, results, output = tmp_path / "designs.yaml", tmp_path / "RESULTS.md", tmp_path / "out"
    designs.write_text(GOOD + BAD)
    results.write_text("<!-- comparison_designs_tiny_test -->\n<!-- /comparison_designs_tiny_test -->\n")
    comparison, given = Comparison(designs, steps=12, size="tiny", split="test"), {"jobs": 2, "results": results}
    with pytest.raises(StageError, match=r"1 of 3 designs failed; the first: one code: num_codes=1"):
        compare(scans, output, comparison, **given)
    figures = json.loads((output / "comparison.json").read_text())["designs"]
    assert [row["name"] for row in figures] == ["ours", "one level"]
    assert [len(row["metrics"]["codebook"]) for row in figures] == [2, 1]
    assert all(row["metrics"]["judged"] == "test" for row in figures)
    steps = [row["steps"] for row in figures]
    costs = [row["cost"] for row in figures]
    assert costs[0] == 1
    assert steps == [math.ceil(12 / round(cost, 4)) for cost in costs]
    assert (
        f"| architecture: one level | {figures[1]['metrics']['rate']['raw_bits_per_pixel']:.3f} |"
        in results.read_text()
    )
    assert {path.name for path in (output / "design_ours/evaluation").glob("*.png")} == {
        "reconstructions.png",
        "usage.png",
    }

    trained = (output / "design_ours/model.pt").stat().st_mtime_ns
    designs.write_text(GOOD)
    again = compare(scans, output, comparison, **given)
    assert [row._asdict() for row in again] == figures
    assert (output / "design_ours/model.pt").stat().st_mtime_ns == trained
    with pytest.raises(OutputExistsError, match="steps"):
        compare(scans, output, comparison._replace(steps=24), **given)
    with pytest.raises(OutputExistsError, match="split"):
        compare(scans, output, comparison._replace(split="validation"), jobs=2)


def test_a_comparison_that_is_told_to_stop_leaves_no_training_behind(scans, tmp_path):
    designs = tmp_path / "designs.yaml"
    designs.write_text(GOOD)
    command = [sys.executable, "-m", "tools", "compare", "--data", str(scans), "--designs", str(designs)]
    command += ["--output", str(tmp_path / "out"), "--size", "tiny", "--steps", "100000", "--jobs", "2"]
    running = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    try:
        started = tmp_path / "out/design_ours/history.json"
        deadline = time.monotonic() + 240
        while not started.is_file():
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=60) == 128 + signal.SIGTERM
        assert trainings_below(tmp_path) == []
    finally:
        running.kill()


def trainings_below(folder: Path) -> list[str]:
    """Command lines of living processes that name the folder."""
    lines = [Path(f"/proc/{pid}/cmdline") for pid in os.listdir("/proc") if pid.isdigit()]
    found = []
    for path in lines:
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended meanwhile
            continue
        if "monai.bundle" in words and any(str(folder) in word for word in words):
            found.append(" ".join(words))
    return found
