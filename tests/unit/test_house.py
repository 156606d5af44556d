"""The house keeps its plan: imports run one way, names are free, every room says what it holds."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections import Counter
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
    "plots": 3,
    "transforms": 2,
    "networks": 3,
    "data": 4,
    "inferers": 5,
    "metrics": 5,
    "coding": 6,
    "engines": 6,
    "handlers": 7,
    "anomaly": 7,
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
    for package in (
        "anomaly",
        "coding",
        "data",
        "engines",
        "handlers",
        "inferers",
        "metrics",
        "networks",
        "transforms",
    ):
        module = importlib.import_module(f"monai_vqgen.{package}")
        assert module.__all__, package
        for name in module.__all__:
            assert inspect.getdoc(getattr(module, name)), f"monai_vqgen.{package}.{name}"


LONGEST_FUNCTION, MOST_PARAMETERS, LARGEST_ROOM = 50, 8, 20
"""Limits of a function (lines without its docstring), and of a room (files)."""


def sources() -> dict[str, Path]:
    """Files by module name, without the faces of packages."""
    paths = [path for path in sorted(ROOT.rglob("*.py")) if path.name != "__init__.py"]
    return {".".join(("monai_vqgen", *path.relative_to(ROOT).with_suffix("").parts)): path for path in paths}


def imports(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """What is left when modules that import no other of those left are taken away, again and again."""
    left = dict(graph)
    while free := [name for name, others in left.items() if not (others - {name}) & left.keys()]:
        left = {name: others for name, others in left.items() if name not in free}
    return sorted(left)


def test_no_circle_of_imports_among_files() -> None:
    graph = {name: imports(path) & sources().keys() for name, path in sources().items()}
    assert sum(map(len, graph.values())) > 200
    assert circle(graph) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == ["a", "b", "c", "d"]


def test_no_room_is_crowded() -> None:
    rooms = Counter(path.parent for path in sources().values())
    assert {str(room): count for room, count in rooms.items() if count > LARGEST_ROOM} == {}


@pytest.mark.parametrize("folder", [ROOT, ROOT.parent / "tools"], ids=["package", "tools"])
def test_no_function_is_long_and_none_but_constructors_has_many_parameters(folder: Path) -> None:
    found = []
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            lines = (node.end_lineno or 0) - node.lineno + 1 - len((ast.get_docstring(node) or "").splitlines())
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = len([argument for argument in arguments if argument.arg not in ("self", "cls")])
            if lines > LONGEST_FUNCTION or (count > MOST_PARAMETERS and node.name != "__init__"):
                found.append(f"{path.name}: {node.name} has {lines} lines and {count} parameters")
    assert found == []
