"""How a batch of a data loader becomes the arguments of an objective, in the form MONAI's trainers ask for.

Shape suffixes: b batch, c channels, s spatial axes (2 or 3), f condition features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from monai.engines import PrepareBatch
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from monai_vqgen.errors import InputError

__all__ = ["PrepareCodes", "PrepareImages", "channels_last", "check_one_size", "place"]


def channels_last(tensor: Tensor) -> Tensor:
    """The same values with channels beside one another in memory, which convolutions on CPU and GPU prefer."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    memory_format = formats.get(tensor.ndim)
    return tensor if memory_format is None else tensor.contiguous(memory_format=memory_format)


def place(module: nn.Module, device: torch.device | str) -> nn.Module:
    """Move a module to a device, its convolution weights in channels-last memory order."""
    module.to(device)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.data = channels_last(parameter.data)
    return module


def check_one_size(*datasets: Iterable[Mapping[str, Any]]) -> None:
    """Refuse slices of different sizes before the training starts, rather than at the first batch that mixes them.

    Args:
        datasets: their items hold an "image" (c, *s).

    Raises:
        InputError: names the sizes.

    Example:
        >>> check_one_size([{"image": torch.zeros(1, 8, 8)}], [{"image": torch.zeros(1, 8, 8)}])
    """
    sizes = {tuple(item["image"].shape[1:]) for dataset in datasets for item in dataset}
    if len(sizes) > 1:
        raise InputError(f"Slices have different sizes {sorted(sizes)}: give --image_size to pad or crop them.")


class PrepareImages(PrepareBatch):
    """Take the images (b, c, *s) of a batch as float32 plain tensors, channels last.

    Plain tensors, because a MetaTensor that reached a codebook would end up in the checkpoint.
    """

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Return the images, and no target: the objective compares with its input."""
        images_bcs = convert_to_tensor(batchdata["image"], dtype=torch.float32, track_meta=False)
        return channels_last(images_bcs.to(device=device, non_blocking=non_blocking, **kwargs)), None


class PrepareCodes(PrepareBatch):
    """Take one level's codes (b, *s), the coarser levels' and the condition (b, f) of a batch.

    Args:
        level: the level that the prior models, 0 = coarsest.
    """

    def __init__(self, level: int) -> None:
        self.level = level

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, None, tuple[Any, ...], dict[str, Any]]:
        """Return codes, no target, and (coarser, condition) as further arguments of the objective."""

        def to_device(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, non_blocking=non_blocking, **kwargs)

        coarser = tuple(to_device(batchdata[f"codes_{level}"]) for level in range(self.level))
        condition_bf = to_device(batchdata["condition"]) if "condition" in batchdata else None
        return to_device(batchdata[f"codes_{self.level}"]), None, (coarser, condition_bf), {}
