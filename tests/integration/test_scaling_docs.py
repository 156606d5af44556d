"""Every command of docs/SCALING.md runs word for word: on phantoms, two processes, a bundle whose defaults are tiny."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
import torch

from monai_vqgen.data import CodeStore, load_datalist, make_phantoms
from monai_vqgen.models.loading import load_autoencoder
from monai_vqgen.transforms import LoadSlice
from monai_vqgen.weights import fingerprint

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "SCALING.md"
# In place of the cluster's own: two "machines" of one process each, both this one, which meet as real ones would.
TOOLS = {
    "sbatch": """nodes=${1#--nodes=}; shift
export SLURM_NNODES=$nodes SLURM_JOB_ID=5 SLURM_JOB_NODELIST=node[1-$nodes] SLURM_CPUS_PER_TASK=1
exec bash "$@" """,
    "scontrol": "echo localhost; echo localhost",
    "srun": """while [[ $1 == --* ]]; do shift; done; echo "$*" >> calls
jobs=(); for ((i = 0; i < SLURM_NNODES; i++)); do SLURM_PROCID=$i SLURM_LOCALID=0 "$@" & jobs+=($!); done
status=0; for job in "${jobs[@]}"; do wait "$job" || status=$?; done; exit $status""",
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def assert_codes_are_the_networks(*, slices: Path, model: Path, codes: Path) -> None:
    """Codes of all test slices against those of the network that one process loads."""
    network, _ = load_autoencoder(model)
    images = torch.stack([LoadSlice()(record["image"]).as_tensor() for record in load_datalist(slices, "test")])
    with torch.no_grad():
        expected = network.eval().encode(images)
    store = CodeStore(codes)
    assert store.fingerprint == fingerprint(network)
    for level, grid in enumerate(expected):
        written = torch.as_tensor(store.codes("test", level))
        assert written.shape == grid.shape
        assert (written == grid).float().mean() > 0.99  # rounding, in batches of other sizes, may move a rare code


def test_the_page_has_the_commands_that_are_run_here(documented):
    programs = [command.split()[0] for command in documented("docs/SCALING.md")]
    assert programs == ["torchrun", "torchrun", "torchrun", "sbatch", "python"]


@pytest.mark.slow
def test_the_stages_run_one_after_another_with_two_processes(tiny_clone, documented):
    folder = tiny_clone.folder
    make_phantoms(folder / "SCANS", 8, seed=1, voxel_mm=4.0, progress=False)
    for command in documented("docs/SCALING.md")[:3]:
        assert "--nproc_per_node=2" in command
        tiny_clone.run(command)
    out = folder / "out"
    assert all(load_datalist(out / "slices", split) for split in ("training", "validation", "test"))
    assert json.loads((out / "autoencoder/history.json").read_text())["train"]["epoch"] == [1]
    places = {"slices": out / "slices", "model": out / "autoencoder/model.pt", "codes": out / "codes"}
    assert_codes_are_the_networks(**places)
    assert not list(folder.rglob("*.partial"))


@pytest.mark.slow
def test_the_slurm_job_goes_from_scans_to_priors_on_two_machines(tiny_clone, documented):
    folder = tiny_clone.folder
    make_phantoms(folder / "SCANS", 8, seed=1, voxel_mm=4.0, progress=False)
    (folder / "tools").mkdir()
    for name, text in TOOLS.items():
        (folder / "tools" / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / "tools" / name).chmod(0o755)
    (command,) = [command for command in documented("docs/SCALING.md") if command.startswith("sbatch")]
    tiny_clone.run(command, PORT=str(free_port()))
    run = folder / "RUN"
    for name in (
        "slices/datalist.json",
        "codes/codes.json",
        "model/model_prior_level0.pt",
        "model/model_prior_level1.pt",
    ):
        assert (run / name).stat().st_size > 0
    assert_codes_are_the_networks(slices=run / "slices", model=run / "model/model.pt", codes=run / "codes")
    calls = (folder / "calls").read_text().splitlines()
    assert len(calls) == 5
    tiny_clone.run(command, PORT=str(free_port()))  # as after a time limit: what is finished stays
    assert (folder / "calls").read_text().splitlines() == calls


@pytest.mark.slow
def test_the_costs_are_measured_by_the_command_of_the_page(tiny_clone, documented):
    command = documented("docs/SCALING.md")[-1]
    printed = tiny_clone.run(f"{command} --quick")  # whole, it takes an idle machine and its time
    assert len([line for line in printed.splitlines() if line.startswith("| ")]) == 2 + 7 + 9
    assert json.loads((tiny_clone.folder / "out/bench/scaling.json").read_text())["rates"]


def test_every_knob_of_the_page_is_an_option_of_a_stage():
    parser_options = {"--quick", "--device", "--standalone", "--nodes", "--nproc_per_node", "--config_file"}
    known = {key for path in (ROOT / "bundle" / "configs").glob("*.json") for key in json.loads(path.read_text())}
    knobs = set(re.findall(r"--[a-z]\w*", PAGE.read_text(encoding="utf-8"))) - parser_options
    assert len(knobs) > 15
    assert {knob for knob in knobs if knob[2:] not in known} == set()
