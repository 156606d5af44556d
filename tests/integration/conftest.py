"""Commands of the documentation, run word for word in a folder that looks like a clone of the repository."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from forks import run_program

ROOT = Path(__file__).parents[2]
CODES = 16
# Defaults of the bundle's stages at which each takes seconds; keys as on the command line.
TINY: dict[str, Any] = {
    "image_size": [32, 32],
    "pixel_mm": 7.0,
    "position_step_mm": 20.0,
    "max_epochs": 1,
    "batch_size": 4,
    "num_workers": 0,
    "network_def::channels": 16,
    "network_def::residual_channels": 8,
    "network_def::num_residual_blocks": 1,
    "network_def::num_codes": CODES,
    "prior_def::channels": 16,
    "prior_def::num_layers": 2,
    "prior_def::attention_every": 2,
}


class Clone(NamedTuple):
    """A folder where the documentation's commands work as they stand there."""

    folder: Path

    def run(self, command: str, *, timeout: float = 1800, **variables: str) -> str:
        """Run one line of bash with this environment's programs, return what it printed, fail where it fails.

        A program of ours that stands alone runs in a fork, which saves it the imports, and all else in bash.
        """
        programs = f"{self.folder / 'tools'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PATH": programs, **variables}
        alone = re.match(r"(python -m (monai\.bundle|monai_vqgen)|monai-vqgen) ", command)
        plain = alone and not variables and not re.search(r"[|&;<>$`*?~#{}()!\\\n]", command)
        words = shlex.split(command) if plain else ["bash", "-c", command]
        done = run_program(words, self.folder, environment, timeout)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """With the bundle as it is; scans and outputs are the test's own."""
    for name in ("benchmarks", "bundle", "configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    return Clone(tmp_path)


@pytest.fixture
def tiny_clone(tmp_path: Path) -> Clone:
    """With a bundle whose defaults are tiny, and without its weights."""
    shutil.copytree(ROOT / "bundle" / "configs", tmp_path / "bundle" / "configs")
    for path in (tmp_path / "bundle" / "configs").glob("*.json"):
        config = json.loads(path.read_text())
        for key, value in TINY.items():
            _replace(config, key.split("::"), value)
        path.write_text(json.dumps(config, indent=4))
    for name in ("benchmarks", "configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    return Clone(tmp_path)


def _replace(config: Any, keys: list[str], value: Any) -> None:
    """Set what has a value already; a stage without that option, or with null for it, stays as it is."""
    *parents, last = [int(key) if key.isdecimal() else key for key in keys]
    for key in parents:
        if not isinstance(config, dict | list) or (isinstance(config, dict) and key not in config):
            return
        config = config[key]
    if not isinstance(config, dict | list):
        return
    known = config.get(last) if isinstance(config, dict) else config[last]
    if known is not None:
        config[last] = value


def commands_of(page: Path) -> list[str]:
    """The lines of a page's fenced blocks for a shell, in their order, without comments."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line for language, block in blocks if language in ("", "bash") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="session")
def documented():
    """How to read a page's commands: `documented("docs/SCALING.md")`."""
    return lambda page: commands_of(ROOT / page)
