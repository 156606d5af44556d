"""How slices are loaded and varied in training: MONAI's transforms and ours, as lists for a config's `Compose`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.transforms import EnsureTyped, RandAdjustContrastd, RandAffined, RandFlipd, SelectItemsd

from monai_vqgen.transforms import FitToSized, LoadSliced

__all__ = ["augmentation", "slice_loading"]

Transforms = list[Callable[[Any], Any]]


def slice_loading(image_size: Sequence[int] | None = None) -> Transforms:
    """Transforms from a record's path to ``{"image": float32 (1, h, w) in [0, 1]}``, a plain tensor.

    Args:
        image_size: pads or crops to this size; None takes slices as they are.
    """
    fit = [] if image_size is None else [FitToSized("image", size=image_size)]
    plain = EnsureTyped("image", dtype=torch.float32, track_meta=False)
    return [LoadSliced("image"), *fit, SelectItemsd("image"), plain]


def augmentation(
    *,
    mirror_probability: float = 0.0,
    affine_probability: float = 0.0,
    rotation_degrees: float = 8.0,
    scale_fraction: float = 0.08,
    shift_pixels: float = 4.0,
    gamma_probability: float = 0.0,
    gamma_range: Sequence[float] = (0.8, 1.25),
) -> Transforms:
    """Random transforms of a training image; one with a probability of 0 is left out.

    Args:
        mirror_probability: of flipping left and right, the last axis.
        affine_probability: of rotating, scaling and shifting.
        rotation_degrees: largest rotation either way.
        scale_fraction: largest change of the size either way.
        shift_pixels: largest shift either way.
        gamma_probability: of raising intensities to a power.
        gamma_range: least and largest power.
    """
    chosen: Transforms = []
    if mirror_probability:
        chosen.append(RandFlipd("image", prob=mirror_probability, spatial_axis=1))
    if affine_probability:
        chosen.append(
            RandAffined(
                "image",
                prob=affine_probability,
                rotate_range=math.radians(rotation_degrees),
                scale_range=[scale_fraction, scale_fraction],
                translate_range=[shift_pixels, shift_pixels],
                mode="bilinear",
                padding_mode="zeros",
            )
        )
    if gamma_probability:
        chosen.append(RandAdjustContrastd("image", prob=gamma_probability, gamma=(gamma_range[0], gamma_range[1])))
    return chosen
