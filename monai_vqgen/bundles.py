"""Where the bundle lies, and its stages run as `python -m monai.bundle run` runs them, here or in other processes."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import monai_vqgen
from monai_vqgen.errors import InputError, StageError, VQGenError, root_cause

__all__ = ["as_path", "bundle_root", "run_stage", "run_stage_apart", "stage_command", "stop_stages"]

PARENT_VARIABLE = "MONAI_VQGEN_PARENT"
"""The environment variable that tells a stage the process that has started it, and with which it ends."""

_running: set[subprocess.Popen[bytes]] = set()


def bundle_root() -> Path:
    """The folder with `configs/`: inside an installed package, else beside it in the repository.

    Raises:
        InputError: neither is there.
    """
    package = Path(monai_vqgen.__file__).resolve().parent
    for candidate in (package / "_bundle", package.parent / "bundle"):
        if (candidate / "configs").is_dir():
            return candidate
    raise InputError(
        f"the bundle's configs are neither in {package / '_bundle'} nor in {package.parent / 'bundle'}: install the "
        "package again, or work in a clone of the repository"
    )


def as_path(value: Any) -> Any:
    """An option, as it is; the name of a file that begins with $, @ or % as `./NAME`, for MONAI would run it.

    Examples:
        >>> as_path("$0.5"), as_path(4)
        ('$0.5', 4)
    """
    named = isinstance(value, str | Path) and str(value).startswith(("$", "@", "%")) and os.path.lexists(value)
    return f"./{value}" if named else value


def run_stage(
    config: str, *, training: bool = False, options: Mapping[str, Any], overlays: Sequence[str | Path] = ()
) -> None:
    """Run one config of the bundle in this process, with options as they would be given on the command line.

    Args:
        config: its name, without folder and suffix.
        training: whether to run its `training` rather than its `run`.
        options: by name, as on the command line without the dashes.
        overlays: config files that change it.

    Raises:
        InputError: an option is no key of the configs.
    """
    import monai.bundle  # takes seconds, which help and errors about paths do not pay

    root = bundle_root()
    files = [str(root / "configs" / f"{config}.json"), *map(str, overlays)]
    known = {key for file in files for key in monai.bundle.ConfigParser.load_config_file(file)}
    for name in options:
        if name.split("::")[0] not in known:
            raise InputError(f"{config}.json has no option {name!r}; its options are {', '.join(sorted(known))}")
    try:
        workflow = monai.bundle.ConfigWorkflow(
            config_file=files,
            run_id="training" if training else "run",
            logging_file=False,
            workflow_type=None,
            bundle_root=str(root),
            **{name: as_path(value) for name, value in options.items()},
        )
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    except RuntimeError as error:
        ours = root_cause(error)
        if not isinstance(ours, VQGenError):
            raise
        raise ours from error


def run_stage_apart(
    config: str,
    *,
    training: bool = False,
    options: Mapping[str, Any],
    overlays: Sequence[str | Path] = (),
    log: str | Path,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run one config of the bundle in a process of its own, as `run_stage` does in this one.

    Args:
        config: its name, as for `run_stage`; either function can stand for the other.
        training: whether to run its `training` rather than its `run`.
        options: by name, as on the command line without the dashes.
        overlays: config files that change it.
        log: everything that it prints.
        environment: variables to set for it.

    Raises:
        StageError: it failed; the message names the log and quotes its last line.
    """
    root = bundle_root()
    files = [str(root / "configs" / f"{config}.json"), *(str(Path(file).resolve()) for file in overlays)]
    words = _words(files, training=training, options={"bundle_root": str(root), **options})
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as sink:
        before = sink.tell()
        process = subprocess.Popen(
            [sys.executable, *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, PARENT_VARIABLE: str(os.getpid()), **(environment or {})},
        )
        _running.add(process)
        try:
            status = process.wait()
        finally:
            _running.discard(process)
    if status:
        printed = Path(log).read_bytes()[before:].decode(errors="replace")
        lines = [line.strip() for line in printed.splitlines() if line.strip()] or ["it printed nothing"]
        raise StageError(
            f"{config}.json ended with status {status}: {lines[-1]} (all of it is in {log}; fix that and run again)"
        )


def stop_stages() -> None:
    """End the stages that `run_stage_apart` has started and that still run."""
    for process in list(_running):
        process.terminate()


def stage_command(
    config: str, *, training: bool = False, options: Mapping[str, Any], overlays: Sequence[str | Path] = ()
) -> str:
    """The command line that does what `run_stage` does, from the repository's folder."""
    files = [f"bundle/configs/{config}.json", *map(str, overlays)]
    return shlex.join(_words(files, training=training, options=options))


def _words(files: Sequence[str], *, training: bool, options: Mapping[str, Any]) -> list[str]:
    words = ["python", "-m", "monai.bundle", "run", *(["training"] if training else [])]
    words += ["--config_file", files[0] if len(files) == 1 else str(list(files))]
    for name, value in options.items():
        words += [f"--{name}", str(as_path(value))]
    return words
