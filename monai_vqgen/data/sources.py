"""Which scans a folder holds, whose they are, and what participants.tsv says about their owners."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from monai_vqgen.errors import DatalistError, InputError

__all__ = ["ScanRecord", "discover_volumes", "read_participants", "scan_stem", "subject_of"]

logger = logging.getLogger(__name__)

NIFTI_SUFFIXES = (".nii", ".nii.gz")
RESERVED = frozenset({"image", "subject", "plane", "position_mm"})
MISSING = frozenset({"", "n/a", "na", "nan"})  # BIDS writes n/a

SUBJECT_PATTERNS = (
    re.compile(r"(?:^|[_-])(sub-[A-Za-z0-9]+)"),  # BIDS
    re.compile(r"^(OAS[12]_\d{4})"),  # OASIS-1, OASIS-2: OAS1_0001_MR1
    re.compile(r"^(OAS3\d{4})"),  # OASIS-3: OAS30001_MR_d0129
)


class ScanRecord(NamedTuple):
    """One scan: a NIfTI file or the folder of a DICOM series."""

    path: Path
    subject: str
    name: str
    """Unique among the folder's scans: the subject, or the file's stem where a subject has several scans."""
    columns: dict[str, float | str]
    """What participants.tsv says about the subject: age, sex, group ..."""


def scan_stem(path: Path) -> str:
    """The file name without .nii, .nii.gz."""
    for suffix in (".nii.gz", ".nii"):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def subject_of(path: Path, *, pattern: str | None = None) -> str:
    """Whose scan it is: BIDS `sub-XX`, OASIS `OAS1_0001`, a pattern's first group, else the stem.

    Raises:
        InputError: for a pattern that is no regular expression.
    """
    stem = scan_stem(path)
    patterns: tuple[re.Pattern[str], ...] = SUBJECT_PATTERNS
    if pattern:
        try:
            patterns = (re.compile(pattern), *patterns)
        except re.error as error:
            raise InputError(f"subject_pattern {pattern!r} is no regular expression: {error}.") from error
    for candidate in patterns:
        match = candidate.search(stem)
        if match:
            return match.group(1) if candidate.groups else match.group(0)
    for parent in path.parents:  # sub-01/ses-1/anat/T1w.nii.gz
        match = SUBJECT_PATTERNS[0].fullmatch(parent.name)
        if match:
            return match.group(1)
    return stem


def _niftis(paths: Iterable[Path]) -> list[Path]:
    return [p for p in paths if p.name.lower().endswith(NIFTI_SUFFIXES) and not p.name.startswith(".") and p.is_file()]


def _walk(folder: Path) -> Iterable[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root) / name for name in sorted(files))


def _find(folder: Path, suffix: str) -> list[Path]:
    bids = [path for path in _niftis(_walk(folder)) if path.parent.name == "anat" and "sub-" in str(path)]
    if bids:
        bids = [path for path in bids if scan_stem(path).endswith(suffix)]
        if not bids:
            raise DatalistError(f"{folder} is a BIDS tree without a *_{suffix} scan; choose another suffix.")
        return bids
    flat = _niftis(folder.iterdir())
    if flat:
        return flat
    from monai_vqgen.data.dicom import dicom_series_folders

    return dicom_series_folders(_walk(folder)) or _niftis(_walk(folder))


def discover_volumes(
    folder: str | Path, *, suffix: str = "T1w", subject_pattern: str | None = None
) -> list[ScanRecord]:
    """Find the scans of a folder, sorted by subject and name whatever order the file system gives.

    In this order, the first that is there: a BIDS tree (`sub-*/[ses-*]/anat/*_T1w.nii.gz`), a flat folder of NIfTI
    files, folders of DICOM series (one series a folder), NIfTI files in any sub-folder.

    Args:
        folder: where the scans lie; `participants.tsv` beside them is joined by subject.
        suffix: which BIDS contrast to take.
        subject_pattern: a regular expression whose first group is the subject, for names that are neither BIDS nor
            OASIS; otherwise the file's stem is its own subject.

    Raises:
        DatalistError: the folder does not exist or holds no scans.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatalistError(f"{folder} is no folder; give the folder that holds the scans.")
    paths = _find(folder, suffix)
    if not paths:
        raise DatalistError(f"{folder} holds no scans; NIfTI files (.nii, .nii.gz), a BIDS tree or DICOM are due.")
    participants = read_participants(folder / "participants.tsv")
    subjects = {path: subject_of(path, pattern=subject_pattern) for path in paths}
    several = {s for s in subjects.values() if sum(other == s for other in subjects.values()) > 1}
    records = []
    names: set[str] = set()
    for path in sorted(paths, key=lambda p: (subjects[p], p.relative_to(folder).as_posix())):
        subject = subjects[path]
        name = scan_stem(path) if subject in several else subject
        if name in names:
            name = "_".join(path.relative_to(folder).with_name(scan_stem(path)).parts)
        names.add(name)
        records.append(ScanRecord(path, subject, name, participants.get(subject, {})))
    return records


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def read_participants(path: Path) -> dict[str, dict[str, float | str]]:
    """Read a BIDS participants.tsv; missing values are left out, numbers are numbers. No file, no entries."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    if rows and "participant_id" not in rows[0]:
        logger.warning("%s has no column participant_id; it is not used.", path)
        return {}
    table: dict[str, dict[str, float | str]] = {}
    for row in rows:
        entries = {k: v.strip() for k, v in row.items() if isinstance(k, str) and isinstance(v, str)}
        subject = entries.pop("participant_id", "")
        kept = {k: _value(v) for k, v in entries.items() if v.lower() not in MISSING and k not in RESERVED}
        table[subject] = kept
    return table
