"""Packages that load a module when one of its names is first asked for (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["attach"]


def attach(package: str, names: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package that offers names of its modules.

    A type checker cannot see such names: import them under `TYPE_CHECKING`, call this in the `else`, and list them in
    `__all__`.

    Args:
        package: the package's `__name__`.
        names: for each module, by its dotted path within the package, the public names in it; a module without names
            is itself an attribute.

    Examples:
        >>> load, listed = attach("monai_vqgen", {"errors": ["InputError"], "files": []})
        >>> load("InputError"), load("files")
        (<class 'monai_vqgen.errors.InputError'>, <module 'monai_vqgen.files' from ...>)
    """
    homes = {name: f"{package}.{module}" for module, offered in names.items() for name in offered}

    def load(name: str) -> Any:
        if name in homes:
            value = getattr(importlib.import_module(homes[name]), name)
        elif name in names:
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)  # found at once from now on
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return load, listed
