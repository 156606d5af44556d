"""Lists of slices to train on: a datalist.json of `extract_slices`, or ready-made train / validate / test folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monai_vqgen.errors import DatalistError, InputError

__all__ = ["SPLITS", "load_datalist"]

SPLITS = ("training", "validation", "test")
FOLDER_NAMES = {
    "training": ("training", "train"),
    "validation": ("validation", "validate", "valid", "val"),
    "test": ("test", "testing"),
}
IMAGE_SUFFIXES = (".png", ".nii", ".nii.gz")


def _split_of(name: str) -> str:
    for split, names in FOLDER_NAMES.items():
        if name == split or name in names:
            return split
    raise InputError(f"split {name!r} is unknown; choose one of {', '.join(SPLITS)}.")


def load_datalist(dataset_dir: str | Path, split: str) -> list[dict[str, Any]]:
    """The slices of one split as MONAI's list of dictionaries; `image` is an absolute path.

    Reads `datalist.json` where there is one; otherwise folders whose name, or its part after the last underscore,
    is a split's (train, validate, test and their synonyms), of PNG or NIfTI slices.

    Args:
        dataset_dir: the folder.
        split: "training", "validation" or "test", or a synonym.

    Raises:
        DatalistError: nothing there, an unreadable list, an empty split, a listed file that is missing.
    """
    folder, split = Path(dataset_dir).resolve(), _split_of(split)
    if not folder.is_dir():
        raise DatalistError(f"{folder} is no folder; give the folder that extract_slices wrote.")
    items = _from_json(folder, split) if (folder / "datalist.json").is_file() else _from_folders(folder, split)
    if not items:
        raise DatalistError(f"{folder} has no {split} slices; extract more subjects or change the fractions.")
    return items


def _from_json(folder: Path, split: str) -> list[dict[str, Any]]:
    path = folder / "datalist.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        items = [{**item, "image": str(folder / item["image"])} for item in content[split]]
    except (ValueError, KeyError, TypeError) as error:
        raise DatalistError(f"{path}: not a datalist with a list {split!r} ({error}); extract again.") from error
    for item in items:
        if not Path(item["image"]).is_file():
            raise DatalistError(f"{path} lists {item['image']}, which is missing; extract again.")
    return items


def _from_folders(folder: Path, split: str) -> list[dict[str, Any]]:
    names = FOLDER_NAMES[split]
    homes = sorted(p for p in folder.iterdir() if p.is_dir() and p.name.lower().split("_")[-1] in names)
    if not homes:
        raise DatalistError(
            f"{folder} holds neither datalist.json nor a folder for {split} ({', '.join(names)}); "
            "run extract_slices on the scans, or name the folders so."
        )
    files = sorted(p for home in homes for p in home.rglob("*") if p.name.lower().endswith(IMAGE_SUFFIXES))
    return [{"image": str(p)} for p in files if not p.name.startswith(".")]
