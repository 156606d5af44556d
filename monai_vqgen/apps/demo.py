"""The whole way, from scans to new slices and a report, by the bundle's own configs."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from monai_vqgen.apps.bundles import run_stage, stage_command
from monai_vqgen.apps.presets import DemoPreset, fast_bfloat16, pick_preset
from monai_vqgen.apps.report import StageRecord, write_report
from monai_vqgen.data.files import write_json
from monai_vqgen.data.phantoms import make_phantoms
from monai_vqgen.data.sources import discover_volumes
from monai_vqgen.data.splits import split_subjects
from monai_vqgen.engines.seeding import check_seed
from monai_vqgen.errors import InputError, OutputExistsError

__all__ = ["claim_demo_folder", "run_demo"]

logger = logging.getLogger(__name__)

MARKER = "demo.json"  # written first: a folder with it was made by a demo and may be moved aside


class Stage(NamedTuple):
    """One step of the demo: a bundle command, or a function of this package."""

    name: str
    command: str
    run: Callable[[], Any]


def claim_demo_folder(output: str | Path) -> Path:
    """Make the output folder; results of an earlier demo are moved aside to `<name>.1`, `.2`, ... first.

    Raises:
        OutputExistsError: the folder holds something that no demo has written.
    """
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file; give another output folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MARKER).is_file():
            raise OutputExistsError(f"{folder} holds files that no demo has written; give another output folder")
        number = 1
        while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
            number += 1
        folder.rename(aside)
        logger.info("Results of an earlier demo in %s were moved aside to %s", folder, aside)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _bundle_stage(name: str, config: str, *, training: bool = False, options: dict[str, Any]) -> Stage:
    return Stage(
        name,
        stage_command(config, training=training, options=options),
        lambda: run_stage(config, training=training, options=options),
    )


def _stages(preset: DemoPreset, *, scans: Path, output: Path, seed: int) -> list[Stage]:
    """The bundle's commands in their order."""
    slices, codes = str(output / "slices"), str(output / "codes")
    network, priors = preset.network_options(), preset.prior_options()
    model = {"model": str(output / "model.pt")}
    trained = {**model, "priors_dir": str(output), **network, **priors, "num_samples": preset.num_samples, "seed": seed}
    stages = [
        _bundle_stage(
            "slices",
            "extract_slices",
            options={
                "dataset_dir": str(scans),
                "output_dir": slices,
                "image_size": [preset.image_size, preset.image_size],
                "pixel_mm": preset.pixel_mm,
                "position_start_mm": preset.position_start_mm,
                "position_stop_mm": preset.position_stop_mm,
                "position_step_mm": preset.position_step_mm,
                "seed": seed,
            },
        ),
        _bundle_stage(
            "autoencoder",
            "train",
            training=True,
            options={
                "dataset_dir": slices,
                "output_dir": str(output),
                "max_epochs": preset.autoencoder_epochs,
                "val_interval": 1,  # so that the last epoch, the best as a rule, is looked at
                "batch_size": preset.autoencoder_batch_size,
                "learning_rate": preset.autoencoder_learning_rate,
                "amp": preset.autoencoder_amp,
                "mirror_probability": 0.5,
                "seed": seed,
                **network,
            },
        ),
        _bundle_stage(
            "codes",
            "extract_codes",
            options={"dataset_dir": slices, "output_dir": codes, "mirror_training": True, **model, **network},
        ),
    ]
    for level in (0, 1):
        options = {
            "level": level,
            "dataset_dir": codes,
            "output_dir": str(output),
            "max_epochs": preset.prior_epochs[level],
            "batch_size": preset.prior_batch_size,
            "learning_rate": preset.prior_learning_rate,
            "amp": preset.prior_amp,
            "seed": seed,
            **priors,
        }
        stages.append(_bundle_stage(f"prior of level {level}", "train_prior", training=True, options=options))
    return [
        *stages,
        _bundle_stage(
            "reconstruction",
            "inference",
            options={"dataset_dir": slices, "output_dir": str(output / "reconstructions"), **model, **network},
        ),
        _bundle_stage(
            "samples",
            "sample",
            options={**trained, "output_dir": str(output / "samples")},
        ),
        _bundle_stage("evaluation", "evaluate", options={**trained, "dataset_dir": slices, "output_dir": str(output)}),
    ]


def _phantom_stage(preset: DemoPreset, folder: Path, seed: int) -> Stage:
    command = f"python -m monai_vqgen phantoms --output {shlex.quote(str(folder))} --seed {seed}"
    return Stage(
        "phantoms",
        f"{command} --subjects {preset.phantom_subjects}",
        lambda: make_phantoms(folder, preset.phantom_subjects, seed=seed),
    )


def run_demo(
    data: str | Path | None = None, output: str | Path = "out/demo", *, seed: int = 0, size: str | None = None
) -> Path:
    """Run every stage and end with `report.html` in the output folder.

    Args:
        data: a folder of scans; without one, phantoms are made.
        output: where everything goes; results of an earlier demo there are moved aside.
        seed: of the phantoms, the split, the training and the samples.
        size: a preset's name: "small" (default for phantoms), "standard" (default for scans), "tiny".

    Returns:
        The report.

    Raises:
        InputError: no such preset, a negative seed, or the output folder would hold the scans.
        DatalistError: the data folder holds no scans, or those of too few subjects.
        OutputExistsError: the output folder holds something else.
    """
    preset = pick_preset(size, own_data=data is not None)
    check_seed(seed)
    if not fast_bfloat16():
        preset = preset._replace(autoencoder_amp=False, prior_amp=False)
    if data is not None:
        found = discover_volumes(data)  # a folder without scans is an error before anything is moved or made
        if Path(output).resolve() in [Path(data).resolve(), *Path(data).resolve().parents]:
            raise InputError(f"the output folder {output} holds the scans of {data}; give another output folder")
        split_subjects([scan.subject for scan in found], seed=seed)  # so are too few of them
    folder = claim_demo_folder(output)
    scans = Path(data) if data is not None else folder / "phantoms"
    write_json(folder / MARKER, {"data": str(scans), "seed": seed, "preset": preset._asdict()})
    stages = [] if data is not None else [_phantom_stage(preset, scans, seed)]
    stages += _stages(preset, scans=scans, output=folder, seed=seed)
    records: list[StageRecord] = []
    for number, stage in enumerate(stages, start=1):
        logger.info("=== stage %d of %d: %s", number, len(stages), stage.name)
        logger.info("    %s", stage.command)
        start = time.perf_counter()
        stage.run()
        records.append(StageRecord(stage.name, time.perf_counter() - start, stage.command))
        logger.info("=== stage %d of %d: %s took %.0f s", number, len(stages), stage.name, records[-1].seconds)
    write_json(folder / "timings.json", {"stages": [record._asdict() for record in records]})
    report = write_report(folder, stages=records, phantoms=data is None)
    logger.info("The demo took %.1f minutes. Look at %s", sum(r.seconds for r in records) / 60, report)
    return report
