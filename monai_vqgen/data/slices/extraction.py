"""From a folder of scans to a folder of slices, or of volumes: the function behind `extract_slices.json`.

discover_volumes --> one worker per scan: read, extract, scale, fit, write --> split by subject --> datalist.json

Of several processes (`torchrun`) each takes its part of the scans; the first writes the list of all.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from monai_vqgen.data.processes import (
    check_joined,
    end_worker_with_parent,
    gather,
    own_part,
    process_rank,
    usable_cores,
    wait_for_all,
)
from monai_vqgen.data.slices.contact_sheet import write_contact_sheet
from monai_vqgen.data.slices.scan import ScanOutcome, SliceOptions, slices_of_scan
from monai_vqgen.data.slices.sources import FoundScans, ScanOptions, ScanRecord, find_scans
from monai_vqgen.data.slices.splits import SplitOptions, SubjectSplit
from monai_vqgen.errors import DatalistError
from monai_vqgen.files import claim_folder, publish, read_json, write_json

__all__ = ["ExtractionReport", "extract_slices"]

logger = logging.getLogger(__name__)

MAX_WORKERS = 8
_SLICE = re.compile(r"images/[^/]+_([a-z]+_-?\d+\.\d\dmm|volume)\.nii\.gz")


class ExtractionReport(NamedTuple):
    """What an extraction wrote: slices and subjects of each split, and what was skipped for which reason."""

    datalist: Path
    num_scans: int
    num_slices: dict[str, int]
    num_subjects: dict[str, int]
    skipped: list[dict[str, str]]


def extract_slices(
    dataset_dir: str | Path,
    output_dir: str | Path,
    *,
    slices: SliceOptions | None = None,
    split: SplitOptions | None = None,
    scans: ScanOptions | None = None,
    num_workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> ExtractionReport:
    """Extract the slices of every scan in a folder and split them by subject.

    Writes `images/<name>_<plane>_<position>mm.nii.gz` (`[H, W, 1]` float32 in [0, 1], right affine), then
    `contact_sheet.png`, then `datalist.json`, whose presence says that the folder is complete. In three dimensions
    `images/<name>_volume.nii.gz` (`[X, Y, Z]`, RAS+), one a scan, and the list has no plane.

    Args:
        dataset_dir: a flat folder of NIfTI files, a BIDS tree or folders of DICOM series.
        output_dir: of the slices; created if missing.
        slices: plane, positions, pixel and image size, intensity window.
        split: how subjects are divided among training, validation and test.
        scans: which scans of the folder are taken, and how subjects are named.
        num_workers: worker processes; default one per core, at most 8. 0 works in this process.
        overwrite: replace earlier results.
        progress: show a bar.

    Raises:
        InputError: an option that cannot work, or several processes that are not joined.
        DatalistError: no scans, no usable scan, or too few subjects.
        OutputExistsError: earlier results, and not `overwrite`.
        StageError: another of several processes has ended.

    Examples:
        >>> extract_slices("scans", "slices", slices=SliceOptions("coronal", [60, 80]))  # doctest: +SKIP
    """
    check_joined()
    slices, split, scans = slices or SliceOptions(), split or SplitOptions(), scans or ScanOptions()
    slices.check()
    found = find_scans(dataset_dir, suffix=scans.suffix, subject_pattern=scans.subject_pattern)
    records = _of_split(found, split)
    first, claimed = process_rank() == 0, None
    if first:
        images = "volume" if slices.dimensions == 3 else f"{slices.plane}_*[0-9].[0-9][0-9]mm"
        names = ["datalist.json", "contact_sheet.png", f"images/*_{images}.nii.gz"]
        claimed = claim_folder(output_dir, [*names, *_listed_before(Path(output_dir))], overwrite=overwrite)
        (claimed / "images").mkdir(exist_ok=True)
    place = next(path for path in gather(claimed) if path is not None)
    outcomes = _extract_all(_Scans(own_part(records), slices, place / "images"), num_workers, progress)
    report, content = _listed(Path(output_dir), found, outcomes, slices, split, scans.source)
    if first:
        drawn = next(content[part] for part in SubjectSplit._fields if content[part])
        write_contact_sheet(place / "contact_sheet.png", place, drawn)
        write_json(place / report.datalist.name, content, sealed=True)
        publish(place)
        _log(report, "volumes" if slices.dimensions == 3 else "slices")
    wait_for_all()  # until the list is written
    return report


def _listed_before(folder: Path) -> list[str]:
    """The slices, of any plane, that the datalist of an earlier extraction names."""
    try:
        parts = [read_json(folder / "datalist.json").get(part) for part in SubjectSplit._fields]
        listed = [str(item["image"]) for items in parts for item in items or []]
    except (OSError, ValueError, TypeError, KeyError):  # of no extraction, or damaged
        return []
    return [name for name in listed if _SLICE.fullmatch(name) and "*" not in name]


def _of_split(found: FoundScans, split: SplitOptions) -> list[ScanRecord]:
    """The scans of the subjects that a split file lists, or all; raises for too few subjects before the work."""
    records = found.records
    subjects = [record.subject for record in records]
    members = {name for names in split.choose(subjects) for name in names}
    if process_rank() == 0:
        for entry in found.skipped:
            logger.warning("skipped: %s", entry["reason"])
        if guesses := [record for record in records if record.guessed]:
            logger.warning(
                "%d of %d scans do not name their subject (for example %s): each counts as a subject of its own. If a "
                "subject has several scans, name it with --subject_pattern, or it may end up in both training and test",
                len(guesses),
                len(records),
                guesses[0].path.name,
            )
        if others := sorted(set(subjects) - members):
            logger.warning("%s does not list %s: their scans are left out", split.file, ", ".join(others))
    return [record for record in records if record.subject in members]


class _Scans(Dataset[ScanOutcome]):
    """One item is one scan, its slices extracted and written."""

    def __init__(self, records: Sequence[ScanRecord], options: SliceOptions, images: Path) -> None:
        self.records, self.options, self.images = records, options, images

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> ScanOutcome:
        return slices_of_scan(self.records[index], self.options, self.images)


def _extract_all(scans: _Scans, num_workers: int | None, progress: bool) -> list[ScanOutcome]:
    """Work on this process's scans; return the outcomes of all processes' scans, in their order."""
    if num_workers is None:  # one per core, shared with the other processes of this machine
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        num_workers = min(MAX_WORKERS, max(1, usable_cores() // processes))
    with warnings.catch_warnings():
        # more workers than cores is the caller's choice; the loader warns about it
        warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
        loader = DataLoader(
            scans,
            batch_size=None,
            num_workers=min(num_workers, len(scans)) if num_workers > 1 else 0,
            collate_fn=_same,
            worker_init_fn=end_worker_with_parent,
        )
        bar = tqdm(loader, total=len(scans), desc="slices", unit="scan", disable=not progress or process_rank() > 0)
        own = list(bar)
    return [outcome for part in gather(own) for outcome in part]


def _same(item: Any) -> Any:
    return item


def _listed(
    output_dir: Path,
    found: FoundScans,
    outcomes: Sequence[ScanOutcome],
    options: SliceOptions,
    split: SplitOptions,
    source: str,
) -> tuple[ExtractionReport, dict[str, Any]]:
    """Split the subjects that have slices; the report, and the content of datalist.json."""
    skipped = [*found.skipped, *(entry for outcome in outcomes for entry in outcome.skipped)]
    useful = [outcome for outcome in outcomes if outcome.items]
    if not useful:
        reasons = "; ".join(entry["reason"] for entry in skipped[:3])
        raise DatalistError(f"none of {len(outcomes)} scans gave a slice: {reasons}")
    parts = split.choose([outcome.subject for outcome in useful])._asdict()
    part_of = {name: part for part, names in parts.items() for name in names}
    items: dict[str, list[dict[str, Any]]] = {part: [] for part in parts}
    for outcome in useful:
        items[part_of[outcome.subject]] += outcome.items
    origin = {"split": Path(split.file).name} if split.file else {"seed": split.seed}
    content = {**_description(options, useful), "source": source, **origin, **items, "skipped": skipped}
    report = ExtractionReport(
        output_dir / "datalist.json",
        len(outcomes),
        {part: len(listed) for part, listed in items.items()},
        {part: len(names) for part, names in parts.items()},
        skipped,
    )
    return report, content


def _description(options: SliceOptions, useful: Sequence[ScanOutcome]) -> dict[str, Any]:
    sizes = np.array([outcome.pixel_mm for outcome in useful])
    common = np.allclose(sizes, sizes[0, 0], rtol=1e-4, atol=0)  # header arithmetic is single precision
    places = options.positions_mm
    text = f"{places[0]:g}" if len(places) == 1 else f"{min(places):g} to {max(places):g}"
    of_volumes = {"description": "whole volumes", "plane": None, "reference": None}
    return {
        "description": f"{options.plane} slices at {text} mm from {options.reference}",
        "plane": options.plane,
        "image_size": list(options.size),
        "pixel_mm": round(float(sizes[0, 0]), 6) if common else None,
        "reference": options.reference,
        **(of_volumes if options.dimensions == 3 else {}),
        "percentiles": [options.lower, options.upper],
        **({} if options.window is None else {"window": [float(value) for value in options.window]}),
    }


def _log(report: ExtractionReport, what: str) -> None:
    num_slices, skipped = sum(report.num_slices.values()), report.skipped
    logger.info("%d %s of %d scans in %s", num_slices, what, report.num_scans, report.datalist.parent)
    if skipped:
        files = len({entry["file"] for entry in skipped})
        logger.warning("%d skips in %d of %d scans; datalist.json lists them", len(skipped), files, report.num_scans)
