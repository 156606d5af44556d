"""What `inference.json` reads: whole volumes, or the slices of a split, each with its own geometry."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection, PathLike
from monai.data.image_writer import NibabelWriter
from monai.data.meta_tensor import MetaTensor
from monai.transforms import MapTransform

from monai_vqgen.data import discover_volumes, load_datalist, read_volume
from monai_vqgen.data.files import replace_path
from monai_vqgen.errors import DatalistError, ScanError
from monai_vqgen.transforms import LoadSlice

__all__ = ["CompleteNiftiWriter", "LoadScand", "model_pixel_mm", "reconstruction_names", "reconstruction_records"]

BUNDLE_PIXEL_MM = 1.736  # mm; `pixel_mm` of extract_slices.json


def reconstruction_records(dataset_dir: str | Path, split: str = "test") -> list[dict[str, Any]]:
    """What to reconstruct: the slices of a split where the folder holds a datalist, else every volume in it.

    Folders named train, validate and test hold slices too.

    Raises:
        DatalistError: the folder is missing, or holds neither slices nor volumes.
        InputError: no such split.
    """
    folder = Path(dataset_dir).resolve()
    try:
        return [dict(item) for item in load_datalist(folder, split)]
    except DatalistError:
        if not folder.is_dir() or (folder / "datalist.json").is_file():
            raise
    return [{"image": str(record.path), "subject": record.subject} for record in discover_volumes(folder)]


def model_pixel_mm(dataset_dir: str | Path, split: str = "test") -> float | None:
    """Pixel size to show a model: the bundle's own for volumes, none for slices, which have the model's already.

    A model trained on slices of another size needs `--pixel_mm`.
    """
    try:
        load_datalist(dataset_dir, split)
    except DatalistError:
        return BUNDLE_PIXEL_MM
    return None


def reconstruction_names(records: Sequence[Mapping[str, Any]], dataset_dir: str | Path, postfix: str) -> list[str]:
    """Where each reconstruction goes, relative to the output folder: the input's own path, with the postfix."""
    folder, names = Path(dataset_dir).resolve(), []
    for record in records:
        path = Path(record["image"])  # not resolved: a link's own name counts, as for the writer
        parent = path.parent.relative_to(folder) if folder in path.parents else Path()
        names.append((parent / f"{slice_stem(path)}_{postfix}.nii.gz").as_posix())
    return names


def slice_stem(path: Path) -> str:
    """The file name without .nii, .nii.gz, .png; the name of a DICOM folder as it is."""
    for suffix in (".nii.gz", ".nii", ".png"):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def _flat_shape(path: Path) -> tuple[int, ...] | None:
    """Shape of a NIfTI that is a single slice, else None; what cannot be read is left to the readers to explain."""
    try:
        shape = tuple(nib.load(path).shape)  # type: ignore[attr-defined]
    except Exception:
        return None
    return shape if len(shape) == 2 or 1 in shape[:3] else None


class LoadScand(MapTransform):
    """Load a volume `[1, X, Y, Z]`, or a slice in [0, 1]: NIfTI `[1, H, W, 1]`, PNG `[1, H, W]`; as MetaTensor.

    Volumes are read to the last byte and checked (`monai_vqgen.data.read_volume`): NIfTI or a folder of one DICOM
    series.

    Args:
        keys: entries of the dictionary that hold paths.
        allow_missing_keys: whether a dictionary may lack one of them.

    Raises:
        ScanError: the file is unreadable, truncated, or no grey-value volume or slice.
    """

    def __init__(self, keys: KeysCollection = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with images in place of paths."""
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            path = Path(str(loaded[key]))
            loaded[key] = _load(path)
        return loaded


def _load(path: Path) -> MetaTensor:
    if path.suffix.lower() == ".png":
        image = LoadSlice()(path)
        return MetaTensor(image.as_tensor(), affine=image.affine, meta=_meta(path, image.affine, image.shape[1:]))
    shape = _flat_shape(path)
    return _load_volume(path) if shape is None else _load_slice(path, shape)


def _meta(path: Path, affine: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    affine = torch.as_tensor(np.asarray(affine, dtype=np.float64))
    return {
        "filename_or_obj": str(path),
        "original_affine": affine.clone(),
        "spatial_shape": np.asarray(shape),
        "original_channel_dim": "no_channel",
        "space": "RAS",
    }


def _load_volume(path: Path) -> MetaTensor:
    volume = read_volume(path)
    values = torch.from_numpy(np.ascontiguousarray(volume.voxels_s, dtype=np.float32)) * volume.slope
    meta = _meta(path, volume.affine, tuple(values.shape))
    return MetaTensor(values[None], affine=torch.as_tensor(volume.affine), meta=meta)


def _load_slice(path: Path, shape: tuple[int, ...]) -> MetaTensor:
    if shape[2:] and set(shape[2:]) != {1}:
        raise ScanError(f"{path}: shape {shape} is neither a volume nor a slice [H, W, 1]; reorder its axes")
    image = LoadSlice()(path)
    values = image.as_tensor().reshape(1, *shape[:3])
    return MetaTensor(values, affine=image.affine, meta=_meta(path, image.affine, shape))


class CompleteNiftiWriter(NibabelWriter):
    """MONAI's NIfTI writer for one channel: `[H, W, 1]` keeps its third axis, a file at its name is complete."""

    def set_data_array(self, data_array: Any, *args: Any, **kwargs: Any) -> None:
        """Take `[1, X, Y, Z]` as it is; MONAI would also drop a last spatial axis of one voxel."""
        self.data_obj = np.asarray(data_array[0])

    def write(self, filename: PathLike, verbose: bool = False, **obj_kwargs: Any) -> None:
        """Write beside the file, then rename."""
        with replace_path(filename, durable=False) as partial:  # nibabel goes by the suffix, which it keeps
            super().write(partial, verbose=verbose, **obj_kwargs)
