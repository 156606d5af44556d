"""Packages that load a module when one of its names is first asked for (PEP 562)."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["attach"]


def attach(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The `__getattr__`, `__dir__` and `__all__` of a package that offers names of its modules.

    The names are those that the package's own source imports under `if TYPE_CHECKING:`, where type checkers see them;
    call this in the `else`. A module imported from the package itself is an attribute, and not in `__all__`.

    Args:
        package: the package's `__name__`.

    Raises:
        ImportError: the package has no source, only bytecode.

    Examples:
        >>> load, listed, names = attach("monai_vqgen")
        >>> load("InputError"), load("networks")
        (<class 'monai_vqgen.errors.InputError'>, <module 'monai_vqgen.networks' from ...>)
        >>> "InputError" in names, "networks" in names, "networks" in listed()
        (True, False, True)
    """
    try:
        source = inspect.getsource(sys.modules[package])
    except OSError as error:
        message = f"{package} has no source, which lists its names: install it with its .py files, not as .pyc alone"
        raise ImportError(message, name=package) from error
    switches = [node for node in ast.parse(source).body if isinstance(node, ast.If)]
    imports = [node for switch in switches for node in switch.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: str(node.module) for node in imports for alias in node.names}

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        inside = homes[name] == package  # a module of the package itself
        module = importlib.import_module(f"{package}.{name}" if inside else homes[name])
        value = module if inside else getattr(module, name)
        setattr(sys.modules[package], name, value)  # found at once from now on
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    names = [name for name, home in homes.items() if home != package]
    return load, listed, sorted(names, key=lambda name: (not name.isupper(), name))  # constants, classes, functions
