"""The commands of docs/RELIABILITY.md, for a moment instead of hours; what a soak calls different."""

from __future__ import annotations

import json

import pytest
import torch

from monai_vqgen.weights import write_state
from tools.__main__ import main
from tools.soak import RESULTS, _differences


@pytest.mark.slow
def test_the_commands_of_the_page_find_nothing(documented, tmp_path):
    fuzz, soak = (command.split()[3:] for command in documented("docs/RELIABILITY.md"))
    assert (fuzz[0], soak[0]) == ("fuzz", "soak")
    assert main([*fuzz, "--output", str(tmp_path / "fuzz"), "--count", "4"]) == 0
    assert main([*soak, "--output", str(tmp_path / "soak"), "--minutes", "0", "--within", "40", "--epochs", "40"]) == 0
    told = json.loads((tmp_path / "soak" / "soak.json").read_text())
    assert (told["runs"], told["differ"]) == (1, [])


@pytest.mark.parametrize("changed", [None, *RESULTS, "training_state.pt", ".1-2.partial.model.pt"])
def test_a_run_differs_by_what_is_not_as_in_the_other(tmp_path, changed):
    for run in ("whole", "run"):
        (tmp_path / run).mkdir()
        for name in RESULTS:
            (tmp_path / run / name).write_bytes(b"%d" % (run == "run" and name == changed))
        weight = torch.full((3,), float(run == "run" and changed == "training_state.pt"))
        write_state({"parts": {"objective": {"weight": weight}}}, tmp_path / run / "training_state.pt")
    if changed and changed.startswith("."):
        (tmp_path / "run" / changed).touch()
    assert _differences(tmp_path / "run", tmp_path / "whole") == [changed] * (changed is not None)
