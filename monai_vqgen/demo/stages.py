"""The stages of a whole run, each a command of the bundle, and the loop that runs them and goes on where it stopped."""

from __future__ import annotations

import ast
import logging
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from monai_vqgen.bundles import run_stage, run_stage_apart, stage_command, stop_stages
from monai_vqgen.demo.sizes import Size
from monai_vqgen.errors import OutputExistsError
from monai_vqgen.files import previous_path, read_json, write_json

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

__all__ = [
    "Leftovers",
    "Stage",
    "StageRecord",
    "bundle_stage",
    "bundle_stages",
    "change_words",
    "run_stages",
    "slices_stage",
    "stages_at_once",
]

logger = logging.getLogger(__name__)

TIMINGS = "timings.json"
HERE = "{output}"  # in place of the run's folder, which may be moved


class Leftovers(Enum):
    """What a stage does with results that are there already."""

    REFUSE = "refuse"
    TAKE_UP = "take up"
    REPLACE = "replace"


class Stage(NamedTuple):
    """One step.

    Attributes:
        name: for people.
        command: what does the same by itself.
        run: does it; told what to do with what an earlier run of the stage has left behind.
        results: the files or folders that are there when the stage is complete.
    """

    name: str
    command: str
    run: Callable[[Leftovers], Any]
    results: tuple[Path, ...]

    @property
    def has_results(self) -> bool:
        """Whether all of them are there."""
        return all(path.exists() for path in self.results)


class StageRecord(NamedTuple):
    """One stage that was run.

    Attributes:
        name: of the stage.
        seconds: that it took.
        command: that does the same.
        peak_bytes: the largest resident memory that a process of this run had had by its end; None where the system
            does not tell.
    """

    name: str
    seconds: float
    command: str
    peak_bytes: int | None = None


def run_stages(stages: Sequence[Stage], folder: Path, *, resume: bool = False) -> list[StageRecord]:
    """Run the stages in order and note each in `timings.json` as soon as it is complete.

    Args:
        stages: what to run.
        folder: where the notes go.
        resume: leave out the stages that are noted there with the same command and still have their result, take up the
            one that was cut off, and replace what is left of later ones. The folder must be this run's own. The time of
            a stage that was cut off counts from its last start.
    """
    noted = _noted(folder) if resume else _Notes({}, None)
    complete, leftovers = noted.stages, Leftovers.TAKE_UP if resume else Leftovers.REFUSE
    records: list[StageRecord] = []
    for number, stage in enumerate(stages, start=1):
        title = f"=== stage {number} of {len(stages)}: {stage.name}"
        if stage.command in complete and stage.has_results:
            logger.info("%s is complete", title)
            records.append(complete[stage.command])
            continue
        logger.info("%s", title)
        logger.info("    %s", stage.command)
        if leftovers is Leftovers.TAKE_UP and noted.running != stage.command:
            leftovers = Leftovers.REPLACE  # they are of another command
        _note(folder, records, running=stage.command)
        start = time.perf_counter()
        stage.run(leftovers)
        records.append(StageRecord(stage.name, time.perf_counter() - start, stage.command, _peak_bytes()))
        logger.info("%s took %.0f s", title, records[-1].seconds)
        _note(folder, records, running=None)
        if resume:  # whatever lies there of later stages was made from other results
            complete, leftovers = {}, Leftovers.REPLACE
    return records


def _peak_bytes() -> int | None:
    """Of this process and the children it has waited for."""
    if resource is None:
        return None
    largest = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return largest if sys.platform == "darwin" else 1024 * largest  # getrusage(2): bytes there, kibibytes on Linux


class _Notes(NamedTuple):
    stages: dict[str, StageRecord]
    running: str | None


def _note(folder: Path, records: Sequence[StageRecord], *, running: str | None) -> None:
    def without_place(command: str) -> str:
        return change_words(command, partial(_moved, str(folder), HERE)) if folder.is_absolute() else command

    told = [{**record._asdict(), "command": without_place(record.command)} for record in records]
    write_json(folder / TIMINGS, {"stages": told, "running": None if running is None else without_place(running)})


def _noted(folder: Path) -> _Notes:
    if not (folder / TIMINGS).is_file():
        return _Notes({}, None)
    place = partial(_moved, HERE, str(folder))
    try:
        content = read_json(folder / TIMINGS)
        rows = [StageRecord(**{**row, "command": change_words(row["command"], place)}) for row in content["stages"]]
        running = None if content.get("running") is None else change_words(content["running"], place)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputExistsError(
            f"{folder / TIMINGS} is damaged ({error}): remove it to run every stage again, or give another output"
        ) from error
    return _Notes({row.command: row for row in rows}, running)


def _moved(old: str, new: str, word: str) -> str:
    """A path in a folder as one in another; any other word as it is."""
    return new + word[len(old) :] if word == old or word.startswith(f"{old}/") else word


def change_words(command: str, change: Callable[[str], str]) -> str:
    """A command line with each word changed, also those in a list of files.

    Examples:
        >>> change_words("run --data /a/b --rate 1/2 & wait", lambda word: word.replace("/a/", ""))
        'run --data b --rate 1/2 & wait'
    """

    def changed(word: str) -> str:
        if word == "&":  # between commands
            return word
        try:
            files = ast.literal_eval(word) if word.startswith("[") else None
        except (SyntaxError, ValueError):
            files = None
        if isinstance(files, list):
            return shlex.quote(str([change(file) if isinstance(file, str) else file for file in files]))
        return shlex.quote(change(word))

    return " ".join(map(changed, shlex.split(command)))


def bundle_stage(
    name: str,
    config: str,
    *,
    result: str,
    state: str | None = None,
    options: dict[str, Any],
    overlays: Sequence[str] = (),
    runner: Callable[..., None] | None = None,
) -> Stage:
    """A stage of the bundle.

    Args:
        name: for people.
        config: the bundle's config, without folder and suffix.
        result: the file of its `output_dir` that is there when it is complete.
        state: of a stage that trains, the file of its `output_dir` from which it can be taken up.
        options: of its command, `output_dir` among them.
        overlays: config files that change it.
        runner: runs it, called as `run_stage` is, which is the default.
    """
    training, folder = state is not None, Path(options["output_dir"])

    def run(leftovers: Leftovers) -> None:
        how: dict[str, Any] = {}
        states = [] if state is None else [previous_path(folder / state), folder / state]
        if leftovers is Leftovers.REPLACE:
            for path in states:
                path.unlink(missing_ok=True)  # first of all: cut off now, it must not be taken up later
        if leftovers is Leftovers.TAKE_UP and any(path.is_file() for path in states):
            how = {"resume": True}
        elif leftovers is not Leftovers.REFUSE:
            how = {"overwrite": True}
        (runner or run_stage)(config, training=training, options={**options, **how}, overlays=overlays)

    command = stage_command(config, training=training, options=options, overlays=overlays)
    return Stage(name, command, run, (folder / result,))


def stages_at_once(name: str, stages: Sequence[Stage]) -> Stage:
    """Stages that do not need each other as one stage; each must run in a process of its own.

    Cut off, all are taken up: of those that were complete by then only the last checkpoint is looked at. When one
    fails, the others are ended.
    """

    def run(leftovers: Leftovers) -> None:
        with ThreadPoolExecutor(max_workers=len(stages)) as pool:
            running = [pool.submit(stage.run, leftovers) for stage in stages]
            try:
                for done in as_completed(running):
                    done.result()
            except BaseException:  # failed, or told to stop: nothing goes on without us
                stop_stages()
                raise

    command = " & ".join([*(stage.command for stage in stages), "wait"])
    return Stage(name, command, run, tuple(path for stage in stages for path in stage.results))


def slices_stage(size: Size, *, scans: Path, output: Path, seed: int) -> Stage:
    """Cut the slices of this size to the folder `slices` of the output."""
    options = {"dataset_dir": str(scans), "output_dir": str(output / "slices"), "seed": seed, **size.slices}
    return bundle_stage("slices", "extract_slices", result="datalist.json", options=options)


def bundle_stages(
    size: Size, *, scans: Path, output: Path, seed: int, threads_a_prior: int | None = None
) -> list[Stage]:
    """The bundle's commands in their order, from scans to the evaluation.

    Args:
        size: all sizes.
        scans: a folder of scans.
        output: where everything goes.
        seed: of everything that is random.
        threads_a_prior: train the priors at once, each in a process with so many threads and a log of its own; None
            trains one after the other in this process.
    """
    slices, codes = str(output / "slices"), str(output / "codes")
    model = {"model": str(output / "model.pt")}
    trained = {**model, **size.sampling, "seed": seed}
    return [
        slices_stage(size, scans=scans, output=output, seed=seed),
        bundle_stage(
            "autoencoder",
            "train",
            result="model.pt",
            state="training_state.pt",
            options={"dataset_dir": slices, "output_dir": str(output), "seed": seed, **size.autoencoder},
        ),
        bundle_stage(
            "codes",
            "extract_codes",
            result="codes.json",
            options={"dataset_dir": slices, "output_dir": codes, **size.codes, **model},
        ),
        *_prior_stages(size, codes=codes, output=output, seed=seed, threads=threads_a_prior),
        bundle_stage(
            "reconstruction",
            "inference",
            result=".",
            options={"dataset_dir": slices, "output_dir": str(output / "reconstructions"), **model},
        ),
        bundle_stage(
            "samples", "sample", result="samples.json", options={**trained, "output_dir": str(output / "samples")}
        ),
        bundle_stage(
            "evaluation",
            "evaluate",
            result="metrics.json",
            options={**trained, "dataset_dir": slices, "output_dir": str(output), **size.evaluation},
        ),
    ]


def _prior_stages(size: Size, *, codes: str, output: Path, seed: int, threads: int | None) -> list[Stage]:
    environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    stages = []
    for level, options in enumerate(size.priors):
        apart = partial(run_stage_apart, log=output / f"prior_level{level}.log", environment=environment)
        stage = bundle_stage(
            f"prior of level {level}",
            "train_prior",
            result=f"model_prior_level{level}.pt",
            state=f"training_state_prior_level{level}.pt",
            options={"level": level, "dataset_dir": codes, "output_dir": str(output), "seed": seed, **options},
            runner=None if threads is None else apart,
        )
        stages.append(stage)
    return stages if threads is None else [stages_at_once(f"priors of {len(stages)} levels, at once", stages)]
