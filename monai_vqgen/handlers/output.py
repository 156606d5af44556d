"""The output folder: claimed before work starts, so that earlier results are never overwritten silently."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from monai_vqgen.engines.distributed import process_rank
from monai_vqgen.errors import InputError
from monai_vqgen.files import claim_folder, hold_alone, previous_path

__all__ = ["claim_output", "claim_training", "log_to_file"]

logger = logging.getLogger(__name__)

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def claim_output(
    output_dir: str | os.PathLike[str],
    names: Sequence[str],
    overwrite: bool = False,
    *,
    by_products: Sequence[str] = (),
    resume_from: str | None = None,
) -> Path:
    """Make the output folder, and refuse one that already holds a result of the same name.

    `monai_vqgen.files.claim_folder` for a stage: only the first process removes earlier results, and none removes them
    from a run that is resumed.

    Args:
        output_dir: folder to write to; made where missing.
        names: files or folders that the coming run will write, relative to it; one with a star stands for all that
            match.
        overwrite: replace them.
        by_products: like names, but they stop no run: logs, pictures, what a resumed run would go on from.
        resume_from: name of the file that a run to be continued has left; earlier results are welcome then.

    Raises:
        OutputExistsError: One of ``names`` exists and ``overwrite`` is off, or another process is writing them.
        InputError: The folder cannot be made or written to.
    """
    folder = Path(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output_dir={str(folder)!r} cannot be made: {error}. Give another folder") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"output_dir={str(folder)!r} is not writable. Give another folder")
    resuming = resume_from is not None and (folder / resume_from).is_file()
    if process_rank() > 0:  # would race with the first one's writing
        return folder
    if resuming:
        hold_alone(folder, names[0])
        return folder
    return claim_folder(folder, names, overwrite=overwrite, by_products=by_products)


def claim_training(
    output_dir: str | os.PathLike[str], *, level: int | None = None, overwrite: bool = False, resume: bool = False
) -> Path:
    """`claim_output` for a training: of the autoencoder, or of the prior of a level.

    Args:
        output_dir: folder to write to.
        level: of the prior; None for the autoencoder.
        overwrite: replace earlier results.
        resume: go on from the training state in the folder, where there is one.

    Raises:
        OutputExistsError: earlier results are there and neither `overwrite` nor `resume` is on.
        InputError: the folder cannot be made or written to.
    """
    part = "" if level is None else f"_prior_level{level}"
    names = [f"model{part}.pt", f"model{part}.json", f"history{part}.json"]
    logs = ["train.log", "images/reconstructions_*", "tensorboard/train", "tensorboard/validation"]
    if level is not None:
        logs = [f"model{part}.log", f"images/samples_level{level}_*", f"tensorboard/prior_level{level}"]
    state = Path(output_dir) / f"training_state{part}.pt"
    states = [state, previous_path(state)]
    left = next((path.name for path in states if path.is_file()), None)
    by_products = [*(path.name for path in states), *logs]
    return claim_output(output_dir, names, overwrite, by_products=by_products, resume_from=left if resume else None)


class _RunLog(logging.FileHandler):
    """The log file of the stage that runs."""


def log_to_file(output_dir: str | os.PathLike[str], name: str) -> None:
    """Also write the log to ``output_dir/name``, from the first process only.

    Stages that follow one another in one process each have a file of their own: a new one takes over from the last.
    """
    if process_rank() > 0:
        return
    path = Path(output_dir) / name
    handler = _RunLog(path.resolve(), encoding="utf-8")
    handler.setFormatter(logging.Formatter(_LOG_FORMAT))
    root = logging.getLogger()
    for earlier in [known for known in root.handlers if isinstance(known, _RunLog)]:
        root.removeHandler(earlier)
        earlier.close()
    root.addHandler(handler)
    package = logging.getLogger("monai_vqgen")
    if not package.isEnabledFor(logging.INFO):  # in a program that has not set up logging
        package.setLevel(logging.INFO)
