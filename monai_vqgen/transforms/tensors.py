"""Conversions between numpy, torch and MetaTensor that keep meta and affine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import NdarrayOrTensor
from monai.data.meta_tensor import MetaTensor
from monai.utils.enums import MetaKeys
from numpy.typing import NDArray

from monai_vqgen.errors import InputError

__all__ = ["affine_of", "as_numbers", "as_slice", "name_of", "to_numpy", "with_values"]


def as_numbers(values: Any, what: str) -> torch.Tensor:
    """A tensor as it is, or an array or nested lists as one; real numbers or booleans.

    Raises:
        InputError: text, complex numbers, lists of different lengths, anything else; begins with `what` it is.

    Examples:
        >>> as_numbers([[0, 1]], "the mask").shape
        torch.Size([1, 2])
    """
    try:
        numbers = values if isinstance(values, torch.Tensor) else torch.as_tensor(np.asarray(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{what}: {type(values).__name__} of no numbers ({error}); give a tensor or an array"
        ) from error
    if numbers.is_complex():
        raise InputError(f"{what}: complex numbers; give real ones, such as their magnitude")
    return numbers


def to_numpy(img: NdarrayOrTensor) -> NDArray:
    """The values as numpy, a view where possible."""
    if isinstance(img, torch.Tensor):
        plain = img.as_tensor() if isinstance(img, MetaTensor) else img
        return plain.detach().cpu().numpy()
    array = img if isinstance(img, np.ndarray) else as_numbers(img, "the image").numpy()
    if array.dtype.kind not in "biuf":
        raise InputError(f"an image of type {array.dtype}; give an array of real numbers")
    return array


def affine_of(img: NdarrayOrTensor) -> NDArray:
    """The image's affine (RAS+, float64); the identity where it carries none."""
    if isinstance(img, MetaTensor):
        return np.asarray(img.affine.cpu(), dtype=np.float64)
    return np.eye(4)


def name_of(img: NdarrayOrTensor) -> str:
    """The image's file for messages."""
    if isinstance(img, MetaTensor) and img.meta.get("filename_or_obj"):
        return str(img.meta["filename_or_obj"])
    return "the image"


def as_slice(pixels_chw: torch.Tensor, affine: NDArray, meta: Mapping[str, Any]) -> MetaTensor:
    """A slice as MONAI's readers and `EnsureChannelFirst` leave an image of two axes, so that its writers take it."""
    image = MetaTensor(pixels_chw, affine=torch.as_tensor(affine, dtype=torch.float64), meta=dict(meta))
    if len(pixels_chw) == 1:
        image.meta[MetaKeys.ORIGINAL_CHANNEL_DIM] = "no_channel"  # not before: it decides how many axes MONAI counts
    return image


def with_values(values: NDArray, img: NdarrayOrTensor) -> torch.Tensor:
    """New values of the same grid, with the image's device, meta, affine and trace of transforms."""
    tensor = torch.as_tensor(values)
    if isinstance(img, MetaTensor):
        result = MetaTensor(tensor.to(img.device))
        result.copy_meta_from(img)
        return result
    return tensor.to(img.device) if isinstance(img, torch.Tensor) else tensor
