"""Public scans by name: an OpenNeuro data set's anatomical scans, as the BIDS tree that `discover_volumes` reads."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from tqdm import tqdm

from monai_vqgen.data.bucket_listing import StoredObject, list_objects
from monai_vqgen.data.downloads import RemoteFile, check_space, fetch_file, is_in_place
from monai_vqgen.data.web import check_patience, check_url
from monai_vqgen.errors import DownloadError, InputError

__all__ = ["OPENNEURO_URL", "OpenNeuroDownload", "download_openneuro"]

logger = logging.getLogger(__name__)

OPENNEURO_URL = "https://s3.amazonaws.com/openneuro.org"
ACCESSION = re.compile(r"ds[0-9]{6}")
# Who made the data, under which terms, and what is known about the subjects
ABOUT = (
    "dataset_description.json",
    "participants.tsv",
    "participants.json",
    "CHANGES",
    "LICENSE",
    "README",
    "README.md",
)
SUBJECT = re.compile(r"(?:sub-)?([A-Za-z0-9]+)")
SUFFIX = re.compile(r"[A-Za-z0-9]+")
SHA256 = re.compile(r"[0-9A-Fa-f]{64}")


class OpenNeuroDownload(NamedTuple):
    """What lies in the folder after a download."""

    folder: Path
    files: tuple[Path, ...]
    """All that were asked for, complete and checked, sorted: the scans and what is said about them."""
    fetched: int
    """How many of them were not there before."""


def download_openneuro(
    accession: str,
    folder: str | Path,
    *,
    subjects: Sequence[str] | None = None,
    suffix: str = "T1w",
    checksums: Mapping[str, str] | None = None,
    overwrite: bool = False,
    base_url: str | None = None,
    timeout_s: float = 30.0,
    retries: int = 5,
    progress: bool = True,
) -> OpenNeuroDownload:
    """Download the anatomical scans of an OpenNeuro data set, with participants.tsv and the data set's description.

        bucket/ds002748/sub-01/anat/sub-01_T1w.nii.gz  -->  folder/sub-01/anat/sub-01_T1w.nii.gz

    It is the data set's latest version, whose number `CHANGES` and `dataset_description.json` give. Each file is
    checked before it gets its name: size, and MD5 by the bucket's ETag or your SHA-256; for what an ETag does not
    prove see `monai_vqgen.data.checksums.find_fault`. A cut connection is taken up again where it stopped, and so is a
    whole download: run it again, and only what is missing is fetched.

    Args:
        accession: "ds" and six digits, for instance "ds002748", 72 adults (Bezmaternykh et al. 2021).
        folder: becomes the BIDS tree.
        subjects: which, as "01" or "sub-01"; None for all.
        suffix: which contrast, "T1w", "T2w", "FLAIR" ...
        checksums: SHA-256 by file name in the tree ("sub-01/anat/sub-01_T1w.nii.gz"), to be sure of getting the very
            files of an earlier study, and instead of the ETag where a mirror's is no MD5.
        overwrite: replace files of the folder that differ from the server's.
        base_url: of a mirror that lists its files as S3 does; None for OpenNeuro's own bucket.
        timeout_s: how long the server may be silent.
        retries: further attempts after a lost connection, for each file.
        progress: show a bar.

    Raises:
        InputError: an argument that cannot work, for instance the accession "ds2748".
        OutputExistsError: the folder holds other files of these names: edited ones, another version's or another data
            set's. Nothing is fetched, so that they do not mix.
        DownloadError: unknown data set or subject, server gone, wrong checksum, no space on the disk. The files in
            place are complete, and running it again resumes.

    Example:
        >>> download_openneuro("ds002748", "scans", subjects=["01", "02"]).files  # doctest: +SKIP
    """
    wanted_subjects = _check_arguments(accession, subjects, suffix, checksums or {})
    check_patience(timeout_s, retries)
    base_url, folder = check_url(OPENNEURO_URL if base_url is None else base_url), Path(folder)
    stored = _list_files(base_url, accession, wanted_subjects, timeout_s, retries)
    chosen = _choose(stored, accession, wanted_subjects, suffix)
    remote_files = _with_checksums(chosen, base_url, accession, checksums or {})
    files = {folder / name: remote for name, remote in remote_files.items()}
    to_fetch = {path: remote for path, remote in files.items() if not is_in_place(remote, path, overwrite=overwrite)}
    check_space(folder, to_fetch)
    total = sum(remote.size for remote in to_fetch.values())
    with tqdm(total=total, desc=accession, unit="B", unit_scale=True, disable=not progress) as bar:
        for path, remote in to_fetch.items():
            bar.set_postfix_str(path.name, refresh=False)
            fetch_file(remote, path, timeout_s=timeout_s, retries=retries, progress=bar.update)
    logger.info("%s: %d files in %s, %d of them fetched now.", accession, len(files), folder, len(to_fetch))
    return OpenNeuroDownload(folder, tuple(files), len(to_fetch))


def _check_arguments(
    accession: str, subjects: Sequence[str] | None, suffix: str, checksums: Mapping[str, str]
) -> list[str] | None:
    """The subjects without "sub-", sorted; InputError for what cannot work."""
    if not ACCESSION.fullmatch(accession):
        raise InputError(
            f'accession {accession!r} is none of OpenNeuro\'s; give "ds" and six digits, as in "ds002748".'
        )
    if not SUFFIX.fullmatch(suffix):
        raise InputError(f"suffix {suffix!r} is no BIDS suffix; give letters and digits, as in T1w.")
    for name, value in checksums.items():
        if not SHA256.fullmatch(value):
            raise InputError(f"the checksum {value!r} of {name} is no SHA-256; give 64 hexadecimal digits.")
    if subjects is None:
        return None
    matches = [] if isinstance(subjects, str) else [SUBJECT.fullmatch(subject) for subject in subjects]
    if not matches or None in matches:
        raise InputError(
            f'subjects {subjects!r} cannot be chosen; give a list of names as in ["01", "sub-02"], or None.'
        )
    return sorted({match.group(1) for match in matches if match})


def _list_files(
    base_url: str, accession: str, subjects: list[str] | None, timeout_s: float, retries: int
) -> list[StoredObject]:
    """What lies at the data set's top and in the subjects' folders; derivatives are not even listed."""
    top = list(list_objects(base_url, f"{accession}/", below=False, timeout_s=timeout_s, retries=retries))
    if not top:
        raise DownloadError(
            f"{base_url} has no data set {accession}; its page, if there is one, is "
            f"https://openneuro.org/datasets/{accession}. Check the number and that the data set is public."
        )
    prefixes = [f"{accession}/sub-"] if subjects is None else [f"{accession}/sub-{subject}/" for subject in subjects]
    for prefix in prefixes:
        top += list_objects(base_url, prefix, timeout_s=timeout_s, retries=retries)
    return top


def _choose(
    stored: Iterable[StoredObject], accession: str, subjects: list[str] | None, suffix: str
) -> dict[str, StoredObject]:
    """The scans and what is said about them, by name in the tree; only BIDS names, which lead nowhere else."""
    scan = re.compile(
        rf"sub-([A-Za-z0-9]+)/(?:ses-[A-Za-z0-9]+/)?anat/sub-\1_(?:[A-Za-z0-9+-]+_)*{suffix}\.nii(?:\.gz)?"
    )
    chosen, owners = {}, set()
    for item in stored:
        name = item.key.removeprefix(f"{accession}/")
        match = scan.fullmatch(name)
        if match or name in ABOUT:
            chosen[name] = item
        if match:
            owners.add(match.group(1))
    if not owners:
        raise DownloadError(
            f"{accession} has no *_{suffix} scan of the chosen subjects; choose another suffix or data set."
        )
    without = [f"sub-{subject}" for subject in subjects or () if subject not in owners]
    if without:
        raise DownloadError(f"{accession} has no *_{suffix} scan of {', '.join(without)}; leave them out.")
    return dict(sorted(chosen.items()))


def _with_checksums(
    chosen: Mapping[str, StoredObject], base_url: str, accession: str, checksums: Mapping[str, str]
) -> dict[str, RemoteFile]:
    unused = sorted(set(checksums) - set(chosen))
    if unused:
        logger.warning("%d checksums are of files that are not fetched, for instance %s.", len(unused), unused[0])
    return {
        name: RemoteFile(f"{base_url}/{quote(item.key)}", item.size, item.etag, checksums.get(name))
        for name, item in chosen.items()
    }
