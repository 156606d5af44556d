"""An installed package holds what the repository's folder holds: every module, and the bundle for the demo."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "monai_vqgen", "bundle")


@pytest.mark.slow
def test_a_wheel_holds_every_module_and_the_bundle(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-build-isolation", "--no-deps", "-w", str(tmp_path)]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False, timeout=300)
    assert built.returncode == 0, built.stderr[-3000:]
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        packed = set(wheel.namelist())
    package = [path for path in (ROOT / "monai_vqgen").rglob("*") if path.suffix in (".py", ".html", ".typed")]
    bundle = [path for path in (ROOT / "bundle" / "configs").iterdir() if path.is_file()]
    expected = {path.relative_to(ROOT).as_posix() for path in package}
    expected |= {f"monai_vqgen/_bundle/configs/{path.name}" for path in bundle}
    assert expected - packed == set()
