"""Figures of an epoch over all processes: means of what an objective returns, and the health of the codebooks.

Shape suffixes: b batch, k codebook size, s spatial axes (2 or 3).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.handlers import StatsHandler
from monai.utils import is_scalar

from monai_vqgen.metrics.codes import CodebookCounter

__all__ = ["CodebookHealth", "EpochLog", "ObjectiveMean", "objective_means"]


class ObjectiveMean(Metric):
    """Mean over all items and processes of one value that the objective returns, by its name.

    For `key_val_metric` and `additional_metrics` of MONAI's engines; an item counts once, whatever its batch's size.

    Args:
        name: key in the objective's result, for example ``"loss"`` or ``"mse"``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(output_transform=self._values, skip_unrolling=True)

    def _values(self, output: Sequence[Mapping[str, Any]]) -> list[float]:
        return [float(item["pred"][self.name]) for item in output]

    def reset(self) -> None:
        """Start an epoch."""
        self.total, self.count = 0.0, 0.0

    def update(self, output: Sequence[float]) -> None:
        """Add the items of a batch."""
        self.total += sum(output)
        self.count += len(output)

    def compute(self) -> float:
        """Return the mean over all processes."""
        total, count = float(idist.all_reduce(self.total)), float(idist.all_reduce(self.count))
        return total / count if count else float("nan")


def objective_means(*names: str) -> dict[str, ObjectiveMean]:
    """Metrics of an engine by name: the means of what the objective returns under these names.

    Examples:
        >>> sorted(objective_means("loss", "mse"))
        ['loss', 'mse']
    """
    return {name: ObjectiveMean(name) for name in names}


class EpochLog(StatsHandler):
    """MONAI's `StatsHandler` with one line of figures an epoch.

    The handler's own printer bypasses the log file, because its logger does not propagate messages.

    Args:
        name: what the line begins with: "training" or "validation".
    """

    def __init__(self, name: str) -> None:
        super().__init__(iteration_log=False, epoch_print_logger=self.write_line, name=name)
        self._epoch_logger = logging.getLogger(f"monai_vqgen.{name}")

    def write_line(self, engine: Engine) -> None:
        """Write the line."""
        metrics = sorted(engine.state.metrics.items())
        figures = ", ".join(f"{name} {float(value):.4g}" for name, value in metrics if is_scalar(value))
        self._epoch_logger.info("epoch %d: %s", engine.state.epoch, figures)

    def exception_raised(self, _engine: Engine, e: BaseException) -> None:
        """Raise the error again; MONAI's handler also prints its traceback, which whoever catches the error may do."""
        raise e


class CodebookHealth:
    """Put usage and perplexity of every level, over all processes, among an engine's metrics.

    Attach to a trainer or an evaluator before the handlers that print or write metrics. Adds ``usage_level0`` (part
    of the codes that occur, 0 to 1), ``perplexity_level0`` (1 to the codebook's size), and so on.

    Args:
        codebook_sizes: number of codes of each level, coarsest first.
    """

    def __init__(self, codebook_sizes: Sequence[int]) -> None:
        self.counters = [CodebookCounter(size) for size in codebook_sizes]

    def attach(self, engine: Engine) -> None:
        """Register with an engine."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._update)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _reset(self, engine: Engine) -> None:
        for counter in self.counters:
            counter.reset()

    def _update(self, engine: Engine) -> None:
        output: Any = engine.state.output
        for level, counter in enumerate(self.counters):
            counter.update(torch.stack([item["pred"][f"codes_{level}"] for item in output]))

    def __call__(self, engine: Engine) -> None:
        """Write the epoch's figures among the metrics."""
        for level, counter in enumerate(self.counters):
            health = counter.compute()
            engine.state.metrics[f"usage_level{level}"] = health.usage
            engine.state.metrics[f"perplexity_level{level}"] = health.perplexity
