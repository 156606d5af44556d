"""Lazy packages: every listed name is there and visible to tools, and no more is loaded than is used."""

from __future__ import annotations

import ast
import importlib
import os
import pickle
import py_compile
import pydoc
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAZY = (
    "coding",
    "data",
    "engines",
    "evaluation",
    "handlers",
    "inferers",
    "metrics",
    "models",
    "networks",
    "transforms",
)
SAMPLE = """
import torch
from monai_vqgen.inferers import AncestralSampler
from monai_vqgen.networks import GatedPixelCNN, HierarchicalVQVAE
network = HierarchicalVQVAE(channels=8, residual_channels=4, num_codes=8)
sizes = {"channels": 8, "num_layers": 2, "attention_every": 2}
priors = [GatedPixelCNN(8, **sizes), GatedPixelCNN(8, coarser_codes=[8], **sizes)]
codes = AncestralSampler(priors).sample(network.grids((16, 16)), num_samples=1)
assert network.decode(codes).shape == (1, 1, 16, 16)
import sys
ours = {name: module for name, module in sys.modules.items() if name.startswith("monai_vqgen")}
print(*(name for name, module in ours.items() if not hasattr(module, "__path__")))
"""


@pytest.fixture(params=LAZY)
def package(request):
    return importlib.import_module(f"monai_vqgen.{request.param}")


def test_the_names_a_type_checker_sees_are_all_exported_listed_and_in_order(package):
    tree = ast.parse(Path(package.__file__).read_text())
    (switch,) = (node for node in tree.body if isinstance(node, ast.If))
    checked = [(alias.name, alias.asname) for node in switch.body for alias in node.names]
    assert all(name == exported for name, exported in checked), "a strict type checker hides a name without its `as`"
    assert sorted(name for name, _ in checked) == sorted(package.__all__)
    assert set(package.__all__) <= set(dir(package))


@pytest.fixture
def made_package(tmp_path):
    """A folder with a package `made`, whose name `inner.Value` and module `inner` load when they are asked for."""
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "inner.py").write_text("Value = 3\n")
    (folder / "__init__.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "from monai_vqgen.lazy import attach\n"
        "if TYPE_CHECKING:\n"
        "    from made import inner as inner\n"
        "    from made.inner import Value as Value\n"
        "else:\n"
        "    __getattr__, __dir__, __all__ = attach(__name__)\n"
    )
    return folder


def run(script: str, library: Path | str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(library)}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)


def test_names_load_from_a_zip_and_not_before_they_are_asked_for(made_package):
    archive = shutil.make_archive(str(made_package.parent / "library"), "zip", made_package.parent, "made")
    shutil.rmtree(made_package)
    done = run(
        "import made, sys; print('made.inner' in sys.modules, made.Value, made.inner.Value, made.__all__)", archive
    )
    assert done.stdout == "False 3 3 ['Value']\n", done.stderr


def test_a_package_of_bytecode_alone_is_refused_by_name(made_package):
    for source in made_package.glob("*.py"):
        py_compile.compile(str(source), cfile=str(source.with_suffix(".pyc")), doraise=True)
        source.unlink()
    done = run("import made", made_package.parent)
    assert "ImportError: made has no source, which lists its names: install it with its .py files" in done.stderr


def test_names_are_found_by_star_by_dotted_path_and_by_pickle(package):
    found: dict[str, object] = {}
    exec(f"from {package.__name__} import *", found)
    for name in package.__all__:
        value = getattr(package, name)
        assert found[name] is value
        assert pydoc.locate(f"{package.__name__}.{name}") is value  # how MONAI finds a `_target_`
        if isinstance(value, type):
            assert pickle.loads(pickle.dumps(value)) is value


def test_a_name_that_is_not_there_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'Nothing'"):
        package.Nothing  # noqa: B018


def test_drawing_and_decoding_a_sample_loads_at_most_fifteen_files():
    done = subprocess.run([sys.executable, "-c", SAMPLE], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "monai_vqgen.networks.priors.gated.incremental" in loaded
    assert len(loaded) <= 15, loaded


def test_a_sample_of_the_shipped_model_loads_no_training_evaluation_or_data_room():
    script = """
import sys
from monai_vqgen import TrainedModel
TrainedModel.from_bundle().sample(1, position_mm=60)
ours = {name: module for name, module in sys.modules.items() if name.startswith("monai_vqgen.")}
print(*(name for name, module in ours.items() if not hasattr(module, "__path__")))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "monai_vqgen.models.trained_model" in loaded
    assert len(loaded) <= 30, loaded
    assert not [name for name in loaded if name.split(".")[1] in ("evaluation", "handlers", "metrics", "plots")]
