"""The house keeps its plan: imports run one way, names are free, every room says what it holds."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import monai
import pytest

import monai_vqgen

ROOT = Path(monai_vqgen.__file__).parent
# A room may import the rooms of lower floors, and its own; not a neighbor, but for what DESIGN allows.
FLOORS = {
    "errors": 0,
    "lazy": 0,
    "files": 1,
    "bundles": 1,
    "weights": 2,
    "plots": 2,
    "transforms": 2,
    "networks": 3,
    "data": 4,
    "inferers": 5,
    "metrics": 5,
    "engines": 6,
    "handlers": 7,
    "models": 8,
    "evaluation": 9,
    "demo": 10,
    "monailabel": 10,
    "__main__": 11,
}


def room_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_rooms(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
        for name in names:
            parts = name.split(".")
            if parts[0] == "monai_vqgen" and len(parts) > 1:
                yield parts[1]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    for other in imported_rooms(path):
        if other != room:
            assert FLOORS[other] < FLOORS[room], f"{room} may not import {other}"


def modules() -> list[str]:
    return [module.name for module in pkgutil.walk_packages(monai_vqgen.__path__, "monai_vqgen.")]


def public_names(module_name: str) -> set[str]:
    module = importlib.import_module(module_name)
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__.startswith(module_name.split(".")[0])
    }


def test_no_public_name_is_one_of_monais() -> None:
    ours: set[str] = set()
    for name in modules():
        if not name.endswith("__main__"):
            ours |= public_names(name)
    theirs: set[str] = set()
    for package in ("networks", "transforms", "losses", "metrics", "inferers", "handlers", "data", "engines", "apps"):
        for module in pkgutil.walk_packages([str(Path(monai.__file__).parent / package)], f"monai.{package}."):
            path = Path(monai.__file__).parent.parent / (module.name.replace(".", "/") + ".py")
            if path.exists():
                tree = ast.parse(path.read_text())
                theirs |= {n.name for n in tree.body if isinstance(n, (ast.ClassDef, ast.FunctionDef))}
    assert len(theirs) > 1000
    assert ours & {name for name in theirs if not name.startswith("_")} == set()


def test_every_public_name_is_exported_and_documented() -> None:
    for package in ("data", "engines", "handlers", "inferers", "metrics", "networks", "transforms"):
        module = importlib.import_module(f"monai_vqgen.{package}")
        assert module.__all__, package
        for name in module.__all__:
            assert inspect.getdoc(getattr(module, name)), f"monai_vqgen.{package}.{name}"
