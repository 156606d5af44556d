"""The scans of a folder and their subjects."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from monai_vqgen.data.io.dicom import dicom_series_folders, patient_id
from monai_vqgen.data.slices.participants import read_participants, rows_of_subjects
from monai_vqgen.errors import DatalistError, InputError

__all__ = ["FoundScans", "ScanOptions", "ScanRecord", "discover_volumes", "find_scans", "scan_stem", "subject_of"]

logger = logging.getLogger(__name__)

NIFTI_SUFFIXES = (".nii", ".nii.gz")
SUBJECT_PATTERNS = (
    re.compile(r"(?:^|[_-])(sub-[A-Za-z0-9]+)"),  # BIDS
    re.compile(r"^(OAS[12]_\d{4})"),  # OASIS-1, OASIS-2: OAS1_0001_MR1
    re.compile(r"^(OAS3\d{4})"),  # OASIS-3: OAS30001_MR_d0129
    re.compile(r"(?:^|[_-])((?:patient|subject|subj|sub)[-_]?\d+)", re.IGNORECASE),  # openms_long_patient01_study1
)
LEFT_OUT = frozenset({"derivatives", "sourcedata"})  # BIDS: made from the scans, and what they were made from
LONGEST_NAME = 150  # bytes of 255 that file systems allow; plane, position and suffixes follow
NOT_IN_NAMES = re.compile(r'[/\\:*?"<>|\x00-\x1f]+')  # not allowed in file names on some system


class ScanRecord(NamedTuple):
    """One scan: a NIfTI file or the folder of a DICOM series."""

    path: Path
    subject: str
    name: str
    """Unique among the folder's scans: the subject, or the file's stem where a subject has several scans."""
    columns: dict[str, float | str]
    """The subject's columns in participants.tsv: age, sex, group ..."""
    guessed: bool = False
    """No name or header gave the subject: the file's stem, or the series' folder, is used instead."""


class FoundScans(NamedTuple):
    """The scans of a folder, and what in it is left out: file or folder, and reason."""

    records: list[ScanRecord]
    skipped: list[dict[str, str]]


class ScanOptions(NamedTuple):
    """Which scans of a folder are taken, and how their subjects are named; see `discover_volumes`.

    Attributes:
        suffix: BIDS contrast.
        subject_pattern: regular expression for the subject in a file's name or path.
        source: free text about the data, copied into the datalist.
    """

    suffix: str = "T1w"
    subject_pattern: str | None = None
    source: str = ""


def scan_stem(path: Path) -> str:
    """The file name without .nii, .nii.gz."""
    for suffix in (".nii.gz", ".nii"):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def subject_of(path: Path, *, pattern: str | None = None, patient: str | None = None) -> str | None:
    """The subject of a scan, or None where nothing names it.

    The first that matches: the pattern, the patient of a DICOM header, then the names of the file and of its folders:
    BIDS `sub-XX`, OASIS `OAS1_0001`, `patient01`, `subject_7`.

    Args:
        path: relative to the data set, so that folders above it do not matter.
        pattern: a regular expression, tried on the file's stem, then on the path with slashes; its first group, if
            any, is the subject.
        patient: PatientID of a DICOM series.

    Raises:
        InputError: the pattern is not a regular expression.

    Examples:
        >>> subject_of(Path("ds/sub-01_ses-2_T1w.nii.gz")), subject_of(Path("long_patient04_study2.nii"))
        ('sub-01', 'patient04')
    """
    stem = scan_stem(path)
    if pattern:
        try:
            own = re.compile(pattern)
        except re.error as error:
            raise InputError(f"subject_pattern {pattern!r} is not a regular expression: {error}") from error
        match = own.search(stem) or own.search(path.with_name(stem).as_posix())
        if match:
            return (match.group(1) if own.groups else None) or match.group(0)
    if patient:
        return patient
    for name in (stem, *(parent.name for parent in path.parents)):
        for candidate in SUBJECT_PATTERNS:
            match = candidate.search(name)
            if match:
                return match.group(1)
    return None


def _walk(folder: Path, skipped: list[dict[str, str]]) -> list[Path]:
    """The files below a folder; linked folders come last, and none is entered twice, so that loops of links end."""

    def refuse(error: OSError) -> None:
        skipped.append(_skip(Path(error.filename), folder, f"cannot be listed ({error.strerror}); change permissions"))

    files: list[Path] = []
    waiting, entered = [folder], dict[str, Path]()
    while waiting:
        top = waiting.pop(0)
        for root, folders, names in os.walk(top, onerror=refuse):
            place, real = Path(root), os.path.realpath(root)
            if (earlier := entered.setdefault(real, place)) != place:
                again = _inside(earlier, folder).as_posix()
                skipped.append(_skip(place, folder, f"is the folder {again} again (a link); counted once"))
                folders.clear()
                continue
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in LEFT_OUT)
            waiting += [place / name for name in folders if (place / name).is_symlink()]
            files += [place / name for name in sorted(names)]
    return files


def _skip(path: Path, folder: Path, reason: str) -> dict[str, str]:
    name = _inside(path, folder).as_posix()
    return {"file": name, "reason": f"{name}: {reason}"}


def _find(folder: Path, suffix: str, skipped: list[dict[str, str]]) -> list[Path]:
    files = _walk(folder, skipped)
    named = [path for path in files if path.name.lower().endswith(NIFTI_SUFFIXES) and not path.name.startswith(".")]
    niftis = [path for path in named if path.is_file() or (path.is_symlink() and not path.is_dir())]
    packed = {str(path) for path in niftis}
    for path in [path for path in niftis if path.name.endswith(".nii") and f"{path}.gz" in packed]:
        skipped.append(_skip(path, folder, f"lies beside {path.name}.gz, the same scan packed; remove one of the two"))
        niftis.remove(path)
    below = {path: path.relative_to(folder).parts for path in niftis}
    bids = [p for p, parts in below.items() if "anat" in parts[-2:-1] and any(n.startswith("sub-") for n in parts)]
    if bids:
        bids = [path for path in bids if scan_stem(path).endswith(suffix)]
        if not bids:
            raise DatalistError(f"{folder} is a BIDS tree without a *_{suffix} scan; choose another suffix")
        return bids
    series = dicom_series_folders(sorted(set(files) - set(niftis)))
    taken = [path for path in niftis if path.parent == folder] or series or niftis
    others = Counter((*path.relative_to(folder).parts, ".")[0] for path in {*niftis, *series} - {*taken})
    for name, count in sorted(others.items()):
        reason = f"{count} scans beside those that are taken; move them, or give their folder"
        skipped.append(_skip(folder / name, folder, reason))
    return taken


def discover_volumes(
    folder: str | Path, *, suffix: str = "T1w", subject_pattern: str | None = None
) -> list[ScanRecord]:
    """The records of `find_scans`; what is left out is logged."""
    found = find_scans(folder, suffix=suffix, subject_pattern=subject_pattern)
    for entry in found.skipped:
        logger.warning("skipped: %s", entry["reason"])
    return found.records


def find_scans(folder: str | Path, *, suffix: str = "T1w", subject_pattern: str | None = None) -> FoundScans:
    """Find the scans of a folder, sorted by subject and name whatever order the file system gives.

    The first of these that is found: a BIDS tree (`sub-*/[ses-*]/anat/*_T1w.nii.gz`), a flat folder of NIfTI
    files, folders of DICOM series (one series a folder), NIfTI files in any sub-folder. `derivatives` and `sourcedata`
    are skipped; to use one, give it as the folder. Linked folders are followed. Of `scan.nii` and `scan.nii.gz` side
    by side the packed one is taken.

    Args:
        folder: of the scans; `participants.tsv` in it is joined by subject.
        suffix: which BIDS contrast to take.
        subject_pattern: a regular expression whose first group is the subject, for names that `subject_of` does not
            know; otherwise the file's stem (the series' folder, relative to the data set) is used as the subject.

    Raises:
        DatalistError: the folder does not exist or holds no scans.
        InputError: the pattern is not a regular expression.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatalistError(f"{folder} is not a folder: give the folder of the scans")
    skipped: list[dict[str, str]] = []
    paths = _find(folder, suffix, skipped)
    if not paths:
        raise DatalistError(
            f"{folder} holds no scans; expected NIfTI files (.nii, .nii.gz), a BIDS tree or DICOM series "
            "(derivatives and sourcedata are skipped)"
        )
    table = read_participants(folder / "participants.tsv")
    patients = {path: patient_id(path) if path.is_dir() else None for path in paths}
    found = {p: subject_of(_inside(p, folder), pattern=subject_pattern, patient=patients[p]) for p in paths}
    # series often have the same name ("T1", "1"): only the whole path distinguishes their subjects
    unnamed = {path: _inside(path, folder).as_posix() if path.is_dir() else scan_stem(path) for path in paths}
    subjects = {path: subject or unnamed[path] for path, subject in found.items()}
    participants = rows_of_subjects(table, subjects.values())
    scans_of = Counter(subjects.values())
    records = []
    names: set[str] = set()
    for path in sorted(paths, key=lambda p: (subjects[p], p.relative_to(folder).as_posix())):
        subject = subjects[path]
        name = _unused(names, scan_stem(path) if scans_of[subject] > 1 else subject, _inside(path, folder))
        names.add(name)
        records.append(ScanRecord(path, subject, name, participants.get(subject, {}), found[path] is None))
    return FoundScans(records, skipped)


def _inside(path: Path, folder: Path) -> Path:
    """The path relative to the data set; the folder's own name where it is itself the series."""
    return path.relative_to(folder) if path != folder else Path(folder.resolve().name)


def _unused(names: set[str], wish: str, path: Path) -> str:
    """A file name close to the wish that is not among the names: the path's parts, then a number; not too long."""
    name = _short(NOT_IN_NAMES.sub("_", wish))
    if name in names:
        name = _short("_".join(path.with_name(scan_stem(path)).parts))
    candidates = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return next(candidate for candidate in candidates if candidate not in names)


def _short(name: str) -> str:
    """A name that file systems take: the end of a longer one becomes a checksum."""
    encoded = os.fsencode(name)
    if len(encoded) <= LONGEST_NAME:
        return name
    return f"{encoded[: LONGEST_NAME - 9].decode(errors='ignore')}_{hashlib.sha256(encoded).hexdigest()[:8]}"
