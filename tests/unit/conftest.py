"""What a command line hands to the function behind a verb."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest


class Call(NamedTuple):
    """The arguments a verb gave, by name, and what its function says of them."""

    given: dict[str, Any]
    defaults: dict[str, Any]
    required: set[str]


class _Called(BaseException):  # not an Exception, which the command line would catch
    """Raised in place of the work; holds the arguments by name."""


@pytest.fixture
def call_of(monkeypatch):
    """Run a command line with a spy in the place of the function at a dotted path."""

    def run(main: Callable[[Sequence[str]], int], words: Sequence[str], path: str) -> Call:
        module, _, name = path.rpartition(".")
        signature = inspect.signature(getattr(importlib.import_module(module), name))

        def spy(*positional: Any, **named: Any) -> None:
            raise _Called(signature.bind(*positional, **named).arguments)

        monkeypatch.setattr(path, spy)
        with pytest.raises(_Called) as called:
            main(words)
        defaults = {name: p.default for name, p in signature.parameters.items() if p.default is not p.empty}
        given = dict(called.value.args[0])
        required = set(signature.parameters) - set(defaults)
        assert required <= set(given)
        return Call(given, {name: value for name, value in defaults.items() if name in given}, required)

    return run
