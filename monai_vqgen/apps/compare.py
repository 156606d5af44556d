"""Designs of the autoencoder side by side: each trained for the same time on the same slices, judged on validation."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from monai_vqgen.apps.bundles import stop_stages
from monai_vqgen.apps.designs import Design, design_stages, read_designs
from monai_vqgen.apps.presets import RunPreset, pick_preset
from monai_vqgen.apps.results import check_section, markdown_table, replace_section, rounded
from monai_vqgen.apps.run_folders import claim_run, for_this_machine, usable_cores
from monai_vqgen.apps.stages import run_stages, slices_stage
from monai_vqgen.data.files import write_json
from monai_vqgen.data.sources import discover_volumes
from monai_vqgen.engines.seeding import check_seed
from monai_vqgen.errors import InputError, StageError

__all__ = ["DesignFigures", "compare", "comparison_section"]

logger = logging.getLogger(__name__)

MARKER = "compare.json"
FIGURES = "comparison.json"
STATISTICS = ("counts_k", "sums_kd", "num_updates", "initialized")
"""Buffers of a codebook that only its training needs."""


class DesignFigures(NamedTuple):
    """What one design reached.

    Attributes:
        name: of the design.
        group: what it varies.
        steps: of its training.
        weights: numbers that encoding and decoding need.
        metrics: its `metrics.json`.
    """

    name: str
    group: str
    steps: int
    weights: int
    metrics: Mapping[str, Any]


def compare(
    data: str | Path,
    output: str | Path = "out/compare",
    *,
    designs: str | Path,
    minutes: float = 3.0,
    jobs: int | None = None,
    size: str = "quick_128",
    seed: int = 0,
    results: str | Path | None = None,
) -> list[DesignFigures]:
    """Train and judge every design, going on where an earlier call was stopped, and write a table.

    On the CPU a design trains on one thread, and the minutes are of the processor's time: while other programs have
    the processor, no design's time runs. (They still share its caches and memory, as designs trained at once do.) On a
    GPU the minutes are of the clock; train one at a time there.

    Args:
        data: a folder with the scans.
        output: where everything goes; complete designs found there are not trained again.
        designs: a YAML list, see `read_designs`.
        minutes: training time of each.
        jobs: designs trained at once; by default as many as there are cores, or one on a GPU.
        size: a preset's name: its slices, network and training are those of every design that does not change them.
        seed: of the slices' split, where the preset names none, and of the trainings.
        results: a document with the marks `<!-- comparison_SIZE -->` and `<!-- /comparison_SIZE -->`, between which the
            table goes.

    Returns:
        The figures in the order of the list; designs that failed are left out.

    Raises:
        InputError: no such preset, an unreadable list of designs, no positive minutes or jobs, a document without the
            marks.
        DatalistError: the data folder holds no scans, or not those of the split.
        OutputExistsError: the output folder holds another run, or something else.
        StageError: a design failed; all others are complete, and in the table.
    """
    preset, wanted, at_once = pick_preset(size, own_data=True), read_designs(designs), _jobs(jobs)
    check_seed(seed)
    if not minutes > 0:
        raise InputError(f"minutes={minutes}: give a number above 0")
    scans, source, section = discover_volumes(data), Path(data).resolve(), f"comparison_{size}"
    if results is not None:
        check_section(results, section)
    preset = for_this_machine(preset, scans)
    folder = Path(output).resolve()
    run = {"data": str(source), "scans": [str(scan.path) for scan in scans], "minutes": minutes, "seed": seed}
    claim_run(folder, MARKER, {**run, "preset": preset._asdict()})
    run_stages([slices_stage(preset, scans=source, output=folder, seed=seed)], folder, resume=True)
    figures, failures = _train_all(wanted, preset, folder=folder, minutes=minutes, seed=seed, jobs=at_once)
    write_json(folder / FIGURES, {"minutes": minutes, "designs": [row._asdict() for row in figures]})
    if results is not None and figures:
        replace_section(results, section, comparison_section(figures, first=wanted[0].name, minutes=minutes))
        logger.info("The table is in %s", results)
    if failures:
        raise StageError(f"{len(failures)} of {len(wanted)} designs failed; the first: {failures[0]}")
    return figures


def _jobs(jobs: int | None) -> int:
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs={jobs}: at least one design must train at a time")
    if torch.cuda.is_available():
        return jobs or 1
    return jobs or usable_cores()


def _train_all(
    designs: Sequence[Design], preset: RunPreset, *, folder: Path, minutes: float, seed: int, jobs: int
) -> tuple[list[DesignFigures], list[str]]:
    """Figures of the designs that went through, and what was wrong with the others."""
    failures: list[str] = []

    def train(design: Design) -> DesignFigures | None:
        place = folder / design.folder
        place.mkdir(exist_ok=True)
        try:
            run_stages(design_stages(design, preset, folder=folder, minutes=minutes, seed=seed), place, resume=True)
            return _figures(design, place)
        except Exception as error:  # whatever it is, the other designs go on
            logger.error("%s failed: %s", design.name, error)
            failures.append(f"{design.name}: {error}")
            return None

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        try:
            rows = list(pool.map(train, designs))
        except BaseException:  # told to stop: nothing goes on without us
            pool.shutdown(wait=False, cancel_futures=True)
            stop_stages()
            raise
    return [row for row in rows if row is not None], failures


def _figures(design: Design, folder: Path) -> DesignFigures:
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
    history = json.loads((folder / "history.json").read_text())
    weights = torch.load(folder / "model.pt", weights_only=True, map_location="meta")
    needed = sum(value.numel() for name, value in weights.items() if not name.endswith(STATISTICS))
    return DesignFigures(design.name, design.group, int(history["train"]["iteration"][-1]), needed, metrics)


def comparison_section(figures: Sequence[DesignFigures], *, first: str, minutes: float) -> str:
    """The designs as a Markdown table; `first` names the one that the others are compared with."""
    reference = next((row.metrics["reconstruction"]["psnr"] for row in figures if row.name == first), None)
    rows = []
    for row in figures:
        scores, codebook = row.metrics["reconstruction"], row.metrics["codebook"]
        gain = "" if reference is None or row.name == first else f"{scores['psnr'] - reference:+.2f}"
        rows.append(
            [
                row.name if row.name == first else f"{row.group}: {row.name}",
                rounded(row.metrics["rate"]["raw_bits_per_pixel"], 3),
                rounded(scores["psnr"], 2),
                gain,
                rounded(scores["ssim_brain"], 3),
                rounded(row.metrics["top_only"]["psnr"], 2),
                ", ".join(f"{use['usage']:.0%}" for use in codebook),
                ", ".join(rounded(use["perplexity"], 0) for use in codebook),
                f"{row.steps:,}",
                rounded(row.weights / 1e6, 2),
            ]
        )
    header = ["design", "bits a pixel", "PSNR, dB", "to the first", "brain SSIM", "coarsest level alone, PSNR"]
    header += ["codes in use, coarse to fine", "perplexity", "steps", "million weights"]
    time = "of the clock" if torch.cuda.is_available() else "of one core's time"
    return f"{minutes:g} minutes {time} each, validation subjects.\n\n" + markdown_table(header, rows)
