"""The stage between the autoencoder and the priors: every slice is encoded once, and its codes are kept.

Shape suffixes: b batch, c channels, n slices, s spatial axes (2 or 3).
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.utils import convert_to_tensor
from torch import Tensor, nn
from tqdm import tqdm

from monai_vqgen.data import load_datalist, read_slice_geometry
from monai_vqgen.data.code_store import CodeStore, save_codes
from monai_vqgen.engines.batches import channels_last
from monai_vqgen.errors import DatalistError, InputError
from monai_vqgen.networks import fingerprint

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

    Example:
        >>> check_mirroring("axial")
    """
    if plane == "sagittal" and probability > 0:
        raise InputError(
            "Sagittal slices cannot be mirrored: their last axis runs from front to back, not from left to right. "
            "Leave mirror_probability at 0 and mirror_training at false."
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

    Args:
        autoencoder: trained, on the device it is to run on.
        dataset_dir: slices with `datalist.json`, or ready-made train / validate / test folders.
        output_dir: folder of the code store.
        preprocessing: the transform that training used; makes {"image": (c, *s)} of a record.
        batch_size: slices encoded at once.
        mirror_training: also store the training slices mirrored left to right (the last axis), marked "mirrored" in
            their records. Twice the training data for the priors, where left and right are alike.

    Raises:
        InputError: a batch size below one, slices of different sizes, or mirrored copies of sagittal slices.
        DatalistError: a split that training needs is missing, or a listed slice.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} must be at least 1.")
    geometry = read_slice_geometry(dataset_dir)
    if mirror_training:
        check_mirroring(geometry.plane)
    module: Any = autoencoder.eval()
    grids: dict[str, list[Tensor]] = {}
    records: dict[str, list[dict[str, Any]]] = {}
    image_size: tuple[int, ...] = ()
    for split in _SPLITS:
        try:
            items = load_datalist(dataset_dir, split)
        except DatalistError:
            if split != "test" or not _is_empty(dataset_dir, split):  # priors need none, but half of one is a fault
                raise
            logger.warning("%s has no test split: its codes are left out.", dataset_dir)
            continue
        mirrors = [False, True] if mirror_training and split == "training" else [False]
        progress = tqdm(total=len(items), desc=f"codes of {split}", unit="slice")
        parts: list[tuple[Tensor, ...]] = []
        for images_bcs in _batches(items, preprocessing, batch_size):
            image_size = _same_size(image_size, images_bcs)
            parts += [_encode(module, images_bcs, mirror=mirror) for mirror in mirrors]
            progress.update(len(images_bcs))
        progress.close()
        ordered = [part for start in range(len(mirrors)) for part in parts[start :: len(mirrors)]]
        grids[split] = [torch.cat(level) for level in zip(*ordered, strict=True)]
        records[split] = [_record(item, mirrored=mirror) for mirror in mirrors for item in items]
    save_codes(
        output_dir,
        grids,
        records,
        codebook_sizes=module.codebook_sizes,
        fingerprint=fingerprint(autoencoder),
        image_size=image_size,
        geometry=geometry,
        codebooks_kd=module.codebooks(),
    )
    store = CodeStore(output_dir)
    logger.info("Wrote the codes of %s to %s", {split: len(rows) for split, rows in records.items()}, output_dir)
    return store


def _is_empty(dataset_dir: str | Path, split: str) -> bool:
    """Whether a split that could not be loaded is one that is not there, rather than one with missing files."""
    path = Path(dataset_dir) / "datalist.json"
    if not path.is_file():  # ready-made folders cannot list what is missing
        return True
    try:
        return not json.loads(path.read_text(encoding="utf-8")).get(split)
    except (ValueError, AttributeError):
        return False


def _batches(
    items: Sequence[Mapping[str, Any]], preprocessing: Callable[..., Mapping[str, Any]], batch_size: int
) -> Iterator[Tensor]:
    for start in range(0, len(items), batch_size):
        images = [
            convert_to_tensor(preprocessing(dict(item))["image"], dtype=torch.float32, track_meta=False)
            for item in items[start : start + batch_size]
        ]
        sizes = {tuple(image.shape) for image in images}
        if len(sizes) > 1:
            raise InputError(f"Slices have different sizes {sorted(sizes)}: give --image_size to pad or crop them.")
        yield torch.stack(images)


def _same_size(expected: tuple[int, ...], images_bcs: Tensor) -> tuple[int, ...]:
    size = tuple(images_bcs.shape[2:])
    if expected and size != expected:
        raise InputError(f"Slices have different sizes, {expected} and {size}: give --image_size to pad or crop them.")
    return size


@torch.inference_mode()
def _encode(autoencoder: Any, images_bcs: Tensor, *, mirror: bool) -> tuple[Tensor, ...]:
    device = next(autoencoder.parameters()).device
    images_bcs = images_bcs.flip(-1) if mirror else images_bcs
    return tuple(codes_bs.cpu() for codes_bs in autoencoder.encode(channels_last(images_bcs.to(device))))


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
