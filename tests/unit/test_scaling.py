"""`python -m benchmarks.scaling`: estimates are products of the rates, and every row of the tables is filled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2]))
    from benchmarks import scaling

    threads = torch.get_num_threads()
    yield scaling
    torch.set_num_threads(threads)


def test_costs_are_numbers_of_slices_over_rates(scaling):
    rates = scaling.Rates(
        slices_cut_per_s=100.0,
        slices_encoded_per_s=50.0,
        slices_trained_per_s=10.0,
        grids_trained_per_s=(20.0, 4.0),
        training_mb=(700.0, 200.0, 900.0),
        slice_bytes=30_000.0,
        code_bytes=2_560.0,
    )
    costs = {cost.what: cost.value for cost in scaling.estimate(scaling.MODELS[0], rates, slices=360_000, epochs=2)}
    assert costs == pytest.approx(
        {
            "cutting the slices": 1.0,
            "autoencoder, 2 epochs": 20.0,
            "encoding": 2.0,
            "prior of level 0, 2 epochs": 10.0,
            "prior of level 1, 2 epochs": 50.0,
            "slices on disk": 10.8,
            "codes on disk": 0.9216,
            "all slices in memory (cache_rate 1), each process": 360_000 * 128 * 128 * 4 / 1e9,
            "a training step at batch_size 16, at most": 0.9,
        }
    )


def test_the_models_have_the_grids_that_the_networks_make(scaling):
    for model in scaling.MODELS:
        levels = range(len(model.strides))
        assert len(model.prior_layers) == len(model.strides)
        grids = model.autoencoder().grids((model.image_size, model.image_size))
        assert tuple(model.grid(level) for level in levels) == grids


def test_the_peak_of_a_process_apart_is_its_own_not_its_parents(scaling):
    ballast = torch.ones(100_000_000)  # 400 MB of this process
    assert scaling._alone(scaling._peak_mb, "cpu") < scaling._peak_mb("cpu") - 0.7 * ballast.nbytes / 1e6


@pytest.mark.slow
def test_a_quick_run_prints_both_tables_and_keeps_the_rates(scaling, tmp_path, capsys):
    assert scaling.main(["--quick", "--output", str(tmp_path / "bench" / "scaling.json")]) == 0
    tables = capsys.readouterr().out
    rows = [line for line in tables.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 7 + 9
    assert all(line.count("|") == 3 and not line.endswith("|  |") for line in rows)
    rates = json.loads((tmp_path / "bench" / "scaling.json").read_text())["rates"]["quick"]
    assert all(rates[name] > 0 for name in ("slices_cut_per_s", "slices_encoded_per_s", "slices_trained_per_s"))
    assert len(rates["grids_trained_per_s"]) == 2
