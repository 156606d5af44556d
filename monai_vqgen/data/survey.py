"""What a folder of scans, or of ready-made slices, measures: voxels, brains, and what cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from monai_vqgen.data.io.volume import read_volume
from monai_vqgen.data.slices.datalists import evenly_spaced, load_datalist, read_slice_geometry
from monai_vqgen.data.slices.sources import ScanOptions, find_scans
from monai_vqgen.data.slices.splits import split_subjects
from monai_vqgen.errors import DatalistError, ScanError
from monai_vqgen.transforms import LoadSlice
from monai_vqgen.transforms.volume_slicing import prepare_volume

__all__ = ["Survey", "survey_folder"]

MOST_SCANS, MOST_SLICES = 64, 1000  # looked at: some seconds
COLORS = 3  # channels of a picture in color


class Survey(NamedTuple):
    """What was seen in a folder; n scans or slices could be read.

    Attributes:
        summary: what the folder holds.
        training: scans, or slices, of the training subjects.
        spacing_mm: `(n, 3)` of scans: between voxels from front to back, left to right, top to bottom; of slices none.
        extent_mm: `(n, 3)` likewise, from the first to the last voxel of the foreground's box.
        sizes: `(n, 2)` of slices, rows and columns; of scans none.
        plane: of slices, where it is known.
        complete: whether everything was looked at.
        skipped: file and reason of what cannot be used.
        channels: of slices, 3 where some are in color.
    """

    summary: str
    training: int
    spacing_mm: NDArray
    extent_mm: NDArray
    sizes: NDArray
    plane: str | None
    complete: bool
    skipped: list[dict[str, str]]
    channels: int = 1


def survey_folder(folder: str | Path, *, scans: ScanOptions | None = None) -> Survey:
    """Look at up to 64 scans, or 1,000 ready-made slices, evenly spaced among all; one at a time is in memory.

    Args:
        folder: of scans (NIfTI, BIDS, DICOM series), or of slices (with `datalist.json`, or folders by split).
        scans: which scans are taken, and how their subjects are named.

    Raises:
        DatalistError: no such folder, nothing usable in it, volumes that were cut, or too few subjects for three parts.
        InputError: scans and slices in one folder.
    """
    folder = Path(folder)
    if not (folder / "datalist.json").is_file():
        try:
            load_datalist(folder, "training")
        except DatalistError:
            return _scans(folder, scans or ScanOptions())
    return _slices(folder)


def _scans(folder: Path, options: ScanOptions) -> Survey:
    records, left_out = find_scans(folder, suffix=options.suffix, subject_pattern=options.subject_pattern)
    training = set(split_subjects(record.subject for record in records).training)
    seen, skipped = _look_at([record.path for record in records], _measure_scan, most=MOST_SCANS)
    summary = f"{folder}: {len(records)} scans of {len({record.subject for record in records})} subjects"
    count, complete = sum(record.subject in training for record in records), len(records) <= MOST_SCANS
    spacing_mm, extent_mm = np.swapaxes(np.array(seen), 0, 1)
    none = np.empty((0, 2), int)
    return Survey(summary, count, spacing_mm, extent_mm, none, None, complete, [*left_out, *skipped])


def _measure_scan(path: Path) -> tuple[NDArray, NDArray]:
    volume = read_volume(path)
    prepared = prepare_volume(volume.voxels_s, volume.affine, "axial", name=str(path))
    if not prepared.window.high > prepared.window.low:
        raise ScanError(f"{path}: the volume is constant; exclude the scan or export it again")
    spacing_mm = np.array(prepared.view.spacing)
    return spacing_mm, (np.subtract(prepared.box.stop, prepared.box.start) - 1) * spacing_mm


def _slices(folder: Path) -> Survey:
    if (geometry := read_slice_geometry(folder)).dimensions == 3:
        raise DatalistError(f"{folder} holds volumes, and plans are of slices: train with --size volumes_64")
    parts = {split: load_datalist(folder, split) for split in ("training", "validation")}
    records = [record for part in parts.values() for record in part]
    paths = [Path(record["image"]) for record in records]
    seen, skipped = _look_at(paths, _measure_slice, most=MOST_SLICES)
    summary = ", ".join([f"{folder}: slices", *(f"{len(part)} for {split}" for split, part in parts.items())])
    none, plane = np.empty((0, 3)), geometry.plane
    complete = len(records) <= MOST_SLICES
    channels_n, sizes_n = np.array(seen)[:, 0], np.array(seen)[:, 1:]
    return Survey(
        summary, len(parts["training"]), none, none, sizes_n, plane, complete, skipped, channels=int(channels_n.max())
    )


def _measure_slice(path: Path) -> tuple[int, ...]:
    """Channels, rows and columns."""
    try:
        return tuple(LoadSlice()(path).shape)
    except ScanError as error:
        try:
            return tuple(LoadSlice(channels=COLORS)(path).shape)
        except ScanError:
            raise error from None


def _look_at(
    paths: Sequence[Path], measure: Callable[[Path], Any], *, most: int
) -> tuple[list[Any], list[dict[str, str]]]:
    """Measures of at most so many files, evenly spaced, and those that cannot be read."""
    seen, skipped = [], []
    for i in tqdm(evenly_spaced(most, len(paths)), desc="looking", unit="file", leave=False):
        try:
            seen.append(measure(paths[i]))
        except Exception as error:  # a file from anywhere can raise anything in a reader, and costs no more than itself
            told = str(error).removeprefix(f"{paths[i]}: ") if isinstance(error, ScanError) else repr(error)
            skipped.append({"file": paths[i].name, "reason": told})
    if not seen:
        raise DatalistError(f"none of {len(paths)} files can be used, {paths[0]} because of: {skipped[0]['reason']}")
    return seen, skipped
