"""Lists of slices: the datalist.json of `extract_slices`, ready-made train / validate / test folders, or pictures."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pooch

from monai_vqgen.data.slices.participants import MISSING, number_in, read_table
from monai_vqgen.data.slices.sources import subject_of
from monai_vqgen.data.slices.splits import split_subjects
from monai_vqgen.errors import DatalistError, InputError
from monai_vqgen.files import read_json
from monai_vqgen.transforms.geometry import PLANES
from monai_vqgen.transforms.loading import PICTURE_SUFFIXES

__all__ = [
    "SPLITS",
    "SliceGeometry",
    "evenly_spaced",
    "load_datalist",
    "loose_pictures",
    "read_slice_geometry",
    "records_digest",
]

logger = logging.getLogger(__name__)

SPLITS = ("training", "validation", "test")
FOLDER_NAMES = {
    "training": ("training", "train"),
    "validation": ("validation", "validate", "valid", "val"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {name: split for split, names in FOLDER_NAMES.items() for name in names}
NIFTI_SUFFIXES = (".nii", ".nii.gz")
LABELS = "labels.csv"
_AS_WRITTEN = ("label", "subject")  # columns of words, even where they are digits
FARTHEST_MM = 1e4  # of a slice from anything in a scan


class SliceGeometry(NamedTuple):
    """Plane and pixel size in mm of a folder's slices; None where unknown. Of volumes: no plane, and 3 dimensions."""

    plane: str | None = None
    pixel_mm: float | None = None
    dimensions: int = 2


def evenly_spaced(count: int, among: int) -> list[int]:
    """Indices of at most `count` of `among` items, evenly spaced, the first and the last included.

    Examples:
        >>> evenly_spaced(3, 10), evenly_spaced(5, 2), evenly_spaced(3, 0)
        ([0, 4, 9], [0, 1], [])
    """
    return [int(index) for index in np.linspace(0, among - 1, min(count, among)).round()]


def load_datalist(dataset_dir: str | Path, split: str, *, disjoint: bool = True) -> list[dict[str, Any]]:
    """The slices of one split as MONAI's list of dictionaries; `image` is an absolute path.

    Reads `datalist.json` if there is one; otherwise folders of slices (NIfTI, PNG, JPEG, BMP, TIFF) whose name, or its
    part after the last underscore, is a split's (train, validate, test and their synonyms). Other files in them are
    logged. A folder of pictures alone is divided by `split_subjects`: by subject where names tell it, as `subject_of`
    has it, else each for itself.

    `labels.csv` in the folder, or in that of a split, has the columns image (a path relative to it), label, and any
    others; they go into the records. Without it sub-folders with two names or more are labels, unless they name
    subjects.

    Args:
        dataset_dir: the folder.
        split: "training", "validation" or "test", or a synonym.
        disjoint: refuse a list with a subject or file in two splits.

    Raises:
        DatalistError: an empty folder, an unreadable list, an empty split, a listed file that is missing or outside the
            folder, a subject or file in two splits, or labels without one of these columns.
        InputError: an unknown split, or volumes beside the folders of slices.
    """
    folder, wish = Path(dataset_dir).resolve(), split
    if (split := _SPLIT_OF.get(wish, "")) not in SPLITS:
        raise InputError(f"split {wish!r} is unknown; choose one of {', '.join(SPLITS)}")
    if not folder.is_dir():
        raise DatalistError(
            f"{folder} is not a folder: give the folder of slices that extract_slices.json wrote, or pictures by split"
        )
    listed = (folder / "datalist.json").is_file()
    items = _from_json(folder, split, disjoint) if listed else _from_folders(folder, split, disjoint)
    if not items:
        raise DatalistError(f"{folder} has no {split} slices; extract more subjects or change the fractions")
    return items


def read_slice_geometry(dataset_dir: str | Path) -> SliceGeometry:
    """Read plane and pixel size from `datalist.json`; ready-made folders have none.

    Examples:
        >>> read_slice_geometry("/a/folder/of/png")
        SliceGeometry(plane=None, pixel_mm=None, dimensions=2)
    """
    path = Path(dataset_dir) / "datalist.json"
    if not path.is_file():
        return SliceGeometry()
    try:
        content = read_json(path)
    except ValueError:  # reported by `load_datalist`
        return SliceGeometry()
    plane, pixel_mm = content.get("plane"), content.get("pixel_mm")
    known = isinstance(pixel_mm, int | float) and not isinstance(pixel_mm, bool)
    size = float(pixel_mm) if known and pixel_mm and pixel_mm > 0 else None
    image_size = content.get("image_size")
    dimensions = 3 if isinstance(image_size, list) and len(image_size) == 3 else 2
    return SliceGeometry(plane if isinstance(plane, str) and plane in PLANES else None, size, dimensions)


def records_digest(records: Sequence[Mapping[str, Any]], folder: str | Path = "") -> str:
    """How many records a list has, and a checksum of all that they say and of their files; for comparing two lists.

    Args:
        records: of slices; they can be written as JSON.
        folder: their images are taken relative to it, so that a data set may move, and read; without one neither.

    Examples:
        >>> records_digest([{"subject": "a", "age": 40}])
        '1 records, sha256 755196676b55'
    """
    home = Path(folder).resolve()  # as `load_datalist` has it
    told = [
        {**record, "image": os.path.relpath(record["image"], home), "sha256": pooch.file_hash(record["image"])}
        if "image" in record and folder
        else record
        for record in records
    ]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return f"{len(told)} records, sha256 {digest[:12]}"


def _from_json(folder: Path, split: str, disjoint: bool) -> list[dict[str, Any]]:
    path = folder / "datalist.json"
    try:
        content = read_json(path)
        parts = {name: [dict(item) for item in content[name]] for name in SPLITS if name in content or name == split}
        for item in (item for items in parts.values() for item in items):
            item["image"] = os.path.normpath(folder / item["image"])
    except (ValueError, KeyError, TypeError) as error:
        raise DatalistError(f"{path}: not a datalist with a list {split!r} ({error}); extract again") from error
    for key in ("subject", "image") if disjoint else ():
        told = _file if key == "image" else _told
        named = [
            {told(item[key]): item[key] for item in items if item.get(key) is not None} for items in parts.values()
        ]
        counts = Counter(name for part in named for name in part)
        if twice := sorted(str(part[name]) for part in named for name in part if counts[name] > 1):
            raise DatalistError(
                f"{path}: {key} {twice[0]} is in more than one split; extract again, or correct the list"
            )
    for item in parts[split]:
        place = item.get("position_mm") or 0
        if isinstance(place, bool) or not isinstance(place, int | float) or abs(place) > FARTHEST_MM:
            raise DatalistError(f"{path}: position_mm of {item['image']} is {place!r}, no place in a head; correct it")
        if folder not in Path(item["image"]).parents:  # as written: links inside may lead elsewhere
            raise DatalistError(f"{path} lists {item['image']}, which is outside the folder; move it inside")
        if not os.path.isfile(item["image"]):  # which takes names of any length
            raise DatalistError(f"{path} lists {item['image']}, which is missing; extract again")
    return parts[split]


def _file(path: str | Path) -> str:
    """What all links to one file have in common; the path where there is none."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):  # names that no file can have
        return str(path)
    return f"{state.st_dev} {state.st_ino}"


def _told(value: Any) -> str:
    """A name in one spelling: 1 for 1.0, and composed characters."""
    whole = isinstance(value, float) and value.is_integer()
    return unicodedata.normalize("NFC", str(int(value) if whole else value))


def _from_folders(folder: Path, split: str, disjoint: bool) -> list[dict[str, Any]]:
    homes = _homes(folder)
    own = sorted(home for home in homes if _split_named(home) == split)
    if loose := loose_pictures(folder):
        return _divided(folder, loose, split)
    if not own:
        raise DatalistError(
            f"{folder} has neither datalist.json nor a folder for {split} ({', '.join(FOLDER_NAMES[split])}); "
            "run extract_slices on the scans, or rename the folders"
        )
    outside = [p for p in folder.rglob("*") if p.name.lower().endswith(NIFTI_SUFFIXES) and not homes & {*p.parents}]
    if outside:
        raise InputError(
            f"{folder} holds both slices ({own[0].name}) and other NIfTI files, {len(outside)} of them (for example "
            f"{min(outside).relative_to(folder)}); give the folder of the scans or that of the slices, apart"
        )
    files = sorted(p for home in own for p in home.rglob("*") if p.is_file() and not p.name.startswith("."))
    slices = [p for p in files if p.name.lower().endswith((*NIFTI_SUFFIXES, *PICTURE_SUFFIXES))]
    if others := sorted(p for p in set(files) - set(slices) if p.name != LABELS):
        logger.warning("%s: %d files are no slices (for example %s)", folder, len(others), others[0].name)
    mine = {_file(path) for path in slices}
    there = sorted(p for home in homes - {*own} for p in home.rglob("*") if p.is_file() and p.name != LABELS)
    if disjoint and (twice := next((path for path in there if _file(path) in mine), None)):
        raise DatalistError(
            f"{folder}: {twice.relative_to(folder)} is a file of another split too, by a link; remove it"
        )
    tables = [home / LABELS for home in (folder, *own)]
    labels = {path: columns for table in tables for path, columns in _read_labels(table).items()}
    labels = labels or {path: columns for home in own for path, columns in _folder_labels(home, slices).items()}
    return [{"image": str(p), **labels.get(str(p), {})} for p in slices]


def loose_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder that holds hardly anything else and is not divided, in order; of another folder none."""
    if (folder / "datalist.json").is_file() or _homes(folder):
        return []
    hidden = re.compile(r"(^|/)\.")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not hidden.search(p.relative_to(folder).as_posix()))
    pictures = [p for p in files if p.name.lower().endswith(PICTURE_SUFFIXES)]
    scans = any(p.name.lower().endswith(NIFTI_SUFFIXES) for p in files)
    return pictures if not scans and 2 * len(pictures) > len(files) else []


def _divided(folder: Path, pictures: Sequence[Path], split: str) -> list[dict[str, Any]]:
    """The records of one part of pictures in no folders by split: seeded, so that every call divides alike."""
    labels = _read_labels(folder / LABELS) or _folder_labels(folder, pictures)
    records, groups = [], []
    for path in pictures:
        inside = path.relative_to(folder)
        subject = subject_of(inside)
        records.append({"image": str(path), **({"subject": subject} if subject else {}), **labels.get(str(path), {})})
        groups.append(str(records[-1].get("subject", inside)))
    if (count := len(set(groups))) < len(SPLITS):
        raise DatalistError(f"{folder} holds pictures of {count} subjects; give 3 or more, or train, validate and test")
    parts = split_subjects(groups)
    if split == SPLITS[0]:
        counts = ", ".join(f"{len(part)} for {name}" for name, part in parts._asdict().items())
        kind = "subjects" if any("subject" in record for record in records) else "pictures"
        logger.info("%s has no folders by split; its %s are divided: %s", folder, kind, counts)
    return [record for record, group in zip(records, groups, strict=True) if group in getattr(parts, split)]


def _read_labels(path: Path) -> dict[str, dict[str, Any]]:
    """The columns of each image in a table, by its path; none where there is no table."""
    if not path.is_file():
        return {}
    (names, *rows) = [[cell.strip() for cell in row] for row in read_table(path)] or [[]]
    if lacking := [name for name in ("image", "label") if name not in names]:
        raise DatalistError(
            f"{path} has the columns {', '.join(names) or 'none'}, not {lacking[0]}; give image and label"
        )
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        known = {name: text for name, text in zip(names, row, strict=False) if name and text.lower() not in MISSING}
        image = os.path.normpath(path.parent / known.pop("image", ""))
        if path.parent not in Path(image).parents or not os.path.isfile(image):
            raise DatalistError(f"{path} names {os.path.relpath(image, path.parent)}, which is missing there; mend it")
        if image in found:
            raise DatalistError(f"{path} names {os.path.relpath(image, path.parent)} twice; mend it")
        numbers = {name: number_in(text) for name, text in known.items() if name not in _AS_WRITTEN}
        found[image] = {**known, **{name: number for name, number in numbers.items() if number is not None}}
    return found


def _folder_labels(home: Path, pictures: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """The sub-folder of each picture as its label, where all lie in one and there are several."""
    names = {path: path.relative_to(home).parts[0] for path in pictures if home in path.parents}
    labels = {name for path, name in names.items() if path.parent != home}
    plain = any(path.parent == home or subject_of(Path(name)) for path, name in names.items())
    return {} if plain or len(labels) < 2 else {str(path): {"label": name} for path, name in names.items()}


def _homes(folder: Path) -> set[Path]:
    """The folders that are named after splits."""
    return {p for p in folder.iterdir() if p.is_dir() and _split_named(p)}


def _split_named(folder: Path) -> str | None:
    """The split that a folder's name stands for."""
    return _SPLIT_OF.get(folder.name.lower().split("_")[-1])
