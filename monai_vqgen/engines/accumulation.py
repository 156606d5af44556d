"""A batch in parts, one after another, where the whole does not fit into memory: the same step, more slowly.

batch (b) -> parts -> objective, backward (weighted by size) -> codebooks learn once -> one optimizer step
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from monai.engines import IterationEvents, SupervisedTrainer
from torch import Tensor

from monai_vqgen.errors import InputError
from monai_vqgen.networks import Quantizer

__all__ = ["AccumulatedUpdate", "accumulated_update"]


def accumulated_update(steps: int) -> Callable[[Any, Any], dict[str, Any]] | None:
    """The ``iteration_update`` of MONAI's trainer: None, which is the trainer's own, for one step.

    Raises:
        InputError: steps is no whole number of at least 1.

    Examples:
        >>> accumulated_update(1) is None
        True
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"accumulation_steps={steps!r} must be a whole number of at least 1")
    return AccumulatedUpdate(steps) if steps > 1 else None


class AccumulatedUpdate:
    """One training iteration over a batch in parts: gradients add up, then the optimizer steps once.

    The step is that of the whole batch, but for rounding: each part's loss counts by its share of the batch, so the
    gradient is the batch's; codebooks that follow the latents (`EMACodebook`) are held still during the parts and learn
    once, from all of them; handlers see one iteration with the batch's loss, so clipping, schedules, budgets and
    `GradientGuard` work as ever. Several processes exchange gradients once a step. Two things differ: what is drawn at
    random (dropout, hidden finer levels) is drawn part by part, and k-means starts a codebook from the first part of
    the first batch alone.

    Args:
        steps: parts a batch is cut into; a batch of fewer items has one item a part.

    Give it to MONAI's `SupervisedTrainer` as ``iteration_update``. Batches are mappings of tensors (b, ...). Mixed
    precision is the objective's own; the trainer's ``amp`` is not used.

    Examples:
        >>> update = AccumulatedUpdate(4)
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, engine: SupervisedTrainer, batchdata: Mapping[str, Any]) -> dict[str, Any]:
        """Run the iteration; return the trainer's output, whose "pred" has all items in order."""
        engine.network.train()
        engine.optimizer.zero_grad(set_to_none=engine.optim_set_to_none)
        with contextlib.ExitStack() as deferred:  # which ends, and learns, unless an event raises
            for module in engine.network.modules():
                if isinstance(module, Quantizer):
                    deferred.enter_context(module.deferred_learning())
            engine.state.output = self._add_up(engine, batchdata)
            engine.fire_event(IterationEvents.FORWARD_COMPLETED)
            engine.fire_event(IterationEvents.LOSS_COMPLETED)
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        engine.optimizer.step()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _add_up(self, engine: SupervisedTrainer, batchdata: Mapping[str, Any]) -> dict[str, Any]:
        """Forward and backward of each part."""
        size = len(next(iter(batchdata.values())))
        number = min(self.steps, size)
        bounds = [size * part // number for part in range(number + 1)]
        images, predictions, shares = [], [], []
        for part, (start, stop) in enumerate(pairwise(bounds)):
            items = {name: value[start:stop] for name, value in batchdata.items()}
            inputs, targets, *more = engine.prepare_batch(
                items, engine.state.device, engine.non_blocking, **engine.to_kwargs
            )
            args, kwargs = more or ((), {})
            last = part == number - 1
            # DDP exchanges the processes' gradients with the last part alone
            with contextlib.nullcontext() if last else getattr(engine.network, "no_sync", contextlib.nullcontext)():
                prediction = engine.inferer(inputs, engine.network, *args, **kwargs)
                share = (stop - start) / size
                (share * engine.loss_function(prediction, targets).mean()).backward()
            images.append(inputs)
            predictions.append({name: value.detach() for name, value in prediction.items()})
            shares.append(share)
        joined = {name: _join([prediction[name] for prediction in predictions], shares) for name in predictions[0]}
        return {"image": torch.cat(images), "label": None, "pred": joined, "loss": joined["loss"]}


def _join(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Items one after another; of numbers that stand for a whole part, the mean by the parts' shares."""
    if values[0].ndim:
        return torch.cat(list(values))
    return torch.stack([share * value for share, value in zip(shares, values, strict=True)]).sum()
