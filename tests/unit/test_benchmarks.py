"""`make bench` at tiny sizes: every benchmark runs, and the file has what the README quotes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

SAMPLING = ["sampling_32_attention_b1", "sampling_32_attention_b16", "sampling_64_b16", "sampling_floor_b1"]


@pytest.fixture
def benchmarks_main(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2]))
    from benchmarks.__main__ import main

    threads = torch.get_num_threads()
    yield main
    torch.set_num_threads(threads)


def test_each_benchmark_writes_a_ratio_beside_the_machine(benchmarks_main, tmp_path):
    output = tmp_path / "bench" / "results.json"
    assert benchmarks_main(["--quick", "--output", str(output), "--only", *SAMPLING, "quantizer_time"]) == 0
    results = json.loads(output.read_text())
    assert results["machine"]["threads_used"] == 1
    for name in [*SAMPLING, "quantizer_time"]:
        assert results[name]["ratio"] > 0
    for name in SAMPLING[:3]:
        assert results[name]["max_logit_difference"] < 1e-5
        assert results[name]["whole_grid_s_extrapolated"] > 0
    assert not list(output.parent.glob("*.part"))


def test_an_unknown_benchmark_is_refused_with_those_that_exist(benchmarks_main, capsys):
    with pytest.raises(SystemExit):
        benchmarks_main(["--only", "sampling_99"])
    assert "sampling_64_b16" in capsys.readouterr().err
