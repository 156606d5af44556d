"""What `inference.json` reads: whole volumes, or the slices of a split, each with its own geometry."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms import MapTransform
from torch.utils.data import IterableDataset, get_worker_info
from tqdm import tqdm

from monai_vqgen.data import Volume, discover_volumes, load_datalist, read_volume
from monai_vqgen.data.io.volume import read_stored
from monai_vqgen.data.slices.datalists import loose_pictures
from monai_vqgen.errors import DatalistError, InputError, ScanError, root_cause
from monai_vqgen.models.record import ModelRecord
from monai_vqgen.transforms import LoadSlice
from monai_vqgen.transforms.loading import PICTURE_SUFFIXES
from monai_vqgen.transforms.nifti import StoredVoxels, nifti_shape
from monai_vqgen.transforms.tensors import as_numbers

__all__ = [
    "LoadScand",
    "UsableScans",
    "as_volume",
    "intensities",
    "model_pixel_mm",
    "reconstruction_records",
    "stored_voxels",
]

logger = logging.getLogger(__name__)

BUNDLE_PIXEL_MM = 1.736  # mm, of `extract_slices.json`: for weights whose record does not tell


def reconstruction_records(dataset_dir: str | Path, split: str = "test") -> list[dict[str, Any]]:
    """What to reconstruct: one file, the slices of a split where the folder holds a datalist, else every volume in it.

    Folders named train, validate and test hold slices too; of a folder of pictures alone all are taken.

    Raises:
        DatalistError: the folder is missing, or holds neither slices nor volumes.
        InputError: no such split.
    """
    folder = Path(dataset_dir).resolve()
    if folder.is_file():
        return [{"image": str(folder), "subject": folder.name.split(".")[0]}]
    if folder.is_dir() and (pictures := loose_pictures(folder)):
        return [{"image": str(path)} for path in pictures]
    try:
        return [dict(item) for item in load_datalist(folder, split)]
    except DatalistError:
        if not folder.is_dir():
            raise DatalistError(f"{folder} is not there: give a scan, or a folder of scans or of slices") from None
        if (folder / "datalist.json").is_file():
            raise
    return [{"image": str(record.path), "subject": record.subject} for record in discover_volumes(folder)]


def model_pixel_mm(record: ModelRecord, dataset_dir: str | Path, split: str = "test") -> float | None:
    """Pixel size in mm to resample scans to: the model's for volumes, None for slices, which have it already."""
    if Path(dataset_dir).suffix.lower() in PICTURE_SUFFIXES:
        return None
    try:
        load_datalist(dataset_dir, split)
    except DatalistError:
        return record.pixel_mm or BUNDLE_PIXEL_MM
    return None


def _flat_shape(path: Path, channels: int) -> tuple[int, ...] | None:
    """Shape of a NIfTI that is a single slice, else None; what cannot be read is left to the readers to explain."""
    try:
        shape = nifti_shape(path)
    except ScanError:
        return None
    is_channels_last = channels > 1 and shape[2:] == (channels,)
    return shape if len(shape) == 2 or 1 in shape[:3] or is_channels_last else None


class UsableScans(IterableDataset[dict[Hashable, Any]]):
    """Scans that can be used, one after the other; any other is a logged skip, counted at the end.

    The batches of a loader are as many as there are usable scans, which is known only at the end: it has no length.

    Args:
        data: dictionaries with the path of a scan.
        transform: reads one.
        check: raises ScanError for a scan that was read but cannot be used.
        key: the entry with the path, then with the scan.

    Raises:
        ScanError: none of the scans could be used.
        InputError: more than one worker, each of which would go through all scans.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Any], Any],
        *,
        check: Callable[[MetaTensor], None] | None = None,
        key: str = "image",
    ) -> None:
        self.data, self.transform, self.check, self.key = data, transform, check, key

    def __iter__(self) -> Iterator[dict[Hashable, Any]]:
        """Read the scans in order."""
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise InputError(f"dataloader::num_workers is {worker.num_workers}: use 0 or 1")
        faults = []
        for record in tqdm(self.data, desc="reconstructing", unit="scan"):
            item, fault = self._read(record)
            if fault is None:
                yield item
                continue
            faults.append(fault)
            logger.warning("skipped: %s", fault)
        if len(faults) == len(self.data):
            raise ScanError(f"none of the {len(faults)} scans could be used. {'; '.join(faults[:3])}")
        if faults:
            logger.warning("%d of %d scans were skipped for the reasons above", len(faults), len(self.data))

    def _read(self, record: Mapping[str, Any]) -> tuple[dict[Hashable, Any], str | None]:
        """The scan, or why it cannot be used."""
        try:
            item = self.transform(record)
            if self.check is not None:
                self.check(item[self.key])
        except Exception as error:
            fault = root_cause(error)
            if not isinstance(fault, ScanError):
                raise
            name = str(record[self.key])
            return {}, str(fault) if name in str(fault) else f"{name}: {fault}"
        return item, None


class LoadScand(MapTransform):
    """Load a volume `[1, X, Y, Z]`, or a slice in [0, 1]: NIfTI `[C, H, W, 1]`, PNG `[C, H, W]`; as MetaTensor.

    A NIfTI `[H, W, C]` of as many channels as `channels` is a slice, too, and `[C, H, W, 1]` after loading.

    Volumes are read to the last byte and checked (`monai_vqgen.data.read_volume`): NIfTI or a folder of one DICOM
    series.

    Args:
        keys: entries of the dictionary that hold paths.
        channels: of slices, as `LoadSlice` takes them; volumes have one.
        allow_missing_keys: whether a dictionary may lack one of them.

    Raises:
        ScanError: the file is unreadable, truncated, or no gray-value volume and no slice of as many channels.
    """

    def __init__(self, keys: KeysCollection = "image", *, channels: int = 1, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.channels = channels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with images in place of paths."""
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            loaded[key] = _load(Path(str(loaded[key])), self.channels)
        return loaded


def as_volume(volume: Any) -> MetaTensor:
    """A scan as a MetaTensor with its affine: read from a path, or from an array, which is taken as RAS+ at 1 mm.

    Raises:
        InputError: a picture, or an array that is no volume `(X, Y, Z)` or `(1, X, Y, Z)`.
        ScanError: a file that cannot be read.
    """
    if isinstance(volume, str | Path):
        path = Path(volume)
        if not path.exists():
            raise ScanError(f"{path} does not exist: give a NIfTI file or a folder with one DICOM series")
        if path.suffix.lower() in PICTURE_SUFFIXES:
            raise InputError(f"{path} is a picture, not a volume: load it with LoadSlice, and use encode and decode")
        image = _load(path)
        flat: Any = image[..., None] if image.ndim == 3 else image  # a slice [H, W] is no volume of a sagittal plane
        return flat
    image = volume if isinstance(volume, MetaTensor) else MetaTensor(as_numbers(volume, "the volume"))
    if image.ndim not in (3, 4) or (image.ndim == 4 and image.shape[0] != 1):
        raise InputError(f"the volume has shape {tuple(image.shape)}: give (X, Y, Z) or (1, X, Y, Z), one channel")
    return image


def intensities(volume: Volume) -> torch.Tensor:
    """Voxels times their slope, float32 `(X, Y, Z)`."""
    return torch.from_numpy(np.ascontiguousarray(volume.voxels_s, dtype=np.float32)) * volume.slope


def stored_voxels(scan: Any, image: MetaTensor) -> StoredVoxels:
    """Voxels `(X, Y, Z)` as a file stores those of its (first) volume; of anything else what `as_volume` made."""
    if isinstance(scan, str | Path) and _flat_shape(Path(scan), 1) is None:
        return read_stored(scan)
    values = image.as_tensor() if image.ndim == 3 else image.as_tensor()[0]
    return StoredVoxels(values.detach().cpu().numpy(), np.asarray(image.affine))


def _load(path: Path, channels: int = 1) -> MetaTensor:
    if path.suffix.lower() in PICTURE_SUFFIXES:
        image = LoadSlice(channels=channels)(path)
        return MetaTensor(image.as_tensor(), affine=image.affine, meta=_meta(path, image.affine, image.shape[1:]))
    shape = _flat_shape(path, channels)
    if shape is not None:
        return _load_slice(path, shape, channels)
    if channels > 1:
        raise ScanError(
            f"{path}: a volume has one channel, the model {channels}; give its slices [H, W, 1, {channels}]"
        )
    volume = read_volume(path)
    values = intensities(volume)
    meta = _meta(path, volume.affine, tuple(values.shape))
    return MetaTensor(values[None], affine=torch.as_tensor(volume.affine), meta=meta)


def _meta(path: Path, affine: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    affine = torch.as_tensor(np.asarray(affine, dtype=np.float64))
    return {
        "filename_or_obj": str(path),
        "original_affine": affine.clone(),
        "spatial_shape": np.asarray(shape),
        "original_channel_dim": "no_channel",
        "space": "RAS",
    }


def _load_slice(path: Path, shape: tuple[int, ...], channels: int) -> MetaTensor:
    if set(shape[2:]) - {1, channels}:
        raise ScanError(f"{path}: shape {shape} is neither a volume nor a slice [H, W, 1]; reorder its axes")
    image = LoadSlice(channels=channels)(path)
    values = image.as_tensor() if len(shape) == 2 else image.as_tensor()[..., None]
    return MetaTensor(values, affine=image.affine, meta=_meta(path, image.affine, tuple(values.shape[1:])))
