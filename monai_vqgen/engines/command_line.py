"""Options of `python -m monai.bundle run` that no configuration knows, caught before hours are spent."""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from pydoc import locate
from types import TracebackType
from typing import Any

import fire
from monai.bundle import ConfigParser

from monai_vqgen.errors import InputError, VQGenError, root_cause

__all__ = ["check_command_line"]

# Options of MONAI's own `run` (monai.bundle.scripts.run, 1.6).
_RUN_OPTIONS = frozenset(
    ["run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file"]
)
# Options that `--tracking` adds to any configuration.
_TRACKING_OPTIONS = frozenset(["tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0"])


def check_command_line(arguments: Sequence[str] | None = None) -> None:
    """Refuse options that no configuration file has, and switches that would do the opposite of what they say.

    MONAI adds an unknown `--option` to the configuration without a word, so a misspelt `--max_epoch 5` trains for the
    default number of epochs. It reads `--overwrite false` as the text "false", which counts as true: only `False` is
    Python's. Does nothing when the program is not `python -m monai.bundle run`.

    From here on the program also ends with the one line of an error of ours, where MONAI's parser would wrap it into
    pages of traceback; set the environment variable MONAI_VQGEN_TRACEBACK=1 to see them.

    Args:
        arguments: program and arguments; `sys.argv` by default.

    Raises:
        InputError: An option is in none of the configuration files that the command names, or a switch is set to
            another word than True or False.

    Examples:
        >>> check_command_line(["a_program_of_yours.py", "--anything", "1"])
    """
    arguments = sys.argv if arguments is None else arguments
    if len(arguments) < 2 or arguments[1] != "run" or not re.search(r"monai[/\\.]bundle", arguments[0]):
        return
    sys.excepthook = _show_own_errors_plainly
    options = _options(arguments[2:])
    defaults = ConfigParser.load_config_file(options["args_file"]) if "args_file" in options else {}
    given = {**{str(name): True for name in defaults}, **options}
    files = _as_list(options.get("config_file", defaults.get("config_file", [])))
    parser = ConfigParser()
    parser.read_config(files)
    allowed = _RUN_OPTIONS | (_TRACKING_OPTIONS if "tracking" in given else frozenset())
    for name, value in given.items():
        path = name.replace("#", "::").lstrip("+")
        if _is_switch(parser, path) and not _switches(value):
            raise InputError(
                f"--{name} {value} says neither yes nor no to MONAI: write --{name} True or --{name} False"
            )
        if path in allowed or path.startswith("_meta_") or _is_known(parser, path):
            continue
        raise InputError(_message(name, path, parser, files))


def _show_own_errors_plainly(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    own = root_cause(error)
    ours = isinstance(own, VQGenError)
    if not ours or os.environ.get("MONAI_VQGEN_TRACEBACK"):
        sys.__excepthook__(kind, error, traceback)
    if ours:
        print(f"\n{type(own).__name__}: {own}", file=sys.stderr)


def _options(arguments: Sequence[str]) -> dict[str, Any]:
    """Names and values of the options, read by Fire as MONAI has it read them."""
    return dict(fire.Fire(lambda *_, **options: options, command=list(arguments), serialize=lambda _: None))


def _as_list(value: Any) -> list[str]:
    """Several files come as a list, or as text between commas."""
    if isinstance(value, str):
        value = value.split(",") if "," in value and not Path(value).exists() else [value]
    return [str(file) for file in value]


def _is_known(parser: ConfigParser, path: str) -> bool:
    """An item of the configuration, or an argument that the constructor of a `_target_` block takes."""
    parent, _, leaf = path.rpartition("::")
    try:
        if _walk(parser.get(), path.split("::")) is not None:
            return True
        block = _walk(parser.get(), parent.split("::")) if parent else None
        value = block[0] if block else None
    except (KeyError, ValueError, IndexError):
        return False
    target = locate(value["_target_"]) if isinstance(value, dict) and "." in value.get("_target_", "") else None
    return callable(target) and leaf in inspect.signature(target).parameters


def _is_switch(parser: ConfigParser, path: str) -> bool:
    """Whether the configuration has true or false there."""
    value = _walk(parser.get(), path.split("::"))
    return value is not None and isinstance(value[0], bool)


def _switches(value: Any) -> bool:
    """True, False, 1, 0, or what MONAI evaluates."""
    return value == "true" or value in (0, 1) or (isinstance(value, str) and value.startswith(("$", "@", "%")))


def _walk(config: Any, keys: Iterable[str]) -> tuple[Any] | None:
    """The item at a path, as a tuple of one because None is a value too; None where there is no such item."""
    for key in keys:
        if isinstance(config, dict) and key in config:
            config = config[key]
        elif isinstance(config, list) and key.isdigit() and int(key) < len(config):
            config = config[int(key)]
        else:
            return None
    return (config,)


def _message(name: str, path: str, parser: ConfigParser, files: Sequence[str]) -> str:
    known = [str(key) for key in parser.get() if not str(key).startswith("_")]
    parent, _, _ = path.rpartition("::")
    block = _walk(parser.get(), parent.split("::")) if parent else None
    if block is not None and isinstance(block[0], dict):
        known = [f"{parent}::{key}" for key in block[0]]
    near = difflib.get_close_matches(path, known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join('--' + match for match in near)}?" if near else "See the top of those files."
    return f"--{name} is no option of {', '.join(files) or 'this command'}. {hint}"
