"""What a training step of each design costs, as a ratio of times taken in turns: a busy machine decides little."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser

from monai_vqgen.bundles import bundle_root
from monai_vqgen.demo.sizes import Size
from monai_vqgen.errors import root_cause
from monai_vqgen.files import write_json
from monai_vqgen.inferers.draws import finished_time, one_thread
from tools.designs import Design, design_options, design_overlays

__all__ = ["DesignCosts", "design_costs", "relative_cost", "training_step"]

logger = logging.getLogger(__name__)

COSTS = "step_costs.json"
SLICES = 64  # enough for batches that differ; all are read before the clock runs
WARM_UP, STEPS, ROUNDS = 3, 3, 7  # the first step of a codebook runs k-means


def training_step(options: Mapping[str, Any], *, overlays: Sequence[str] = ()) -> Callable[[], None]:
    """One step of `train.json` with these options: a batch with its augmentation, losses, gradients, the optimizer.

    Args:
        options: as on the command line, `dataset_dir` among them.
        overlays: config files that change it.

    Returns:
        A function that does the next step, and returns when the device has done it.
    """
    parser = ConfigParser()
    root = bundle_root()
    parser.read_config([str(root / "configs" / "train.json"), *overlays])
    few = f"$monai_vqgen.data.load_datalist(@dataset_dir, 'training')[:{SLICES}]"
    for name, value in {"bundle_root": str(root), **options, "train::dataset::data": few}.items():
        parser[name] = value
    objective, optimizer = parser.get_parsed_content("objective"), parser.get_parsed_content("optimizer")
    device, prepare = torch.device(parser.get_parsed_content("device")), parser.get_parsed_content("prepare_batch")
    batches = _endless(parser.get_parsed_content("train::dataloader"))
    objective.train()

    def step() -> None:
        optimizer.zero_grad()
        images_bcs, _ = prepare(next(batches), device)
        objective(images_bcs)["loss"].backward()
        optimizer.step()
        finished_time(device)

    return step


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    return chain.from_iterable(repeat(loader))


def relative_cost(
    step: Callable[[], None], reference: Callable[[], None], *, clock: Callable[[], float] | None = None
) -> float:
    """How many steps of the reference take as long as one step.

    The two are timed in turns on one CPU thread; the median of the turns' ratios counts, so what slows the machine for
    a while slows both, or is left out.

    Args:
        step: does one.
        reference: does one of what it is compared with.
        clock: seconds from any start; by default that of the machine.
    """
    clock = clock or (lambda: finished_time("cpu"))

    def seconds(work: Callable[[], None], times: int) -> float:
        start = clock()
        for _ in range(times):
            work()
        return clock() - start

    with one_thread():
        seconds(step, WARM_UP)
        seconds(reference, WARM_UP)
        ratios = [seconds(step, STEPS) / seconds(reference, STEPS) for _ in range(ROUNDS)]
    return statistics.median(ratios)


class DesignCosts(NamedTuple):
    """Costs of a step by the design's folder, in steps of the first design; what was wrong with designs left out."""

    costs: dict[str, float]
    failures: list[str]


def design_costs(designs: Sequence[Design], size: Size, *, folder: Path) -> DesignCosts:
    """Costs of all designs: 1 for the first, measured in turns with it for those not in `step_costs.json` yet."""
    noted = json.loads((folder / COSTS).read_text()) if (folder / COSTS).is_file() else {}
    costs = {design.folder: noted[design.folder] for design in designs[1:] if design.folder in noted}
    costs[designs[0].folder] = 1.0
    missing = [design for design in designs if design.folder not in costs]
    failures: list[str] = []
    if not missing:
        return DesignCosts(costs, failures)

    def step(design: Design) -> Callable[[], None]:
        options = {"dataset_dir": str(folder / "slices"), **design_options(design, size), "max_minutes": None}
        return training_step(options, overlays=design_overlays(design))

    reference = step(designs[0])
    for design in missing:
        try:
            costs[design.folder] = relative_cost(step(design), reference)
        except Exception as error:  # whatever it is, the other designs go on
            failures.append(f"{design.name}: {root_cause(error)}")
            logger.error("%s", failures[-1])
            continue
        logger.info("A step of %s costs %.2f of the first design's", design.name, costs[design.folder])
        write_json(folder / COSTS, {**noted, **costs})
    return DesignCosts(costs, failures)
