"""The package's face: a few names, each of which loads what it needs when it is asked for."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

import monai_vqgen


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
