"""The stage between the autoencoder and the priors: every slice is encoded once, and its codes are kept.

Shape suffixes: b batch, c channels, n slices, s spatial axes (2 or 3).
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.utils import convert_to_tensor
from torch import Tensor, nn
from tqdm import tqdm

from monai_vqgen.data import load_datalist, read_slice_geometry
from monai_vqgen.data.codes.store import CodeStore, code_type, save_codes
from monai_vqgen.data.processes import check_joined, gather, own_part, parts_of_all, process_rank
from monai_vqgen.engines.batches import channels_last
from monai_vqgen.errors import DatalistError, InputError
from monai_vqgen.transforms.geometry import LEFT_RIGHT_AXIS
from monai_vqgen.weights import fingerprint

__all__ = ["check_mirroring", "write_codes"]

logger = logging.getLogger(__name__)

_SPLITS = ("training", "validation", "test")


def check_mirroring(plane: str | None, probability: float = 1.0) -> None:
    """Refuse to mirror slices whose last axis does not run from left to right.

    Args:
        plane: of the slices, None where it is not known.
        probability: of mirroring; nothing is refused at 0.

    Raises:
        InputError: the slices are sagittal.

    Examples:
        >>> check_mirroring("axial")
    """
    if plane == "sagittal" and probability > 0:
        raise InputError(
            "Sagittal slices cannot be mirrored: their last axis runs from front to back, not from left to right. "
            "Leave mirror_probability at 0 and mirror_training at false"
        )


def write_codes(
    autoencoder: nn.Module,
    dataset_dir: str | Path,
    output_dir: str | os.PathLike[str],
    *,
    preprocessing: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    batch_size: int = 32,
    mirror_training: bool = False,
) -> CodeStore:
    """Encode the slices of all splits and write a code store.

    Of several processes (`torchrun`) each encodes its part of the batches, and the first writes the store: the file of
    a single process, as long as each computes with as many threads.

    Args:
        autoencoder: trained, on the device it is to run on.
        dataset_dir: slices with `datalist.json`, or ready-made train / validate / test folders.
        output_dir: folder of the code store.
        preprocessing: the transform that training used; makes {"image": (c, *s)} of a record.
        batch_size: slices encoded at once.
        mirror_training: also store the training images mirrored left to right (`LEFT_RIGHT_AXIS`), marked "mirrored" in
            their records. Twice the training data for the priors, where left and right are alike.

    Raises:
        InputError: a batch size below one, slices of different sizes, mirrored copies of sagittal slices, or several
            processes that are not joined.
        DatalistError: a split that training needs is missing, or a listed slice.
        StageError: another of several processes has ended.
    """
    check_joined()
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} must be at least 1")
    geometry = read_slice_geometry(dataset_dir)
    if mirror_training:
        check_mirroring(geometry.plane)
    splits = [_Split(name, items, _mirrors(name, mirror_training)) for name, items in _listed(dataset_dir).items()]
    module: Any = autoencoder.eval()
    own = _encode_own_part(module, splits, preprocessing, batch_size=batch_size)
    image_size = _one_size(gather(own.image_size))
    with parts_of_all(own.grids, output_dir) as parts:
        if process_rank() == 0:
            save_codes(
                output_dir,
                {split.name: _join(parts, split, levels=module.num_levels) for split in splits},
                {split.name: split.records() for split in splits},
                codebook_sizes=module.codebook_sizes,
                fingerprint=fingerprint(autoencoder),
                image_size=image_size,
                geometry=geometry,
                codebooks_kd=module.codebooks(),
            )
            logger.info("Wrote the codes of %s to %s", {s.name: len(s.records()) for s in splits}, output_dir)
    return CodeStore(output_dir)


class _Split(NamedTuple):
    """A split's slices, and the passes over them: as they are, then perhaps mirrored."""

    name: str
    items: Sequence[Mapping[str, Any]]
    mirrors: Sequence[bool]

    def records(self) -> list[dict[str, Any]]:
        """Of each grid that is stored, in order."""
        return [_record(item, mirrored=mirror) for mirror in self.mirrors for item in self.items]


class _Encoded(NamedTuple):
    """What one process has encoded: grids (n, *s) by split, pass and level, and the slices' size."""

    grids: dict[str, Tensor]
    image_size: tuple[int, ...]


def _listed(dataset_dir: str | Path) -> dict[str, list[dict[str, Any]]]:
    splits = {}
    for split in _SPLITS:
        try:
            splits[split] = load_datalist(dataset_dir, split)
        except DatalistError:
            if split != "test" or not _is_empty(dataset_dir, split):  # priors need none, but half of one is a fault
                raise
            if process_rank() == 0:
                logger.warning("%s has no test split, so codes are written without one", dataset_dir)
    return splits


def _mirrors(split: str, mirror_training: bool) -> list[bool]:
    return [False, True] if mirror_training and split == "training" else [False]


def _encode_own_part(
    autoencoder: Any,
    splits: Sequence[_Split],
    preprocessing: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    *,
    batch_size: int,
) -> _Encoded:
    """Encode this process's batches of each split: the very batches that one process would make."""
    grids: dict[str, Tensor] = {}
    image_size: tuple[int, ...] = ()
    for split in splits:
        starts = own_part(range(0, len(split.items), batch_size))
        own_items = [split.items[start : start + batch_size] for start in starts]
        passes: list[list[tuple[Tensor, ...]]] = [[] for _ in split.mirrors]
        for items in tqdm(own_items, desc=f"codes of {split.name}", unit="batch", disable=process_rank() > 0):
            images_bcs = _batch(items, preprocessing)
            image_size = _one_size([image_size, tuple(images_bcs.shape[2:])])
            for mirror, encoded in zip(split.mirrors, passes, strict=True):
                encoded.append(_encode(autoencoder, images_bcs, mirror=mirror))
        for number, encoded in enumerate(passes):
            for level, codes in enumerate(zip(*encoded, strict=True)):
                grids[_name(split, number, level)] = torch.cat(codes)
    return _Encoded(grids, image_size)


def _name(split: _Split, number: int, level: int) -> str:
    return f"{split.name}/pass{number}/level{level}"


def _join(parts: Sequence[Mapping[str, Tensor]], split: _Split, *, levels: int) -> list[Tensor]:
    """The grids (n, *s) of all slices, one tensor a level: pass by pass, and in each the processes' parts in order."""
    passes = range(len(split.mirrors))
    names = [[_name(split, number, level) for number in passes] for level in range(levels)]
    return [torch.cat([part[name] for name in level for part in parts if name in part]) for level in names]


def _is_empty(dataset_dir: str | Path, split: str) -> bool:
    """Whether a split that could not be loaded is one that is not there, rather than one with missing files."""
    path = Path(dataset_dir) / "datalist.json"
    if not path.is_file():  # ready-made folders cannot list what is missing
        return True
    try:
        return not json.loads(path.read_text(encoding="utf-8")).get(split)
    except (ValueError, AttributeError):
        return False


def _batch(
    items: Sequence[Mapping[str, Any]], preprocessing: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> Tensor:
    images = [
        convert_to_tensor(preprocessing(dict(item))["image"], dtype=torch.float32, track_meta=False) for item in items
    ]
    _one_size([tuple(image.shape[1:]) for image in images])
    return torch.stack(images)


def _one_size(sizes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The size that all have; () stands for a size not known."""
    known = sorted({size for size in sizes if size})
    if len(known) > 1:
        raise InputError(f"Slices have different sizes {known}: give --image_size to pad or crop them")
    return known[0] if known else ()


@torch.inference_mode()
def _encode(autoencoder: Any, images_bcs: Tensor, *, mirror: bool) -> tuple[Tensor, ...]:
    device = next(autoencoder.parameters()).device
    images_bcs = images_bcs.flip(LEFT_RIGHT_AXIS[images_bcs.ndim - 2]) if mirror else images_bcs
    grids = autoencoder.encode(channels_last(images_bcs.to(device)))
    types = [code_type(size) for size in autoencoder.codebook_sizes]  # int64 would take four times the memory
    return tuple(codes_bs.to(dtype).cpu() for codes_bs, dtype in zip(grids, types, strict=True))


def _record(item: Mapping[str, Any], *, mirrored: bool) -> dict[str, Any]:
    """What JSON can hold of a record; of the image its file name, because folders move."""
    record: dict[str, Any] = {"image": Path(str(item["image"])).name}
    for name, value in item.items():
        missing = value is None or (isinstance(value, float) and not math.isfinite(value))
        if name != "image" and isinstance(value, str | int | float | bool) and not missing:
            record[name] = value
    if mirrored:
        record["mirrored"] = True
    return record
