"""What a sampler is given, checked: priors, grids, codes, masks and conditions that fit one another.

Legend of suffixes: b batch, f condition features, s spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_vqgen.errors import InputError
from monai_vqgen.networks.priors import Prior

__all__ = ["check_codes", "check_grids", "check_masks", "check_priors", "checked_condition", "device_of"]


def device_of(prior: Prior) -> torch.device:
    """Where a prior's weights are."""
    return next(prior.parameters()).device


def check_priors(priors: Sequence[Prior]) -> None:
    """Refuse priors that are not one a level of the same codes, coarsest first.

    Raises:
        InputError: there are none, or one was made for other coarser codebooks.
    """
    if not priors:
        raise InputError("no priors given; give one a level, coarsest first")
    sizes: list[int] = []
    for level, prior in enumerate(priors):
        coarser = list(prior.coarser_codes)
        if coarser != sizes:
            raise InputError(
                f"the prior of level {level} is for coarser codebooks of sizes {coarser}, but the priors before it "
                f"have {sizes}. Give all levels' priors, coarsest first"
            )
        sizes.append(prior.num_codes)


def check_grids(grids: Sequence[Sequence[int]], priors: Sequence[Prior]) -> None:
    """Refuse grids that are not one a prior, of its number of axes, and no smaller than the coarser ones.

    Raises:
        InputError: names the level.
    """
    if len(grids) != len(priors):
        raise InputError(f"{len(grids)} grids given for {len(priors)} priors; give one grid a level")
    for level, (grid, prior) in enumerate(zip(grids, priors, strict=True)):
        if len(grid) != prior.spatial_dims or any(size < 1 for size in grid):
            raise InputError(
                f"the grid of level {level} is {tuple(grid)}; give {prior.spatial_dims} sizes of at least 1"
            )
        coarser = grids[level - 1] if level else grid
        if any(m > n for m, n in zip(coarser, grid, strict=True)):
            raise InputError(
                f"the grid of level {level}, {tuple(grid)}, is smaller than that of the coarser level {level - 1}, "
                f"{tuple(coarser)}; give the grids coarsest first"
            )


def check_codes(codes: Sequence[Tensor], priors: Sequence[Prior]) -> None:
    """Refuse codes `(b, *grid)` that do not fit the priors, or one another.

    Raises:
        InputError: a wrong number of levels or samples, grids as in `check_grids`, or codes that a prior does not know.
    """
    if len(codes) != len(priors):
        raise InputError(f"{len(codes)} levels of codes given for {len(priors)} priors; give one a level")
    check_grids([tuple(codes_bs.shape[1:]) for codes_bs in codes], priors)
    counts = [codes_bs.shape[0] for codes_bs in codes]
    if len(set(counts)) > 1 or counts[0] < 1:
        raise InputError(f"the levels hold {counts} samples; give the same number at each, at least 1")
    for level, (codes_bs, prior) in enumerate(zip(codes, priors, strict=True)):
        low, high = int(codes_bs.min()), int(codes_bs.max())
        if low < 0 or high >= prior.num_codes:
            raise InputError(
                f"codes of level {level} reach from {low} to {high}; its prior knows 0 to {prior.num_codes - 1}. "
                "Were they made by another autoencoder?"
            )


def check_masks(masks: Sequence[Tensor], codes: Sequence[Tensor]) -> None:
    """Refuse masks that are not booleans of the codes' shapes, with or without the batch.

    Raises:
        InputError: names the level.
    """
    if len(masks) != len(codes):
        raise InputError(f"{len(masks)} masks and {len(codes)} levels of codes given; give one mask a level")
    for level, (codes_bs, mask) in enumerate(zip(codes, masks, strict=True)):
        if mask.dtype != torch.bool or tuple(mask.shape) not in (tuple(codes_bs.shape), tuple(codes_bs.shape[1:])):
            raise InputError(
                f"the mask of level {level} has shape {tuple(mask.shape)} and type {mask.dtype}; give booleans of "
                f"the codes' shape {tuple(codes_bs.shape)}, with or without the batch"
            )


def checked_condition(condition: Tensor | None, priors: Sequence[Prior], *, count: int) -> Tensor | None:
    """The condition `(count, f)` on the priors' device; None where no prior takes one.

    Raises:
        InputError: it is missing, of another shape than `(count, f)` or `(1, f)`, or no prior was trained with one.
    """
    dims = sorted({prior.condition_dim for prior in priors} - {0})
    if not dims:
        if condition is not None and condition.shape[-1]:
            raise InputError("a condition is given, but no prior was trained with one; leave it out")
        return None
    if condition is None:
        raise InputError(f"the priors need a condition of {dims} features; make it with their ConditionEncoder")
    if condition.ndim != 2 or condition.shape[0] not in (1, count) or dims != [condition.shape[1]]:
        raise InputError(
            f"the condition has shape {tuple(condition.shape)}; give ({count}, {dims[0]}) or (1, {dims[0]})"
        )
    return condition.to(device_of(priors[0])).expand(count, -1)
