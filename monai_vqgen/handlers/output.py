"""The output folder: claimed before work starts, so that earlier results are never overwritten silently."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_vqgen.data.processes import gather, process_rank, wait_for_all
from monai_vqgen.files import claim_folder, clean, hold_alone, keep_earlier, make_writable, previous_path, publish

__all__ = ["claim_output", "claim_training", "log_to_file", "publish_output"]

logger = logging.getLogger(__name__)

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def claim_output(
    output_dir: str | os.PathLike[str],
    names: Sequence[str],
    overwrite: bool = False,
    *,
    by_products: Sequence[str] = (),
    resume_from: str | None = None,
    set_aside: bool = False,
) -> Path:
    """Make the output folder, and refuse one that already holds a result of the same name.

    `monai_vqgen.files.claim_folder` for a stage: the first process claims, and all are told the place.

    Args:
        output_dir: folder to write to; made where missing.
        names: files or folders that the coming run will write, relative to it; one with a star stands for all that
            match.
        overwrite: replace them.
        by_products: like names, but they stop no run: logs, pictures, what a resumed run would go on from.
        resume_from: name of the file that a run to be continued has left; earlier results are welcome then.
        set_aside: as for `claim_folder`, for trainings.

    Returns:
        Where to write, for `publish_output` at the end; as of `claim_folder`.

    Raises:
        OutputExistsError: One of ``names`` exists and ``overwrite`` is off, or another process is writing them.
        InputError: The folder cannot be made or written to.
    """
    folder = Path(output_dir)
    make_writable(folder)
    place = None
    if process_rank() == 0:  # another one would race with the first one's writing
        if resume_from is not None and (folder / resume_from).is_file():
            clean(folder, [*names, *by_products], locked=hold_alone(folder, names[0]))
            keep_earlier(folder, names, by_products)
            place = folder
        else:
            place = claim_folder(folder, names, overwrite=overwrite, by_products=by_products, set_aside=set_aside)
    return next(path for path in gather(place) if path is not None)


def publish_output(place: str | os.PathLike[str]) -> None:
    """Let what all processes have written to the place of `claim_output` replace the earlier results there."""
    wait_for_all()
    if process_rank() == 0:
        publish(Path(place))
    wait_for_all()


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
    left = next((path.name for path in states if os.path.isfile(path)), None)  # which takes names of any length
    by_products = [*(path.name for path in states), *logs]
    resume_from = left if resume else None
    return claim_output(output_dir, names, overwrite, by_products=by_products, resume_from=resume_from, set_aside=True)


class _RunLog(logging.FileHandler):
    """The log file of the stage that runs."""


def log_to_file(output_dir: str | os.PathLike[str], name: str, **told: Any) -> None:
    """Also write the log to ``output_dir/name.log``, from the first process only.

    Stages that follow one another in one process each have a file of their own: a new one takes over from the last.

    Args:
        output_dir: the run's folder.
        name: of the file, without suffix.
        told: what the log begins with, by name; None is left out.
    """
    if process_rank() > 0:
        return
    path = Path(output_dir) / f"{name}.log"
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
    for what, value in told.items():
        if value is not None:
            logger.info("%s: %s", what, ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else value)
