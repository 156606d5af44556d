"""What a training step of a design costs, as a ratio: measured side by side, so that a busy machine does not decide."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

import torch
from monai.bundle import ConfigParser

from monai_vqgen.bundles import bundle_root
from monai_vqgen.inferers.threads import finished_time, one_thread

__all__ = ["relative_cost", "training_step"]

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
