"""Lists of slices: the datalist.json of `extract_slices`, or ready-made train / validate / test folders."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from monai_vqgen.errors import DatalistError, InputError
from monai_vqgen.transforms.geometry import PLANES

__all__ = ["SPLITS", "SliceGeometry", "evenly_spaced", "load_datalist", "read_slice_geometry", "records_digest"]

SPLITS = ("training", "validation", "test")
FOLDER_NAMES = {
    "training": ("training", "train"),
    "validation": ("validation", "validate", "valid", "val"),
    "test": ("test", "testing"),
}
IMAGE_SUFFIXES = (".png", ".nii", ".nii.gz")


class SliceGeometry(NamedTuple):
    """Plane and pixel size in mm of a folder's slices; None where unknown."""

    plane: str | None = None
    pixel_mm: float | None = None


def evenly_spaced(count: int, among: int) -> list[int]:
    """Indices of at most `count` of `among` items, evenly spaced, the first and the last included.

    Examples:
        >>> evenly_spaced(3, 10), evenly_spaced(5, 2), evenly_spaced(3, 0)
        ([0, 4, 9], [0, 1], [])
    """
    return [int(index) for index in np.linspace(0, among - 1, min(count, among)).round()]


def load_datalist(dataset_dir: str | Path, split: str) -> list[dict[str, Any]]:
    """The slices of one split as MONAI's list of dictionaries; `image` is an absolute path.

    Reads `datalist.json` if there is one; otherwise folders of PNG or NIfTI slices whose name, or its part after the
    last underscore, is a split's (train, validate, test and their synonyms).

    Args:
        dataset_dir: the folder.
        split: "training", "validation" or "test", or a synonym.

    Raises:
        DatalistError: an empty folder, an unreadable list, an empty split, or a listed file that is missing.
        InputError: an unknown split.
    """
    folder, split = Path(dataset_dir).resolve(), _split_of(split)
    if not folder.is_dir():
        raise DatalistError(f"{folder} is not a folder; give the folder that extract_slices wrote")
    items = _from_json(folder, split) if (folder / "datalist.json").is_file() else _from_folders(folder, split)
    if not items:
        raise DatalistError(f"{folder} has no {split} slices; extract more subjects or change the fractions")
    return items


def read_slice_geometry(dataset_dir: str | Path) -> SliceGeometry:
    """Read plane and pixel size from `datalist.json`; ready-made folders have none.

    Examples:
        >>> read_slice_geometry("/a/folder/of/png")
        SliceGeometry(plane=None, pixel_mm=None)
    """
    path = Path(dataset_dir) / "datalist.json"
    if not path.is_file():
        return SliceGeometry()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # reported by `load_datalist`
        return SliceGeometry()
    plane, pixel_mm = content.get("plane"), content.get("pixel_mm")
    known = isinstance(pixel_mm, int | float) and not isinstance(pixel_mm, bool) and pixel_mm > 0
    return SliceGeometry(plane if plane in PLANES else None, float(pixel_mm) if known else None)


def records_digest(records: Sequence[Mapping[str, Any]], folder: str | Path = "") -> str:
    """How many records a list has, and a checksum of all that they say, in order; for comparing two lists.

    Args:
        records: of slices; they can be written as JSON.
        folder: their images are taken relative to it, so that a data set may move.

    Examples:
        >>> records_digest([{"image": "/data/a.png", "age": 40}], "/data")
        '1 records, sha256 e533a8ccde16'
    """
    told = [
        {**record, "image": os.path.relpath(record["image"], folder)} if "image" in record and folder else record
        for record in records
    ]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return f"{len(told)} records, sha256 {digest[:12]}"


def _split_of(name: str) -> str:
    for split, names in FOLDER_NAMES.items():
        if name in names:
            return split
    raise InputError(f"split {name!r} is unknown; choose one of {', '.join(SPLITS)}")


def _from_json(folder: Path, split: str) -> list[dict[str, Any]]:
    path = folder / "datalist.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        items = [{**item, "image": str(folder / item["image"])} for item in content[split]]
    except (ValueError, KeyError, TypeError) as error:
        raise DatalistError(f"{path}: not a datalist with a list {split!r} ({error}); extract again") from error
    for item in items:
        if not Path(item["image"]).is_file():
            raise DatalistError(f"{path} lists {item['image']}, which is missing; extract again")
    return items


def _from_folders(folder: Path, split: str) -> list[dict[str, Any]]:
    names = FOLDER_NAMES[split]
    homes = sorted(p for p in folder.iterdir() if p.is_dir() and p.name.lower().split("_")[-1] in names)
    if not homes:
        raise DatalistError(
            f"{folder} has neither datalist.json nor a folder for {split} ({', '.join(names)}); "
            "run extract_slices on the scans, or rename the folders"
        )
    files = sorted(p for home in homes for p in home.rglob("*") if p.name.lower().endswith(IMAGE_SUFFIXES))
    return [{"image": str(p)} for p in files if not p.name.startswith(".")]
