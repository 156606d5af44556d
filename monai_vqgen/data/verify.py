"""What is wrong with a folder of scans, slices, volumes, codes or weights, found before any training; one at a time."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool3d
from tqdm import tqdm

from monai_vqgen.data.codes.store import CodeStore
from monai_vqgen.data.io.volume import read_volume
from monai_vqgen.data.slices.datalists import NIFTI_SUFFIXES, SPLITS, load_datalist, read_slice_geometry
from monai_vqgen.data.slices.scan import SliceOptions, slices_of_scan
from monai_vqgen.data.slices.sources import ScanOptions, ScanRecord, find_scans, subject_of
from monai_vqgen.errors import DatalistError, ScanError, VQGenError
from monai_vqgen.files import read_json
from monai_vqgen.transforms import LoadSlice
from monai_vqgen.transforms.loading import PICTURE_SUFFIXES
from monai_vqgen.transforms.nifti import nifti_shape
from monai_vqgen.transforms.volume_slicing import prepare_volume
from monai_vqgen.weights import SAFETENSORS, read_state

__all__ = ["Finding", "Verification", "verify_folder"]

CHECKS = ("reading", "geometry", "contrast", "duplicates", "splits", "no brain", "skipped")
HEAD_MM = (60.0, 400.0)  # extent of a brain or a head along any axis
COARSE = 2.0  # times the pixel size asked for: larger voxels within the plane blur its slices
MEAN_SLACK, MEAN_SPREADS = 0.12, 6.0  # of a mean intensity in [0, 1], and of the usual distance from the median
BLANK, BRAIN_SHARE = 0.05, 0.01  # a slice with a smaller share of pixels above this intensity shows no brain
BLOCKS, SAME = 8, 1e-3  # scans whose 8 x 8 x 8 block means differ less are one scan, perhaps stored in another type
LISTS = ("datalist.json", "samples.json")
WEIGHTS = (".pt", SAFETENSORS)
SHOWN = 10  # findings of a check that the table lists


class Finding(NamedTuple):
    """What is wrong with a file, by the check that found it."""

    check: str
    file: str
    reason: str


class Verification(NamedTuple):
    """What a folder holds, and what is wrong with it."""

    summary: str
    findings: list[Finding]

    def table(self) -> str:
        """A line for each check, then what it found."""
        found = {check: [each for each in self.findings if each.check == check] for check in CHECKS}
        lines = [self.summary, *(f"  {check:<11} {len(some) or 'ok'}" for check, some in found.items())]
        for check, some in found.items():
            lines += [f"{check}: {each.file}: {each.reason}" for each in some[:SHOWN]]
            lines += [f"{check}: and {len(some) - SHOWN} more"] if len(some) > SHOWN else []
        return "\n".join([*lines, f"{len(self.findings) or 'no'} finding{'s' * (len(self.findings) != 1)}"])


def verify_folder(
    folder: str | Path,
    *,
    scans: ScanOptions | None = None,
    slices: SliceOptions | None = None,
    load_weights: Callable[[Path], object] = lambda path: None,
) -> Verification:
    """Look at everything in a folder; nothing is written to it.

    Args:
        folder: of scans (NIfTI, BIDS, DICOM), slices or volumes that were cut (with a list, or folders by split), codes
            or weights.
        scans: which scans are taken, and how subjects are named.
        slices: which slices would be extracted.
        load_weights: loads a `model.pt` and what is beside it, or a zip, or raises; `TrainedModel.from_bundle` does.

    Raises:
        DatalistError: there is no such folder, or nothing of the above in it.
    """
    folder = Path(folder)
    try:
        if folder.suffix in (*WEIGHTS, ".zip"):
            load_weights(folder)
            return Verification(f"{folder}: weights", [])
        if any(path.suffix in WEIGHTS for home in ("", "models/") for path in folder.glob(f"{home}model*")):
            return _weights(folder, load_weights)
        if (folder / "codes.json").is_file():
            store = CodeStore(folder)
            return _by_split(f"{folder}: codes", {split: store.records(split) for split in store.splits}, [])
    except VQGenError as error:
        return Verification(f"{folder}", [Finding("reading", folder.name, str(error))])
    try:
        if any((folder / name).is_file() for name in LISTS) or load_datalist(folder, "training"):
            return _slices(folder)
        fault = ""
    except DatalistError as error:
        fault = str(error)
    try:
        return _scans(folder, scans or ScanOptions(), slices or SliceOptions())
    except DatalistError:  # where there are pictures, what keeps them from being read says more than that no scans are
        if not fault or not any(path.suffix.lower() in PICTURE_SUFFIXES for path in folder.rglob("*")):
            raise
        return Verification(f"{folder}: slices", [Finding("reading", folder.name, fault)])


def _weights(folder: Path, load_weights: Callable[[Path], object]) -> Verification:
    """Every file by its checksum, then those of a model, which belong together."""
    faults: dict[str, str] = {}  # the file by what is wrong, which both readers may say
    for home in (folder, folder / "models", *sorted((folder / "models").glob("*/"))):
        files = [file for file in home.glob("*") if file.suffix in WEIGHTS]
        for file in sorted(files, key=lambda file: (file.stem == "model", file.name)):
            for read in (read_state, load_weights) if file.stem == "model" else (read_state,):
                try:
                    read(file)
                except VQGenError as error:
                    faults.setdefault(str(error), str(file.relative_to(folder)))
    return Verification(f"{folder}: weights", [Finding("reading", file, fault) for fault, file in faults.items()])


def _scans(folder: Path, scans: ScanOptions, options: SliceOptions) -> Verification:
    records, skipped = find_scans(folder, suffix=scans.suffix, subject_pattern=scans.subject_pattern)
    findings = [Finding("skipped", entry["file"], entry["reason"].partition(": ")[2]) for entry in skipped]
    means, looks = dict[str, float](), np.zeros((len(records), BLOCKS**3), np.float32)
    for record in tqdm(records, desc="scans", unit="scan"):
        name = str(record.path.relative_to(folder)) if record.path != folder else folder.name
        for check, reason in _of_scan(record, options, look := looks[len(means)]):
            findings.append(Finding(check, name, reason.removeprefix(f"{record.path}: ")))
        if not look.any():
            continue
        same = np.flatnonzero(np.abs(looks[: len(means)] - look).max(axis=1, initial=0) < SAME)
        findings += [Finding("duplicates", name, f"is {list(means)[i]} once more: remove one") for i in same[:1]]
        means[name] = float(look[look > BLANK].mean()) if (look > BLANK).any() else 0.0
    middle = np.median(list(means.values()) or [0])
    slack = max(MEAN_SLACK, MEAN_SPREADS * np.median([abs(mean - middle) for mean in means.values()] or [0]))
    for name in (name for name, mean in means.items() if abs(mean - middle) > slack):
        findings.append(Finding("contrast", name, f"mean {means[name]:.2f}, of the others {middle:.2f}: is it alike?"))
    return Verification(f"{folder}: {len(records)} scans of {len({r.subject for r in records})} subjects", findings)


def _of_scan(record: ScanRecord, options: SliceOptions, look: NDArray) -> Iterator[tuple[str, str]]:
    """Checks and reasons; means of blocks of its box, in [0, 1], go to `look`: 0 where it is unreadable."""
    with _quietly() as logged, tempfile.TemporaryDirectory() as scratch:
        (images := Path(scratch, "images")).mkdir()
        try:
            volume = read_volume(record.path)
            prepared = prepare_volume(volume.voxels_s, volume.affine, options.plane, name=str(record.path))
            skipped = slices_of_scan(record, options, images).skipped
        except ScanError as error:
            yield "reading", str(error)
            return
        shares = {file.name: float((LoadSlice()(file) > BLANK).float().mean()) for file in sorted(images.iterdir())}
    volume_s = np.ascontiguousarray(prepared.view.volume_s[prepared.box.slices], dtype=np.float32)
    means = adaptive_avg_pool3d(torch.from_numpy(volume_s)[None], BLOCKS).numpy().ravel()
    low, high = prepared.window
    look[:] = np.clip((means - low) / max(high - low, 1e-12), 0, 1)
    lines = dict.fromkeys(record.getMessage() for record in logged)  # once each: the scan is read twice
    yield from (("reading", line) for line in lines if not line.startswith(("skipped: ", "cropped: ")))
    yield from (("skipped", entry["reason"]) for entry in skipped)
    yield from (("no brain", f"the slice {file}") for file, share in shares.items() if share < BRAIN_SHARE)
    spacing = prepared.view.spacing
    extent = [(b - a) * mm for a, b, mm in zip(prepared.box.start, prepared.box.stop, spacing, strict=True)]
    if min(extent) < HEAD_MM[0] or max(extent) > HEAD_MM[1]:
        size = " x ".join(f"{mm:.0f}" for mm in extent)
        yield "geometry", f"the head measures {size} mm, expected 60 to 400 along each axis: check the voxel size"
    if options.pixel_mm and max(spacing[:2]) > COARSE * options.pixel_mm:
        yield "geometry", f"voxels of {max(spacing[:2]):.1f} mm within {options.plane} slices: give another --plane"


@contextlib.contextmanager
def _quietly() -> Iterator[list[logging.LogRecord]]:
    """What the readers warn of meanwhile, in place of showing it."""
    logger, handler = logging.getLogger("monai_vqgen.data"), BufferingHandler(10**6)
    handler.setLevel(logging.WARNING)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield handler.buffer
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


def _slices(folder: Path) -> Verification:
    findings, records, home = [], dict[str, list[dict[str, Any]]](), folder.resolve()
    name = next((name for name in LISTS if (folder / name).is_file()), "")
    try:
        listed = read_json(folder / name) if name else {}
        if name == LISTS[1]:
            records["samples"] = [{"image": str(home / entry["image"])} for entry in listed["samples"]]
        volumes = name == LISTS[1] and listed.get("plane", "") is None  # as `SampleFiles` says of them
        dimensions = 3 if volumes else read_slice_geometry(folder).dimensions
    except (ValueError, KeyError, TypeError) as error:
        return Verification(f"{folder}: slices", [Finding("reading", name, f"is no list of slices ({error})")])
    for split in () if records else SPLITS:
        try:
            records[split] = load_datalist(folder, split, disjoint=False)
        except DatalistError as error:
            findings.append(Finding("splits", split, str(error)))
    seen, shape = dict[bytes, str](), None
    for record in tqdm([record for some in records.values() for record in some], desc="slices", unit="slice"):
        name = os.path.relpath(record["image"], home)
        record.setdefault("subject", subject_of(Path(name)))
        try:
            pixels = _pixels(record["image"], dimensions)
        except ScanError as error:
            findings.append(Finding("reading", name, str(error).removeprefix(f"{record['image']}: ")))
            continue
        if pixels.shape[1:] != (shape := shape or pixels.shape[1:]):
            findings.append(Finding("geometry", name, f"has {pixels.shape[1:]} pixels, the first slice {shape}"))
        if (pixels > BLANK).mean() < BRAIN_SHARE:
            findings.append(Finding("no brain", name, "hardly a pixel that is not black"))
        elif (other := seen.setdefault(hashlib.sha256(pixels.tobytes()).digest(), name)) != name:
            findings.append(Finding("duplicates", name, f"is {other} once more: remove one"))
    findings += [Finding("skipped", entry["file"], entry["reason"]) for entry in listed.get("skipped", [])]
    return _by_split(f"{folder}: {'volumes' if dimensions == 3 else 'slices'}", records, findings)


def _pixels(path: str, dimensions: int) -> NDArray:
    """A slice, or a volume of three dimensions, with all the channels that it has."""
    if path.lower().endswith(NIFTI_SUFFIXES):
        channels = [size for size in nifti_shape(Path(path))[dimensions:] if size > 1]
        return np.asarray(LoadSlice(channels=channels[0] if len(channels) == 1 else 1, dimensions=dimensions)(path))
    try:
        return np.asarray(LoadSlice()(path))
    except ScanError as error:
        if "color picture" not in str(error):
            raise
        return np.asarray(LoadSlice(channels=3)(path))


def _by_split(what: str, records: Mapping[str, Sequence[Mapping[str, Any]]], findings: list[Finding]) -> Verification:
    """With the subjects that are in more than one split."""
    home: dict[str, str] = {}
    for split, some in records.items():
        for subject in sorted({str(record["subject"]) for record in some if record.get("subject")}):
            if (other := home.setdefault(subject, split)) != split:
                findings.append(Finding("splits", subject, f"in {other} and in {split}: a subject belongs to one"))
    return Verification(", ".join([what, *(f"{len(some)} {split}" for split, some in records.items())]), findings)
