"""The SLURM script: every stage in order on all machines, what is finished stays, a stage that fails ends the job."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "slurm_train.sh"
STAGES = ["extract_slices", "train", "extract_codes", "train_prior", "train_prior"]
# In place of the cluster's own: it writes down its command, and makes the file by which a stage is known as finished.
SRUN = """#!/bin/bash
echo "$*" >> "$CALLS"
[[ "$*" != *"$FAILING"* ]] || exit 3
while [ $# -gt 0 ]; do [ "$1" = --output_dir ] && output=$2; shift; done
mkdir -p "$output"
touch "$output/datalist.json" "$output/codes.json"
"""


def submit(folder: Path, *, failing: str = "no stage") -> tuple[int, list[str]]:
    """Run the script as SLURM would on the first of two machines; its exit status and the commands of this time."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name, text in {"srun": SRUN, "scontrol": "#!/bin/bash\nprintf 'node7\\nnode8\\n'\n"}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    calls = folder / "calls"
    calls.write_text("")
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "FAILING": failing,
        "SLURM_JOB_ID": "5",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_CPUS_PER_TASK": "32",
    }
    done = subprocess.run(
        ["bash", str(SCRIPT), "SCANS", str(folder / "run")], cwd=ROOT, env=environment, check=False, timeout=60
    )
    return done.returncode, calls.read_text().splitlines()


def test_bash_reads_it():
    read = subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True, text=True, check=False, timeout=60)
    assert (read.returncode, read.stdout, read.stderr) == (0, "", "")


def test_every_stage_runs_once_on_all_machines_with_its_file_for_several_processes(tmp_path):
    status, calls = submit(tmp_path)
    assert status == 0
    for call, stage in zip(calls, STAGES, strict=True):
        assert f"'bundle/configs/{stage}.json','bundle/configs/multi_gpu_{stage}.json'" in call
        assert "--kill-on-bad-exit=1 --cpus-per-task=32 torchrun --nnodes=2 --nproc_per_node=4" in call
        assert "--rdzv_endpoint=node7:29500" in call
        assert all((ROOT / path).is_file() for path in re.findall(r"'([^']+\.json)'", call))
    assert ["--level 0" in call for call in calls] == [False, False, False, True, False]
    assert submit(tmp_path) == (0, [])


@pytest.mark.parametrize("failing", ["configs/train.json", "--level 1"])
def test_a_stage_that_fails_ends_the_job_and_the_next_job_begins_there(tmp_path, failing):
    status, calls = submit(tmp_path, failing=failing)
    assert status != 0
    assert failing in calls[-1]
    assert sum(failing in call for call in calls) == 1
    status, again = submit(tmp_path)
    assert status == 0
    assert again[0] == calls[-1]
    assert len(calls) + len(again) == len(STAGES) + 1
