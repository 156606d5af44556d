"""Designs of the autoencoder side by side: each trained at the same cost on the same slices, judged on others."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from monai_vqgen.bundles import stop_stages
from monai_vqgen.data.processes import usable_cores
from monai_vqgen.data.slices.sources import discover_volumes
from monai_vqgen.demo.sizes import Size, read_size, with_split
from monai_vqgen.demo.stages import run_stages, slices_stage
from monai_vqgen.engines.seeding import check_seed
from monai_vqgen.errors import InputError, StageError
from monai_vqgen.files import claim_run, write_json
from tools.designs import Design, design_stages, read_designs
from tools.results import check_section, markdown_table, replace_section, rounded
from tools.step_costs import design_costs

__all__ = ["Comparison", "DesignFigures", "compare", "comparison_section"]

logger = logging.getLogger(__name__)

MARKER = "compare.json"
SPLITS = ("validation", "test")
FIGURES = "comparison.json"
STATISTICS = ("counts_k", "sums_kd", "num_updates", "initialized")
"""Buffers of a codebook that only its training needs."""


class DesignFigures(NamedTuple):
    """What one design reached.

    Attributes:
        name: of the design.
        group: what it varies.
        steps: of its training.
        cost: of a step, in steps of the first design.
        weights: numbers that encoding and decoding need.
        metrics: its `metrics.json`.
    """

    name: str
    group: str
    steps: int
    cost: float
    weights: int
    metrics: Mapping[str, Any]


class Comparison(NamedTuple):
    """What makes a comparison this one and no other.

    Attributes:
        designs: a YAML list, see `read_designs`.
        steps: of the first design; every training may cost as much.
        size: a name of `configs/sizes` or a YAML file: slices, network and training of every design that does not
            change them.
        split: whose subjects judge: those of validation to choose a design, those of test to report its lead.
        seed: of the slices' split, where the size names none, and of the trainings.
    """

    designs: str | Path
    steps: int = 2000
    size: str | Path = "quick_128"
    split: Literal["validation", "test"] = "validation"
    seed: int = 0


def compare(
    data: str | Path,
    output: str | Path,
    comparison: Comparison,
    *,
    jobs: int | None = None,
    results: str | Path | None = None,
) -> list[DesignFigures]:
    """Train and judge every design, going on where an earlier call was stopped, and write a table.

    All trainings cost the same: as much as `steps` of the first design. What a step of each costs is measured
    beforehand, in turns with a step of the first (`relative_cost`), so that neither the speed of the hour nor the
    designs trained beside it decide how long a design may learn. On a CPU each trains on one thread.

    Args:
        data: a folder with the scans.
        output: where everything goes; complete designs found there are not trained again.
        comparison: of what, and how.
        jobs: designs trained at once; by default as many as there are cores, or one on a GPU.
        results: a document with the mark `<!-- comparison_LIST_SIZE_SPLIT -->` and the same with a slash, between which
            the table goes; `LIST` is the name of the list of designs without its ending.

    Returns:
        The figures in the order of the list; designs that failed are left out.

    Raises:
        InputError: no such size, an unreadable list of designs, no positive steps or jobs, no such split, a document
            without the marks.
        DatalistError: the data folder holds no scans, or not those of the split.
        OutputExistsError: the output folder holds another run, or something else.
        StageError: a design failed; all others are complete, and in the table.
    """
    designs, steps, size, split, seed = comparison
    chosen, wanted, at_once = read_size(size), read_designs(designs), _jobs(jobs)
    check_seed(seed)
    _check_call(steps, split)
    scans, source = discover_volumes(data), Path(data).resolve()
    section = f"comparison_{Path(designs).stem}_{chosen.name}_{split}"
    if results is not None:
        check_section(results, section)
    chosen = with_split(chosen, scans).for_this_machine()
    folder = Path(output).resolve()
    run = {
        "data": str(source),
        "scans": [str(scan.path) for scan in scans],
        "steps": steps,
        "split": split,
        "seed": seed,
        "slices": chosen.slices,
        "autoencoder": chosen.autoencoder,
    }
    claim_run(folder, MARKER, run)
    run_stages([slices_stage(chosen, scans=source, output=folder, seed=seed)], folder, resume=True)
    costs, failures = design_costs(wanted, chosen, folder=folder)
    budgets = [_Budget(design, steps, costs[design.folder]) for design in wanted if design.folder in costs]
    figures, failed = _train_all(budgets, chosen, folder=folder, split=split, seed=seed, jobs=at_once)
    failures += failed
    write_json(folder / FIGURES, {"steps": steps, "split": split, "designs": [row._asdict() for row in figures]})
    if results is not None and figures:
        table = comparison_section(figures, first=wanted[0].name, steps=steps, split=split)
        replace_section(results, section, table)
        logger.info("The table is in %s", results)
    if failures:
        raise StageError(f"{len(failures)} of {len(wanted)} designs failed; the first: {failures[0]}")
    return figures


def _check_call(steps: object, split: object) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps={steps}: give a whole number above 0")
    if split not in SPLITS:
        raise InputError(f"split={split!r}: designs are judged on {' or '.join(SPLITS)} subjects")


def _jobs(jobs: int | None) -> int:
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs={jobs}: at least one design must train at a time")
    if torch.cuda.is_available():
        return jobs or 1
    return jobs or usable_cores()


class _Budget(NamedTuple):
    design: Design
    steps: int
    cost: float


def _train_all(
    budgets: Sequence[_Budget], size: Size, *, folder: Path, split: str, seed: int, jobs: int
) -> tuple[list[DesignFigures], list[str]]:
    """Figures of the designs that went through, and what was wrong with the others."""
    failures: list[str] = []

    def train(budget: _Budget) -> DesignFigures | None:
        design, steps, cost = budget
        place = folder / design.folder
        place.mkdir(exist_ok=True)
        try:
            stages = design_stages(design, size, folder=folder, steps=steps, cost=cost, split=split, seed=seed)
            run_stages(stages, place, resume=True)
            return _figures(design, place, cost)
        except Exception as error:  # whatever it is, the other designs go on
            logger.error("%s failed: %s", design.name, error)
            failures.append(f"{design.name}: {error}")
            return None

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        try:
            rows = list(pool.map(train, budgets))
        except BaseException:  # told to stop: nothing goes on without us
            pool.shutdown(wait=False, cancel_futures=True)
            stop_stages()
            raise
    return [row for row in rows if row is not None], failures


def _figures(design: Design, folder: Path, cost: float) -> DesignFigures:
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
    history = json.loads((folder / "history.json").read_text())
    weights = torch.load(folder / "model.pt", weights_only=True, map_location="meta")
    needed = sum(value.numel() for name, value in weights.items() if not name.endswith(STATISTICS))
    steps = int(history["train"]["iteration"][-1])
    return DesignFigures(design.name, design.group, steps, cost, needed, metrics)


def comparison_section(figures: Sequence[DesignFigures], *, first: str, steps: int, split: str) -> str:
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
                rounded(row.cost, 2),
                rounded(row.weights / 1e6, 2),
            ]
        )
    header = ["design", "bits a pixel", "PSNR, dB", "to the first", "brain SSIM", "coarsest level alone, PSNR"]
    header += ["codes in use, coarse to fine", "perplexity", "steps", "cost of a step", "million weights"]
    slices, subjects = (figures[0].metrics["data"][name] for name in ("slices", "subjects"))
    caption = (
        f"Each at the cost of {steps:,} steps of the first, on {slices['training']:,} slices of {subjects['training']} "
        f"training subjects; judged on {slices[split]:,} slices of {subjects[split]} {split} subjects."
    )
    return caption + "\n\n" + markdown_table(header, rows)
