"""From a record on disk to the arguments of an objective: loading, augmentation, batches, in the form MONAI asks for.

Shape suffixes: b batch, c channels, s spatial axes (2 or 3), f condition features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from monai.data import DataLoader
from monai.engines import PrepareBatch
from monai.optimizers import WarmupCosineSchedule
from monai.transforms import EnsureTyped, RandAdjustContrastd, RandAffined, RandFlipd, SelectItemsd
from monai.utils import convert_to_tensor
from torch import Tensor, nn
from torch.optim import Optimizer

from monai_vqgen.engines.distributed import shard
from monai_vqgen.errors import InputError
from monai_vqgen.transforms import FitToSized, LoadSliced
from monai_vqgen.transforms.geometry import LEFT_RIGHT_AXIS

__all__ = [
    "PrepareCodes",
    "PrepareImages",
    "augmentation",
    "channels_last",
    "check_one_size",
    "place",
    "sharded_loader",
    "slice_loading",
    "warmup_cosine",
]

Transforms = list[Callable[[Any], Any]]


def slice_loading(image_size: Sequence[int] | None = None, network: Any = None) -> Transforms:
    """Transforms from a record's path to ``{"image": float32 (c, *s) in [0, 1]}``, a plain tensor.

    Args:
        image_size: pads or crops to this size; None takes images as they are.
        network: what they are for: its `in_channels` and `spatial_dims` count; None loads slices of one channel.
    """
    channels, dimensions = (1, 2) if network is None else (network.in_channels, network.spatial_dims)
    fit = [] if image_size is None else [FitToSized("image", size=image_size)]
    plain = EnsureTyped("image", dtype=torch.float32, track_meta=False)
    load = LoadSliced("image", channels=channels, dimensions=dimensions)
    return [load, *fit, SelectItemsd("image"), plain]


def augmentation(
    *,
    mirror_probability: float = 0.0,
    affine_probability: float = 0.0,
    rotation_degrees: float = 8.0,
    scale_fraction: float = 0.08,
    shift_pixels: float = 4.0,
    gamma_probability: float = 0.0,
    gamma_range: Sequence[float] = (0.8, 1.25),
    dimensions: int = 2,
) -> Transforms:
    """Random transforms of a training image; one with a probability of 0 is left out.

    Args:
        mirror_probability: of flipping left and right: a slice's columns, a volume's first axis.
        affine_probability: of rotating, scaling and shifting.
        rotation_degrees: largest rotation either way.
        scale_fraction: largest change of the size either way.
        shift_pixels: largest shift either way.
        gamma_probability: of raising intensities to a power.
        gamma_range: least and largest power.
        dimensions: of the images, 2 or 3.
    """
    chosen: Transforms = []
    if mirror_probability:
        chosen.append(
            RandFlipd("image", prob=mirror_probability, spatial_axis=dimensions + LEFT_RIGHT_AXIS[dimensions])
        )
    if affine_probability:
        chosen.append(
            RandAffined(
                "image",
                prob=affine_probability,
                rotate_range=[math.radians(rotation_degrees)] * (1 if dimensions == 2 else 3),
                scale_range=[scale_fraction] * dimensions,
                translate_range=[shift_pixels] * dimensions,
                mode="bilinear",
                padding_mode="zeros",
            )
        )
    if gamma_probability:
        chosen.append(RandAdjustContrastd("image", prob=gamma_probability, gamma=(gamma_range[0], gamma_range[1])))
    return chosen


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


def sharded_loader(
    dataset: Any,
    *,
    batch_size: int,
    num_workers: int = 0,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool | None = None,
) -> DataLoader:
    """A data loader over this process's rows of a data set (see `shard`).

    Args:
        dataset: with a length.
        batch_size: items a step and process.
        num_workers: processes that load; 0 loads in this one.
        shuffle: for training: another order each epoch.
        seed: of the order.
        drop_last: leave out a smaller batch at the end; by default where `shuffle` is set and there is a whole one.

    Raises:
        InputError: fewer items than processes.
    """
    rows = shard(dataset, shuffle=shuffle, seed=seed)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=rows,
        num_workers=num_workers,
        drop_last=shuffle and len(rows) >= batch_size if drop_last is None else drop_last,
    )


def warmup_cosine(optimizer: Optimizer, total_steps: int, *, warmup_fraction: float = 0.05) -> WarmupCosineSchedule:
    """MONAI's schedule from a tenth of the learning rate up to all of it, then along half a cosine to a hundredth.

    Args:
        optimizer: with the learning rate.
        total_steps: of the training; the schedule is stepped once an iteration.
        warmup_fraction: share of the steps that the rise takes.
    """
    return WarmupCosineSchedule(
        optimizer,
        warmup_steps=max(1, int(warmup_fraction * total_steps)),
        t_total=total_steps,
        end_lr=0.01 * optimizer.param_groups[0]["lr"],
        warmup_multiplier=0.1,
    )


def check_one_size(*datasets: Iterable[Mapping[str, Any]]) -> None:
    """Refuse slices of different sizes before the training starts, rather than at the first batch that mixes them.

    Args:
        datasets: their items hold an "image" (c, *s).

    Raises:
        InputError: names the sizes.

    Examples:
        >>> check_one_size([{"image": torch.zeros(1, 8, 8)}], [{"image": torch.zeros(1, 8, 8)}])
    """
    sizes = {tuple(item["image"].shape[1:]) for dataset in datasets for item in dataset}
    if len(sizes) > 1:
        raise InputError(f"Slices have different sizes {sorted(sizes)}: give --image_size to pad or crop them")


class PrepareImages(PrepareBatch):
    """Take the images (b, c, *s) of a batch as float32 plain tensors, channels last.

    Plain tensors, because a MetaTensor that reached a codebook would end up in the checkpoint. Where the batch has an
    entry "seen", such as the images with noise, an autoencoder is shown that and compared with the images.
    """

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Return the images, and no target: the objective compares with them; with "seen", further arguments of it."""

        def prepared(name: str) -> Tensor:
            images_bcs = convert_to_tensor(batchdata[name], dtype=torch.float32, track_meta=False)
            return channels_last(images_bcs.to(device=device, non_blocking=non_blocking, **kwargs))

        if "seen" in batchdata:
            return prepared("image"), None, (prepared("seen"),), {}
        return prepared("image"), None


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
