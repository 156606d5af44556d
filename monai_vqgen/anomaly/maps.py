"""Bits that each position of a slice takes, and slices whose unlikely codes are drawn anew.

Models are taken as `TrainedModel` offers itself: `encode`, `decode`, `sampler`, `grids`, `covered_size`.
Shape legend: b batch, c channels, d draws, s spatial axes (2 or 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from monai_vqgen.errors import InputError
from monai_vqgen.inferers.draws import one_thread
from monai_vqgen.transforms.geometry import LEFT_RIGHT_AXIS

__all__ = ["nll_maps", "restore", "unlikely_codes"]


def check_images(model: Any, images_bcs: Any) -> Tensor:
    """The images as a tensor, of the size that the priors know.

    Raises:
        InputError: images of another shape or size.
    """
    images_bcs = torch.as_tensor(images_bcs)
    size = tuple(images_bcs.shape[2:])
    if images_bcs.ndim != model.autoencoder.spatial_dims + 2 or tuple(model.autoencoder.grids(size)) != model.grids:
        known = tuple(model.record.image_size) or f"grids {list(model.grids)}"
        raise InputError(f"images of shape {tuple(images_bcs.shape)}: the priors were trained on images of {known}")
    return images_bcs


def nll_maps(
    model: Any, images: Tensor, *, condition: Tensor | None = None, mirrored: bool = True
) -> tuple[Tensor, ...]:
    """Bits of each position under the priors, a level, spread over the pixels that it covers.

    A code is judged given the codes before it in raster order, so a lesion's first rows stand out more than what
    follows them. The mirror image is read from the other side; the mean of both sees more (equal left-right halves are
    what the priors were trained on as well). Sagittal slices have no such image.

    Args:
        model: a `TrainedModel` with priors.
        images: `(b, c, *s)` in [0, 1].
        condition: features `(b, f)` or None.
        mirrored: whether the mean with the mirror image, left and right exchanged, is taken where there is one; twice
            the time.

    Returns:
        float32 `(b, *s)` a level, coarsest first, on the CPU.

    Raises:
        InputError: images of another size than the priors were trained on.
        CheckpointError: the model has no priors.
    """
    sampler, images_bcs = model.sampler(), check_images(model, images)
    size = tuple(images_bcs.shape[2:])
    sums = [torch.zeros(len(images_bcs), *size) for _ in model.grids]
    axis, turns = LEFT_RIGHT_AXIS[len(size)], mirrored and model.record.plane != "sagittal"
    readings = (False, True) if turns else (False,)
    for flipped in readings:
        codes = model.encode(images_bcs.flip(axis) if flipped else images_bcs)
        for sum_bs, nats_bs in zip(sums, sampler.log_prob_maps(codes, condition), strict=True):
            spread_bs = _spread(nats_bs.cpu() / -math.log(2), model.covered_size, size)
            sum_bs += spread_bs.flip(axis) if flipped else spread_bs
    return tuple(sum_bs / len(readings) for sum_bs in sums)


def _spread(map_bs: Tensor, covered: Sequence[int], size: Sequence[int]) -> Tensor:
    """Each position's value at every pixel that it covers; the padding after the image's end is cut off."""
    for axis, (full, shown) in enumerate(zip(covered, size, strict=True), 1):
        map_bs = map_bs.repeat_interleave(full // map_bs.shape[axis], axis).narrow(axis, 0, shown)
    return map_bs


def unlikely_codes(
    model: Any, codes: Sequence[Tensor], *, quantile: float = 0.95, condition: Tensor | None = None
) -> list[Tensor]:
    """Which codes of each slice and level take more bits than this quantile of the slice's own.

    Raises:
        InputError: a quantile outside [0, 1).
    """
    if not 0 <= quantile < 1:
        raise InputError(f"quantile is {quantile}; give at least 0 and less than 1, such as 0.95")
    maps = [-nats_bs for nats_bs in model.sampler().log_prob_maps(codes, condition)]
    limits = [map_bs.flatten(1).quantile(quantile, 1) for map_bs in maps]
    return [
        map_bs > limit_b.reshape(-1, *[1] * (map_bs.ndim - 1)) for map_bs, limit_b in zip(maps, limits, strict=True)
    ]


def restore(
    model: Any,
    codes: Sequence[Tensor],
    masks: Sequence[Tensor],
    *,
    image_size: Sequence[int],
    draws: int = 3,
    seed: int = 0,
    first_slice: int = 0,
    condition: Tensor | None = None,
) -> Tensor:
    """Slices whose masked codes are drawn anew, several times; the rest of their codes stays.

    A draw depends on the seed, the slice's number and its own, not on batches (`AncestralSampler.complete`).

    Args:
        model: a `TrainedModel` with priors.
        codes: integers `(b, *grid)` a level, coarsest first.
        masks: booleans like `codes`, of `unlikely_codes` or of pixels.
        image_size: of the slices.
        draws: how many, at least 1.
        seed: of the draws.
        first_slice: number of the first; slices 4 to 7 are restored alike alone or after 0 to 3.
        condition: features `(b, f)` or None.

    Returns:
        float32 `(b, d, c, *s)` in [0, 1], on the CPU.

    Raises:
        InputError: draws below 1, masks that do not fit the codes.
    """
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise InputError(f"draws is {draws!r}; give a whole number, at least 1")
    shapes = [[tuple(grid.shape) for grid in grids] for grids in (masks, codes)]
    if shapes[0] not in (shapes[1], [(1, *shape[1:]) for shape in shapes[1]]):
        raise InputError(
            f"masks of shapes {shapes[0]} for codes of {shapes[1]}: give one like the codes for each level"
        )
    repeated = [grid.repeat_interleave(draws, 0) for grid in codes]
    hidden = [mask.expand(grid.shape).repeat_interleave(draws, 0) for mask, grid in zip(masks, codes, strict=True)]
    given = condition.repeat_interleave(draws, 0) if condition is not None and len(condition) > 1 else condition
    with one_thread():
        filled = model.sampler().complete(
            repeated, hidden, seed=seed, first_sample=first_slice * draws, condition=given
        )
    images = model.decode(filled, tuple(image_size)).cpu()
    return images.reshape(len(codes[0]), draws, *images.shape[1:])
