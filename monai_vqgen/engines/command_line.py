"""Options that MONAI would take without a word and not as they are meant, caught before hours are spent."""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from pydoc import locate
from types import TracebackType
from typing import Any, NamedTuple

import fire
import torch
from fire.decorators import SetParseFn
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow
from tqdm import tqdm

from monai_vqgen.bundles import PARENT_VARIABLE, as_path
from monai_vqgen.data.processes import end_with_parent
from monai_vqgen.errors import InputError, VQGenError, in_one_line, root_cause

__all__ = ["check_command_line", "run_bundle"]

# Options of MONAI's own `run` (monai.bundle.scripts.run, 1.6).
_RUN_OPTIONS = frozenset(
    ["run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file"]
)
# Options that `--tracking` adds to any configuration.
_TRACKING_OPTIONS = frozenset(["tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0"])
_NOT_CONFIG = _RUN_OPTIONS | {"workflow_name", "workflow_type", "properties_path"}
_TEXT_BY_NAME = re.compile(r"(^|_)(dir|file|from|model|network|pattern)$")
_EXPRESSIONS = ("$", "@", "%")

logger = logging.getLogger(__name__)


class _Call(NamedTuple):
    """A call of MONAI's `run` from which the check was called: its files, its options, its workflow."""

    files: list[str]
    given: dict[str, Any]
    workflow: ConfigWorkflow


def check_command_line(arguments: Sequence[str] | None = None) -> None:
    """Refuse options that no configuration file has and values of the wrong kind; take paths as they were typed.

    MONAI adds an unknown `--option` to the configuration without a word, so a misspelt `--max_epoch 5` trains for the
    default number of epochs. It reads `--overwrite false` as the text "false", which counts as true: only `False` is
    Python's. Fire reads values as Python, so that `--output_dir run#2` arrives as `run`, and `20240131` as a number:
    options that are text get what was typed, with `~` as the home folder.

    Options are those of the call of `monai.bundle.run` or `create_workflow` that leads here, from a command line or
    from Python; without one nothing is checked. On a command line the program from here on ends with one line for any
    error; set the environment variable MONAI_VQGEN_TRACEBACK=1 to see the whole traceback.

    Args:
        arguments: program and arguments to check in place of the call.

    Raises:
        InputError: An option is in none of the configuration files, a value is of another kind than the default, or
            there is no such device.

    Examples:
        >>> check_command_line(["a_program_of_yours.py", "--anything", "1"])
    """
    words = sys.argv if arguments is None else arguments
    is_run = len(words) > 1 and words[1] == "run" and re.search(r"monai[/\\.]bundle", words[0])
    typed = _options(words[2:], as_typed=True) if is_run else None
    call = _call() if arguments is None else None
    if call is not None and typed is not None:
        _show_errors_plainly(call.workflow.parser.get())
        finalize, began_s = call.workflow.finalize, time.time()  # which a run that ends early does not reach
        call.workflow.finalize = lambda: _tell_next(call, began_s, finalize())  # type: ignore[method-assign]
    if call is not None:
        files, given = call.files, call.given
    elif typed is not None:
        given = _options(words[2:])
        defaults = ConfigParser.load_config_file(given["args_file"]) if "args_file" in given else {}
        given = {**defaults, **given}
        files = _files(given.get("config_file", []))
    else:
        return
    if parent := os.environ.pop(PARENT_VARIABLE, None):
        end_with_parent(int(parent))
    parser = ConfigParser()
    parser.read_config(files)
    _check(given, parser, files, dashes="" if typed is None else "--")
    if "tracking" in given and (elsewhere := os.environ.get("MLFLOW_TRACKING_URI")):
        logger.warning(
            "MLFLOW_TRACKING_URI is set and wins: MLflow writes to %s, whatever --tracking_uri says", elsewhere
        )
    arrived = {_path(name): value for name, value in given.items()}
    literal = _as_typed({**given, **(typed or {})}, parser)
    changed = {path: text for path, text in literal.items() if text != arrived[path]}
    if call is not None and changed:
        if "tracking" in given:  # has written to the other folder already
            name = next(iter(changed))
            raise InputError(f"--{name} cannot be read together with --tracking: give a name without signs")
        call.workflow.parser.update(changed)
        call.workflow.parser.parse(reset=True)


def run_bundle(words: Sequence[str]) -> None:
    """`python -m monai.bundle run` with the words that follow it, and one line for any error.

    MONAI reads the files before anything of this package is loaded; here what it would not find is told first.

    Raises:
        InputError: there is no such file.
    """
    from monai.bundle import scripts

    words, before = [str(as_path(word)) for word in words], sys.argv
    sys.argv = [str(Path(scripts.__file__).with_name("__main__.py")), "run", *words]
    _show_errors_plainly({})
    given = _options(words)
    tracking = given.get("tracking", "mlflow")
    if tracking != "mlflow" and not isinstance(tracking, dict) and not Path(str(tracking)).is_file():
        raise InputError(f"--tracking {tracking} is neither mlflow nor a file of settings: give --tracking mlflow")
    if "config_file" not in given and "args_file" not in given:
        raise InputError("no --config_file is given: give one, such as bundle/configs/train.json")
    for file in [*_files(given.get("config_file", [])), *_files(given.get("args_file", []))]:
        if not Path(file).is_file():
            near = difflib.get_close_matches(Path(file).name, sorted(p.name for p in Path(file).parent.glob("*.*")))
            hint = f"did you mean {Path(file).with_name(near[0])}?" if near else "check the path"
            raise InputError(f"there is no configuration file {file}: {hint}")
    check_command_line(sys.argv)
    try:
        fire.Fire(scripts.run, command=list(words), name="run")
    finally:
        sys.argv = before  # a later call from Python in this process was not typed so


def _show_errors_plainly(config: Mapping[str, Any]) -> None:
    """End the program with one line for any error; the config knows the output folder, and whether there is resume."""
    sys.excepthook = functools.partial(_show_plainly, config)
    logging.getLogger("ignite.engine").setLevel(logging.CRITICAL)  # that an engine ends says the error itself


_TRAINED = "--dataset_dir {dataset_dir} --model {output_dir}/model.pt"
_ALL_LEVELS = "Next, once every level has its prior (MODEL is the autoencoder's folder)"
_NEXT = {
    "extract_slices": {"Next": "training --config_file {configs}/train.json --dataset_dir {output_dir}"},
    "train": {
        "How good it is": f"--config_file {{configs}}/evaluate.json {_TRAINED} --with_priors false --split validation",
        "Next": f"--config_file {{configs}}/extract_codes.json {_TRAINED}",
    },
    "extract_codes": {"Next": "training --config_file {configs}/train_prior.json --level 0 --dataset_dir {output_dir}"},
    "train_prior": {_ALL_LEVELS: "--config_file {configs}/sample.json --model MODEL --priors_dir {output_dir}"},
}
"""By stage, what usually follows."""


def _tell_next(call: _Call, started_s: float, result: Any) -> Any:
    """Of a run that came to its end: what it wrote, and the commands that follow, whose configurations are there."""
    parser, stage = call.workflow.parser, Path(call.files[0])
    known = {name: str(parser.get_parsed_content(name)) for name in ("output_dir", "dataset_dir") if name in parser}
    folder = Path(known.get("output_dir", ""))
    if os.environ.get("RANK", "0") != "0" or "output_dir" not in known or not folder.is_dir():
        return result
    names = [p.name for p in sorted(folder.iterdir()) if p.stat().st_mtime >= started_s and not p.name.startswith(".")]
    print(f"Written to {folder}: {', '.join(names) or 'nothing new'}", file=sys.stderr)
    quoted = {name: shlex.quote(value) for name, value in {**known, "configs": str(stage.parent)}.items()}
    for what, following in _NEXT.get(stage.stem, {}).items():
        config = stage.parent / following.partition("{configs}/")[2].partition(" ")[0]
        if config.is_file() and "dataset_dir" in known:
            print(f"{what}: python -m monai.bundle run {following.format(**quoted)}", file=sys.stderr)
    return result


def _show_plainly(
    config: Mapping[str, Any], kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()
    if os.environ.get("MONAI_VQGEN_TRACEBACK"):
        sys.__excepthook__(kind, error, traceback)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):  # the log of a training keeps all
            log = logging.getLogger(__name__)
            handler.handle(log.makeRecord(log.name, logging.ERROR, "", 0, "The end", (), (kind, error, traceback)))
    line = in_one_line(error, str(config.get("output_dir", ".")))
    if line == "Interrupted" or line.startswith("OSError: the disk"):
        line += f"; go on with --{'resume' if 'resume' in config else 'overwrite'} True"
    elif not isinstance(root_cause(error), VQGenError):
        line += " (MONAI_VQGEN_TRACEBACK=1 shows where)"
    print(f"\n{line}", file=sys.stderr)


def _call() -> _Call | None:
    """The innermost call of MONAI's that made a workflow of these configurations."""
    frame = inspect.currentframe()
    workflow = None
    while frame is not None:
        if frame.f_code is ConfigWorkflow.initialize.__code__:
            workflow = frame.f_locals["self"]
        if frame.f_code is create_workflow.__code__ and workflow is not None:
            return _Call(_files(frame.f_locals["config_file"]), dict(frame.f_locals["_args"]), workflow)
        frame = frame.f_back
    return None


def _options(words: Sequence[str], *, as_typed: bool = False) -> dict[str, Any]:
    """Names and values of the options, read by Fire as MONAI has it read them, or as text."""

    def options(*_: Any, **given: Any) -> dict[str, Any]:
        return given

    function = SetParseFn(str)(options) if as_typed else options
    return dict(fire.Fire(function, command=list(words), serialize=lambda _: None))


def _files(value: Any) -> list[str]:
    """Several files come as a list, or as text between commas."""
    if isinstance(value, str):
        value = value.split(",") if "," in value and not Path(value).exists() else [value]
    return [str(value)] if isinstance(value, os.PathLike) else [str(file) for file in value]


def _check(given: Mapping[str, Any], parser: ConfigParser, files: Sequence[str], *, dashes: str) -> None:
    """Refuse the first option that is unknown, or of another kind than the configuration has there."""
    allowed = _NOT_CONFIG | (_TRACKING_OPTIONS if "tracking" in given else frozenset())
    for name, value in given.items():
        path = _path(name)
        if path in allowed or path.startswith("_meta_"):
            continue
        if not _is_known(parser, path, others=not dashes):
            raise InputError(_unknown(name, path, parser, files, dashes))
        default = _walk(parser.get(), path.split("::"))
        if default and (expected := _expected(default[0], value, _is_text(path, default[0]))):
            wrong = " says neither yes nor no to MONAI" if isinstance(default[0], bool) else ""
            wish = f"{expected.format(name=dashes + name)}"
            raise InputError(f"{dashes}{name} {value}{wrong}: {wish}")
        if path == "device":
            _check_device(value, f"{dashes}{name}")


def _path(name: str) -> str:
    return str(name).replace("#", "::").lstrip("+")


def _is_text(path: str, default: Any) -> bool:
    """Whether an option is a path or another text, by the configuration's value for it, else by its name."""
    if isinstance(default, str) and not default.startswith(_EXPRESSIONS):
        return path != "budget_clock"  # seconds too
    named = _TEXT_BY_NAME.search(path) is not None
    return named and (default is None or str(default).startswith("$@bundle_root + "))


def _expected(default: Any, value: Any, is_text: bool) -> str | None:
    """What is wanted in place of a value; None where it will do."""
    if isinstance(value, str) and value.startswith(_EXPRESSIONS):
        return None
    if isinstance(default, bool):
        return None if value == "true" or value in (0, 1) else "write {name} True or {name} False"
    if value is None:
        return None
    if is_text:
        return "expected text, such as the name of a folder" if isinstance(value, bool) else None
    if isinstance(default, int) and isinstance(value, str | bool | float):
        return "expected a whole number, such as {name} " + str(default)
    if isinstance(default, float) and isinstance(value, str | bool):
        return "expected a number, such as {name} " + str(default)
    return None


def _check_device(value: Any, name: str) -> None:
    if isinstance(value, str) and value.startswith(_EXPRESSIONS):
        return
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{name} {value} is no device: expected cpu, cuda or cuda:1") from error
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"{name} {value}: this machine has no GPU of Apple's; leave {name} out, or give {name} cpu")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type == "cuda" and (device.index or 0) >= count:
        has = f"has {count} GPU{'s' * (count > 1)}" if count else "has no GPU that torch can use"
        raise InputError(f"{name} {value}: this machine {has}; leave {name} out, or give {name} cpu")


def _as_typed(typed: Mapping[str, Any], parser: ConfigParser) -> dict[str, str]:
    """Text options as they were typed, by path; those that are no text, are expressions or None are left out."""
    literal = {}
    for name, value in typed.items():
        default = _walk(parser.get(), _path(name).split("::"))
        if default is None or value in (None, "None") or not _is_text(_path(name), default[0]):
            continue
        text = str(as_path(os.path.expanduser(str(value))))
        if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":  # quoted for Fire
            text = text[1:-1]
        if not text.startswith(_EXPRESSIONS):  # MONAI turns every # into ::, but not one that Python reads as such
            literal[_path(name)] = f"${text!a}".replace("#", r"\x23").replace("@", r"\x40") if "#" in text else text
    return literal


def _is_known(parser: ConfigParser, path: str, *, others: bool) -> bool:
    """An item of the configuration, or an argument of a `_target_` block; `others` counts its `**arguments` as well."""
    parent, _, leaf = path.rpartition("::")
    try:
        if _walk(parser.get(), path.split("::")) is not None:
            return True
        block = _walk(parser.get(), parent.split("::")) if parent else None
        value = block[0] if block else None
    except (KeyError, ValueError, IndexError):
        return False
    target = locate(value["_target_"]) if isinstance(value, dict) and "." in value.get("_target_", "") else None
    if not callable(target):
        return False
    parameters = inspect.signature(target).parameters
    return leaf in parameters or (others and any(p.kind is p.VAR_KEYWORD for p in parameters.values()))


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


def _unknown(name: str, path: str, parser: ConfigParser, files: Sequence[str], dashes: str) -> str:
    known = [str(key) for key in parser.get() if not str(key).startswith("_")]
    parent, _, _ = path.rpartition("::")
    block = _walk(parser.get(), parent.split("::")) if parent else None
    if block is not None and isinstance(block[0], dict):
        known = [f"{parent}::{key}" for key in block[0]]
    near = difflib.get_close_matches(path, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(dashes + match for match in near)}?" if near else "see the top of those files"
    return f"{dashes}{name} is no option of {', '.join(files) or 'this command'}: {hint}"
