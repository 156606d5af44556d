"""Designs of the autoencoder side by side: each trained for the same time on the same slices, judged on validation."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from monai_vqgen.apps.bundles import bundle_root, run_stage_apart
from monai_vqgen.apps.presets import RunPreset, pick_preset
from monai_vqgen.apps.results import check_section, markdown_table, replace_section, rounded
from monai_vqgen.apps.run_folders import claim_run, for_this_machine
from monai_vqgen.apps.stages import Stage, bundle_stage, run_stages, slices_stage
from monai_vqgen.data.files import write_json
from monai_vqgen.data.sources import discover_volumes
from monai_vqgen.engines.seeding import check_seed
from monai_vqgen.errors import InputError, StageError

__all__ = ["Variant", "compare", "comparison_section", "read_variants"]

logger = logging.getLogger(__name__)

MARKER = "compare.json"
FIGURES = "comparison.json"
MOST_EPOCHS = 10_000  # the time ends the training long before


class Variant(NamedTuple):
    """One design.

    Attributes:
        name: for people; unique.
        group: what it varies.
        overlay: a config that replaces the network, from the repository's folder; None for the bundle's own.
        options: of `train.json`, beyond those that all variants share.
    """

    name: str
    group: str
    overlay: str | None = None
    options: Mapping[str, Any] = {}

    @property
    def folder(self) -> str:
        """A folder's name made of its name."""
        return re.sub(r"[^a-z0-9.]+", "_", self.name.lower()).strip("_")


def read_variants(path: str | Path) -> list[Variant]:
    """Read a YAML list of variants; the first is the one that the others are compared with.

    Raises:
        InputError: the file is not readable or is no such list; or two variants have the same name.
    """
    try:
        rows = yaml.safe_load(Path(path).read_text())
        variants = [Variant(**row) for row in rows]
    except (OSError, yaml.YAMLError, TypeError, UnicodeDecodeError) as error:
        fields = ", ".join(Variant._fields)
        raise InputError(f"{path} is no list of variants with {fields} ({error})") from error
    folders = [variant.folder for variant in variants]
    twice = sorted({name for name in folders if folders.count(name) > 1})
    if twice or not variants:
        raise InputError(f"{path} needs variants of different names; given twice: {', '.join(twice) or 'none at all'}")
    return variants


def compare(
    data: str | Path,
    output: str | Path = "out/compare",
    *,
    variants: str | Path,
    minutes: float = 5.0,
    jobs: int | None = None,
    size: str = "compare_128",
    seed: int = 0,
    results: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Train and judge every variant, going on where an earlier call was stopped, and write a table.

    On the CPU a variant trains on one thread, and the minutes are of the processor's time: other programs on the
    machine, or another variant at the same time, take nothing away from it. On a GPU they are minutes of the clock.

    Args:
        data: a folder with the scans.
        output: where everything goes; complete variants found there are not trained again.
        variants: a YAML list, see `read_variants`.
        minutes: training time of each.
        jobs: variants trained at once; by default as many as there are cores, or one on a GPU.
        size: a preset's name: its slices, network and training are those of every variant that does not change them.
        seed: of the slices' split, where the preset names none, and of the trainings.
        results: a document with the marks `<!-- SIZE -->` and `<!-- /SIZE -->`, between which the table goes.

    Returns:
        The figures, a dictionary a variant, in their order; those that failed are left out.

    Raises:
        InputError: no such preset, an unreadable list of variants, no positive minutes, a document without the marks.
        DatalistError: the data folder holds no scans, or not those of the split.
        OutputExistsError: the output folder holds another run, or something else.
        StageError: a variant failed; all others are complete, and in the table.
    """
    preset = pick_preset(size, own_data=True)
    check_seed(seed)
    designs = read_variants(variants)
    if not minutes > 0:
        raise InputError(f"minutes={minutes}: give a number above 0")
    scans = discover_volumes(data)
    if results is not None:
        check_section(results, size)
    preset = for_this_machine(preset, scans)
    folder = Path(output).resolve()
    run = {"data": str(Path(data).resolve()), "minutes": minutes, "seed": seed, "preset": preset._asdict()}
    claim_run(folder, MARKER, run)
    run_stages([slices_stage(preset, scans=Path(data).resolve(), output=folder, seed=seed)], folder, resume=True)
    failures: list[StageError] = []

    def one(variant: Variant) -> dict[str, Any] | None:
        (folder / variant.folder).mkdir(exist_ok=True)
        try:
            run_stages(
                _variant_stages(variant, preset, folder=folder, minutes=minutes, seed=seed),
                folder / variant.folder,
                resume=True,
            )
        except StageError as error:
            logger.error("%s failed: %s", variant.name, error)
            failures.append(error)
            return None
        return variant_figures(variant, folder / variant.folder)

    with ThreadPoolExecutor(max_workers=_jobs(jobs)) as pool:
        figures = [row for row in pool.map(one, designs) if row is not None]
    write_json(folder / FIGURES, {"minutes": minutes, "variants": figures})
    if results is not None and figures:
        replace_section(results, size, comparison_section(figures, minutes=minutes))
        logger.info("The table is in %s", results)
    if failures:
        raise StageError(f"{len(failures)} of {len(designs)} variants failed; the first: {failures[0]}")
    return figures


def _jobs(jobs: int | None) -> int:
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs={jobs}: at least one variant must train at a time")
    return jobs or (1 if torch.cuda.is_available() else os.cpu_count() or 1)


def _variant_stages(variant: Variant, preset: RunPreset, *, folder: Path, minutes: float, seed: int) -> list[Stage]:
    """Training and evaluation of one variant."""
    place, cuda = folder / variant.folder, torch.cuda.is_available()
    overlays = [] if variant.overlay is None else [str(bundle_root().parent / variant.overlay)]
    # an overlay has a network of its own: the sizes of the preset's are not for it
    network = preset.network_options() if variant.overlay is None else {}
    network |= {name: value for name, value in variant.options.items() if name.startswith("network_def")}
    if "network_def::quantizers" in network:  # whole quantisers take the place of those whose size the preset sets
        network = {name: value for name, value in network.items() if not name.startswith("network_def::quantizers::")}
    training = {name: value for name, value in variant.options.items() if name not in network}
    shared = {"dataset_dir": str(folder / "slices"), "seed": seed, **network}
    runner = partial(
        run_stage_apart,
        log=place / "log.txt",
        environment={} if cuda else {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    return [
        bundle_stage(
            f"training of {variant.name}",
            "train",
            result="model.pt",
            state="training_state.pt",
            options={
                **shared,
                "output_dir": str(place),
                **preset.autoencoder_options(),
                **training,
                "max_epochs": MOST_EPOCHS,
                "max_minutes": minutes,
                "budget_clock": "wall" if cuda else "cpu",
                "val_interval": 1,
            },
            overlays=overlays,
            runner=runner,
        ),
        bundle_stage(
            f"evaluation of {variant.name}",
            "evaluate",
            result="metrics.json",
            options={
                **shared,
                "output_dir": str(place / "evaluation"),
                "model": str(place / "model.pt"),
                "with_priors": False,
                "split": "validation",
            },
            overlays=overlays,
            runner=runner,
        ),
    ]


def variant_figures(variant: Variant, folder: Path) -> dict[str, Any]:
    """What one variant reached: its `metrics.json`, its steps, and how many weights it has."""
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
    history = json.loads((folder / "history.json").read_text())
    weights = torch.load(folder / "model.pt", weights_only=True, map_location="meta")
    return {
        "name": variant.name,
        "group": variant.group,
        "steps": history["train"]["iteration"][-1],
        "weights": sum(value.numel() for value in weights.values()),
        **{key: metrics[key] for key in ("reconstruction", "top_only", "codebook", "rate")},
    }


def comparison_section(figures: Sequence[Mapping[str, Any]], *, minutes: float) -> str:
    """The variants as a Markdown table, group by group; the first is what the others are compared with."""
    first = figures[0]["reconstruction"]
    rows = []
    for row in figures:
        scores = row["reconstruction"]
        rows.append(
            [
                row["name"] if row is figures[0] else f"{row['group']}: {row['name']}",
                rounded(row["rate"]["raw_bits_per_pixel"], 3),
                rounded(scores["psnr"], 2),
                "" if row is figures[0] else f"{scores['psnr'] - first['psnr']:+.2f}",
                rounded(scores["ssim_brain"], 3),
                rounded(row["top_only"]["psnr"], 2),
                ", ".join(f"{use['usage']:.0%}" for use in row["codebook"]),
                ", ".join(rounded(use["perplexity"], 0) for use in row["codebook"]),
                f"{row['steps']:,}",
                rounded(row["weights"] / 1e6, 2),
            ]
        )
    header = ["variant", "bits a pixel", "PSNR, dB", "to the first", "brain SSIM", "coarsest level alone, PSNR"]
    header += ["codes in use, coarse to fine", "perplexity", "steps", "million weights"]
    time = "of the clock" if torch.cuda.is_available() else "of one core's time"
    return f"{minutes:g} minutes {time} each, validation subjects.\n\n" + markdown_table(header, rows)
