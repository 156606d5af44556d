"""The published figures again, from nothing but the scans: train, evaluate, write the results, keep the weights."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import torch

from monai_vqgen.data.processes import usable_cores
from monai_vqgen.data.slices.sources import discover_volumes
from monai_vqgen.demo.report import machine, write_report
from monai_vqgen.demo.sizes import read_size, with_split
from monai_vqgen.demo.stages import bundle_stages, run_stages
from monai_vqgen.engines.seeding import check_seed
from monai_vqgen.errors import CheckpointError, InputError
from monai_vqgen.files import claim_run, write_bytes
from tools.results import check_section, replace_section, results_section

__all__ = ["pictures_section", "publish_pictures", "publish_weights", "reproduce"]

logger = logging.getLogger(__name__)

MARKER = "reproduce.json"  # written first: what the folder is of
PICTURES = {
    "overview.png": "Slices of subjects not trained on, their reconstructions, and samples.",
    "reconstructions.png": "Slices, reconstructions, their difference, and what the coarsest level gives by itself.",
    "rate_distortion.png": "Rate and distortion, beside picture formats.",
    "learning.png": "Learning curves.",
    "real_and_sampled.png": "Real and sampled slices, mixed.",
    "positions.png": "Samples by the position they were asked for.",
    "closest_pairs.png": "The samples that come closest to a training slice, and below each that slice.",
}
MIXED, KEY = "real_and_sampled.png", "real_and_sampled.json"


def reproduce(
    data: str | Path,
    output: str | Path = "out/reproduce",
    *,
    size: str = "release_128",
    seed: int = 0,
    results: str | Path | None = None,
    pictures: str | Path | None = None,
    models: str | Path | None = None,
) -> Path:
    """Run every stage of a release, going on where an earlier call was stopped, and write its figures.

    Args:
        data: a folder with the scans of OpenNeuro ds002748, or others where the size names no split.
        output: where everything goes; complete stages found there are not run again.
        size: a name of `configs/sizes`, or a YAML file.
        seed: of the training and the samples.
        results: a document with the marks `<!-- SIZE_DEVICE -->` and `<!-- /SIZE_DEVICE -->`, between which the figures
            go, so that those of other devices stay; `DEVICE` is `gpu` where there is a CUDA device, else `cpu`.
        pictures: a folder that gets the pictures, in a folder `SIZE_DEVICE` of its own; the results then show them.
        models: a folder that gets the weights, and what goes with the priors' (`bundle/models` ships them).

    Returns:
        The report.

    Raises:
        InputError: no such size, a split file that is not at hand, a document without the marks, or no folder for the
            pictures.
        DatalistError: the data folder holds no scans, or not those of the split.
        OutputExistsError: the output folder holds another run, or something else.
    """
    chosen = read_size(size)
    check_seed(seed)
    scans = discover_volumes(data)  # a folder without scans is an error before anything else
    mark = f"{chosen.name}_{'gpu' if torch.cuda.is_available() else 'cpu'}"
    if results is not None:
        check_section(results, mark)
    if pictures is not None:
        _check_folder(pictures)
    chosen = with_split(chosen, scans).for_this_machine()
    folder = Path(output).resolve()
    claim_run(
        folder,
        MARKER,
        {
            "data": str(Path(data).resolve()),
            "scans": [str(scan.path) for scan in scans],
            "seed": seed,
            "size": chosen._asdict(),
        },
    )
    threads = _threads_a_prior(len(chosen.priors))
    stages = bundle_stages(chosen, scans=Path(data).resolve(), output=folder, seed=seed, threads_a_prior=threads)
    records = run_stages(stages, folder, resume=True)
    report = write_report(folder, stages=records)
    shown = None if pictures is None else publish_pictures(folder, Path(pictures) / mark)
    if results is not None:
        parts = [results_section(json.loads((folder / "metrics.json").read_text()), records, machine=machine())]
        if shown is not None:
            parts.append(pictures_section(shown, document=results))
        replace_section(results, mark, "\n\n".join(parts))
        logger.info("The figures are in %s", results)
    if models is not None:
        publish_weights(folder, models)
        logger.info("The weights are in %s", models)
    return report


def publish_weights(folder: str | Path, models: str | Path) -> list[Path]:
    """Copy a run's autoencoder and priors, and their records, to a folder, each file complete or as it was.

    Raises:
        CheckpointError: the run lacks one of them.
    """
    priors = sorted(Path(folder).glob("model_prior_level*.pt"))
    weights = [Path(folder) / "model.pt", *priors]
    wanted = [*weights, *(path.with_suffix(".json") for path in weights)]
    missing = [path for path in wanted if not path.is_file()]
    if missing or not priors:
        raise CheckpointError(
            f"{', '.join(map(str, missing)) or folder}: no trained model with priors; run it to its end"
        )
    Path(models).mkdir(parents=True, exist_ok=True)
    copies = []
    for path in wanted:
        copies.append(Path(models) / path.name)
        write_bytes(copies[-1], path.read_bytes())
    return copies


def publish_pictures(folder: str | Path, pictures: str | Path) -> Path:
    """Copy the pictures of a run, and the key of the mixed one, to a folder, and return it.

    Each is complete or as it was; those that an earlier run had and this one has not are removed.
    """
    Path(pictures).mkdir(parents=True, exist_ok=True)
    for name in (*PICTURES, KEY):
        if (Path(folder) / name).is_file():
            write_bytes(Path(pictures) / name, (Path(folder) / name).read_bytes())
        else:
            (Path(pictures) / name).unlink(missing_ok=True)
    return Path(pictures)


def pictures_section(pictures: str | Path, *, document: str | Path) -> str:
    """Markdown that shows the pictures of `publish_pictures` in a document, each above its caption."""
    where = Path(os.path.relpath(Path(pictures).resolve(), Path(document).resolve().parent)).as_posix()
    parts = []
    for name, caption in PICTURES.items():
        if not (Path(pictures) / name).is_file():
            continue
        parts.append(f"![{caption}]({where}/{name})")
        if name == MIXED and (Path(pictures) / KEY).is_file():
            numbers = [str(number) for number in json.loads((Path(pictures) / KEY).read_text())["sampled"]]
            caption = f"{caption} Sampled are {', '.join(numbers)}; the others are real."
        parts.append(f"*{caption}*")
    return "\n\n".join(parts)


def _check_folder(path: str | Path) -> None:
    """Make a folder now that is written to hours later."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be a folder for the pictures ({error}): give another") from error


def _threads_a_prior(priors: int) -> int | None:
    """Small steps hardly gain from a second thread: on a CPU all priors train at once, each on a share of the cores."""
    cores = usable_cores()
    return None if torch.cuda.is_available() or priors < 2 or cores < 2 else max(1, cores // priors)
