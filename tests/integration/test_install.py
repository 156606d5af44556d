"""From a clone to a model: the README's first commands, pasted one after another, and each way to install."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ADDRESS = "https://github.com/monai-vqgen/monai_vqgen"
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "monai_vqgen", "bundle", "configs")
SITE = sysconfig.get_path("purelib", vars={"base": ".venv"})
# Between two lines someone reads and changes the plan: here, to the first steps of each training.
SHORTER = r"sed -i -E 's/(max_minutes\"?: )[0-9.]+/\10.05/' plan.yaml"
pytestmark = pytest.mark.slow


def first_commands() -> list[str]:
    """The lines of the README's first block, without their comments."""
    block = re.search(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    assert block is not None
    return [line.partition("#")[0].strip() for line in block[1].splitlines()]


def fresh(**more: str) -> dict[str, str]:
    """The variables of a shell in which no environment is active, and no index of packages is asked."""
    here = Path(sys.executable).parent
    programs = [folder for folder in os.environ["PATH"].split(":") if Path(folder) != here]
    known = {"HOME", "TMPDIR", "LANG", "MPLBACKEND", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"}
    kept = {name: value for name, value in os.environ.items() if name in known}
    pip = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_CONFIG_FILE": os.devnull}
    # as the Makefile's own, and one thread because other tests run beside this one
    return {**kept, **pip, "PATH": ":".join(programs), "OMP_NUM_THREADS": "1", **more}


def run(lines: list[str], folder: Path, **more: str) -> str:
    """Run lines in one shell, up to the first that fails; returns what they printed."""
    script = "\n".join(["set -e", *lines])
    done = subprocess.run(
        ["bash", "--norc", "-x", "-c", script],
        cwd=folder,
        env=fresh(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=3000,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


@pytest.fixture(scope="module")
def dependencies(tmp_path_factory) -> str:
    """A line of bash that gives `.venv` what the package depends on, from here, so that no index is asked."""
    folder = tmp_path_factory.mktemp("dependencies")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.suffix != ".pth" and "monai_vqgen" not in path.name:
            (folder / path.name).symlink_to(path)
    # ahead of the setuptools that a new environment has, which torch finds too old
    line = f"import sys; sys.path.insert(len(sys.path) - 1, '{folder}')"
    return f'mkdir -p {SITE} && echo "{line}" > {SITE}/dependencies.pth'


def test_the_first_ten_commands_work_as_they_are_pasted(dependencies, tmp_path):
    """What is committed is cloned; the demo and the tests are as small as variables of the Makefile make them."""
    commands = first_commands()
    assert len(commands) == 10
    assert [commands[0].split(" && ")[0], commands[1].split(" && ")[0]] == [f"git clone {ADDRESS}", "make setup"]
    lines = []
    for command in commands:
        lines += [command]
        lines += [dependencies] if command.startswith("git clone") else []
        lines += [SHORTER] if " plan " in command else []
    run(
        lines,
        tmp_path,
        GIT_CONFIG_COUNT="2",
        GIT_CONFIG_KEY_0=f"url.{ROOT}.insteadOf",
        GIT_CONFIG_VALUE_0=ADDRESS,
        GIT_CONFIG_KEY_1="safe.directory",
        GIT_CONFIG_VALUE_1="*",
        PYTHON=sys.executable,
        DEMO_OPTIONS="--size tiny",
        PYTEST_ADDOPTS="tests/unit/test_files.py",
    )
    out = tmp_path / "monai_vqgen" / "out"
    assert len(list((out / "samples").rglob("*.png"))) > 1
    scans = {path.name.removesuffix(".nii.gz") for path in (out.parent / "SCANS").rglob("*.nii.gz")}
    assert len(scans) == 8
    found = {path.name.removesuffix("_recon.nii.gz") for path in (out / "reconstructions").rglob("*_recon.nii.gz")}
    assert found == scans
    for name in ("model", "demo"):
        assert (out / name / "report.html").stat().st_size > 0
        assert (out / name / "model_prior_level1.pt").is_file()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A clone, as far as an installation reads it, with a wheel of it in `index`."""
    folder = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, folder)
    run([f"{sys.executable} -m pip wheel --quiet --no-deps --wheel-dir index ."], folder)
    return folder


def install_lines() -> list[str]:
    return [line for line in re.findall(r"`(pip install [^`]+)`", README) if "[hub]" not in line]


def test_there_are_three_ways_to_install():
    assert len(install_lines()) == 3


@pytest.mark.parametrize("line", install_lines())
def test_each_way_to_install_works_in_a_new_environment(source, dependencies, tmp_path, line):
    lines = [f"cd {tmp_path}", f"{sys.executable} -m venv .venv", dependencies, ". .venv/bin/activate"]
    lines += [f"cd {source}", line, f"cd {tmp_path}", "monai-vqgen --version", "monai-vqgen sample --num_samples 1"]
    lines += ["python -c 'import monai_vqgen; print(monai_vqgen.__file__)'"]
    printed = run(lines, tmp_path, PIP_FIND_LINKS=str(source / "index"))
    assert str(tmp_path / SITE / "monai_vqgen" / "__init__.py") in printed
    assert len(list((tmp_path / "out/samples").rglob("*.nii.gz"))) == 1
