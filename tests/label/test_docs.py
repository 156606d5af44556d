"""The requests in docs/MONAI_LABEL.md work as they stand there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import pytest
from PIL import Image

PAGE = Path(__file__).resolve().parents[2] / "docs" / "MONAI_LABEL.md"
COMMANDS = re.findall(r"^curl .*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
ASKING = [command for command in COMMANDS if "/train/" not in command]
TRAINING = [command for command in COMMANDS if "/train/" in command]


def run(command: str, server, folder: Path) -> str:
    command = command.replace("http://127.0.0.1:8000", server.url).replace("curl", "curl --fail-with-body -sS", 1)
    done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
    return done.stdout


@pytest.mark.parametrize("command", ASKING)
def test_a_request_of_the_page_gives_what_it_says(command, server, studies, tmp_path):
    for name in ("slice.nii.gz", "picture.png"):
        shutil.copy(studies / "slices" / name, tmp_path / name)
    printed = run(command, server, tmp_path)
    written = re.search(r"-o (\S+)", command)
    if written is None:
        assert json.loads(printed)
    elif written[1].endswith(".png"):
        with Image.open(tmp_path / written[1]) as picture:
            assert picture.size == (32, 32)
    else:
        assert nib.load(tmp_path / written[1]).get_fdata().size


def test_a_job_is_started_asked_about_and_stopped_as_the_page_says(server, tools, tmp_path):
    begin, ask, end = TRAINING
    assert json.loads(run(begin, server, tmp_path))["status"] in ("SUBMITTED", "RUNNING")
    tools.wait_for(lambda: json.loads(run(ask, server, tmp_path))["status"] == "RUNNING", what="the job's start")
    run(end, server, tmp_path)
    assert json.loads(run(ask, server, tmp_path))["status"] == "STOPPED"
