"""The package's face: a few names, each of which loads what it needs when it is asked for."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import monai_vqgen

ROOT = Path(__file__).parents[2]


def modules_after(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    loaded = modules_after("import monai_vqgen")
    assert not loaded & {"torch", "monai", "numpy", "nibabel"}
    assert {name for name in loaded if name.startswith("monai_vqgen")} <= {"monai_vqgen", "monai_vqgen.lazy"}


@pytest.mark.parametrize("name", monai_vqgen.__all__)
def test_every_name_is_there_and_documented(name):
    value = getattr(monai_vqgen, name)
    assert inspect.getdoc(value)
    home = importlib.import_module(value.__module__)
    assert getattr(home, name) is value


def test_the_names_are_few_and_listed():
    assert 12 <= len(monai_vqgen.__all__) <= 20
    assert set(monai_vqgen.__all__) <= set(dir(monai_vqgen))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        monai_vqgen.Nothing  # noqa: B018


def test_every_python_and_every_set_of_versions_is_in_the_public_matrix():
    wanted = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.cfg").read_text())
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]
    matrices = {name: job["strategy"]["matrix"] for name, job in jobs.items() if "strategy" in job}
    tree = ast.parse((ROOT / "noxfile.py").read_text())
    given = {n.targets[0].id: ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign)
             and isinstance(n.targets[0], ast.Name)}  # fmt: skip
    assert wanted == given["PYTHONS"] == matrices["tests"]["python"]
    assert list(given["VERSIONS"]) == matrices["versions"]["name"]
    setup = (ROOT / "setup.cfg").read_text()
    for package in ("torch", "monai", "numpy"):
        (oldest,) = re.findall(rf"^    {package}>=([\d.]+)$", setup, flags=re.MULTILINE)
        assert any(word.startswith(f"{package}=={oldest}") for word in given["VERSIONS"]["oldest"]), package


def test_hooks_of_a_commit_find_their_programs_without_an_active_environment(tmp_path):
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("ruff", "mypy"):
        program = tmp_path / ".venv" / "bin" / name
        program.write_text('#!/bin/sh\necho "mine: $(basename "$0") $*"\n')
        program.chmod(0o755)
    said = []
    for hook in repository["hooks"]:
        words = [*shlex.split(hook["entry"]), *hook.get("args", []), "a file.py"]  # as pre-commit calls it
        done = subprocess.run(
            words, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True
        )
        said.append(done.stdout.strip())
    assert said == [f"mine: {words} a file.py" for words in ("ruff format", "ruff check --fix", "mypy")]
