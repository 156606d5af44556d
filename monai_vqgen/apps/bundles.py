"""Where the bundle lies, and its stages run in process as `python -m monai.bundle run` would run them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai.bundle

import monai_vqgen
from monai_vqgen.errors import InputError, VQGenError

__all__ = ["bundle_root", "run_stage", "stage_command"]


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


def run_stage(config: str, *, training: bool = False, options: Mapping[str, Any]) -> None:
    """Run one config of the bundle in this process, with options as they would be given on the command line.

    Raises:
        InputError: an option is no key of the config.
    """
    root = bundle_root()
    path = root / "configs" / f"{config}.json"
    known = monai.bundle.ConfigParser.load_config_file(path)
    for name in options:
        if name.split("::")[0] not in known:
            raise InputError(f"{path.name} has no option {name!r}; its options are {', '.join(sorted(known))}")
    try:
        workflow = monai.bundle.ConfigWorkflow(
            config_file=str(path),
            run_id="training" if training else "run",
            logging_file=False,
            workflow_type=None,
            bundle_root=str(root),
            **options,
        )
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    except RuntimeError as error:
        ours = _first_own(error)
        if ours is None:
            raise
        raise ours from error


def _first_own(error: BaseException | None) -> VQGenError | None:
    """The error of this project that MONAI's parser or loader has wrapped, if there is one."""
    while error is not None and not isinstance(error, VQGenError):
        error = error.__cause__
    return error


def stage_command(config: str, *, training: bool = False, options: Mapping[str, Any]) -> str:
    """The command line that does what `run_stage` does, from the repository's folder."""
    words = ["python", "-m", "monai.bundle", "run", *(["training"] if training else [])]
    words += ["--config_file", f"bundle/configs/{config}.json"]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    return shlex.join(words)
