"""From a folder of scans to a folder of slices: the function behind `extract_slices.json`.

discover_volumes --> one worker a scan: read once, cut, scale, fit, write --> split by subject --> datalist.json

Of several processes (`torchrun`) each cuts its part of the scans; the first writes the list of all.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from monai_vqgen.data.processes import check_joined, gather, own_part, process_rank, wait_for_all
from monai_vqgen.data.slices.contact_sheet import write_contact_sheet
from monai_vqgen.data.slices.scan import ScanOutcome, SliceOptions, slices_of_scan
from monai_vqgen.data.slices.sources import ScanRecord, discover_volumes
from monai_vqgen.data.slices.splits import SubjectSplit, read_split, split_subjects
from monai_vqgen.errors import DatalistError, InputError, OutputExistsError
from monai_vqgen.files import write_json
from monai_vqgen.transforms.cutting import check_position_options, check_positions
from monai_vqgen.transforms.fitting import check_size

__all__ = ["ExtractionReport", "extract_slices", "position_range"]

logger = logging.getLogger(__name__)

MAX_WORKERS = 8


class ExtractionReport(NamedTuple):
    """What an extraction gave."""

    datalist: Path
    num_scans: int
    num_slices: dict[str, int]
    num_subjects: dict[str, int]
    skipped: list[dict[str, str]]


class _Scans(Dataset[ScanOutcome]):
    """One item is one scan, done: cut and written."""

    def __init__(self, records: Sequence[ScanRecord], options: SliceOptions, images: Path) -> None:
        self.records, self.options, self.images = records, options, images

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> ScanOutcome:
        return slices_of_scan(self.records[index], self.options, self.images)


def position_range(start_mm: float, stop_mm: float, step_mm: float) -> list[float]:
    """Positions from start, below stop, every step (all mm).

    Example:
        >>> position_range(40, 50, 3)
        [40, 43, 46, 49]
    """
    if not step_mm > 0 or not stop_mm > start_mm:
        raise InputError(f"positions from {start_mm} to {stop_mm} by {step_mm} mm are none; start < stop, step > 0.")
    count = int((stop_mm - start_mm) / step_mm - 1e-9) + 1
    return [round(start_mm + i * step_mm, 6) for i in range(count)]


def _claim(output_dir: Path, overwrite: bool) -> Path:
    """The empty images folder; earlier results go only when asked. The first of several processes does it for all."""
    images = output_dir / "images"
    if process_rank():
        return images
    earlier = [p for p in (output_dir / "datalist.json", output_dir / "contact_sheet.png") if p.exists()]
    if images.is_dir() and any(images.iterdir()):
        earlier.append(images)
    if earlier and not overwrite:
        raise OutputExistsError(
            f"{output_dir} holds earlier results ({', '.join(p.name for p in earlier)}); "
            "choose another output_dir, or overwrite=True (--overwrite True) to replace them."
        )
    for path in earlier:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    images.mkdir(parents=True, exist_ok=True)
    return images


def _outcomes(scans: _Scans, num_workers: int, progress: bool) -> list[ScanOutcome]:
    """Cut this process's scans; return the outcomes of all processes' scans, in their order."""
    loader = DataLoader(
        scans, batch_size=None, num_workers=min(num_workers, len(scans)) if num_workers > 1 else 0, collate_fn=_same
    )
    with warnings.catch_warnings():
        # more workers than cores is the caller's choice; the loader warns about it
        warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
        bar = tqdm(loader, total=len(scans), desc="slices", unit="scan", disable=not progress or process_rank() > 0)
        own = list(bar)
    return [outcome for part in gather(own) for outcome in part]


def _default_workers() -> int:
    """One a core, shared with the other processes of this machine; at most 8."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(MAX_WORKERS, max(1, (os.cpu_count() or 1) // processes))


def _same(item: Any) -> Any:
    return item


def _datalist(
    outcomes: Sequence[ScanOutcome], split: SubjectSplit, about: dict[str, Any], skipped: list[dict[str, str]]
) -> dict[str, Any]:
    content: dict[str, Any] = dict(about)
    for part, subjects in split._asdict().items():
        members = set(subjects)
        content[part] = [item for outcome in outcomes if outcome.subject in members for item in outcome.items]
    content["skipped"] = skipped
    return content


def extract_slices(
    dataset_dir: str | Path,
    output_dir: str | Path,
    *,
    plane: str = "axial",
    positions: float | Sequence[float] | None = None,
    position_start_mm: float = 40.0,
    position_stop_mm: float = 100.0,
    position_step_mm: float = 3.0,
    reference: str = "brain_edge",
    pixel_mm: float | None = 1.736,
    image_size: int | Sequence[int] = (128, 128),
    on_trim: str = "error",
    lower: float = 0.5,
    upper: float = 99.5,
    fractions: Sequence[float] = (0.75, 0.125, 0.125),
    split_file: str | Path | None = None,
    seed: int = 0,
    num_workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    suffix: str = "T1w",
    subject_pattern: str | None = None,
    source: str = "",
) -> ExtractionReport:
    """Cut the slices of every scan in a folder and share them out by subject.

    Writes `images/<name>_<plane>_<position>mm.nii.gz` (`[H, W, 1]` float32 in [0, 1], right affine), then
    `contact_sheet.png`, then `datalist.json`, whose presence says that the folder is complete.

    Args:
        dataset_dir: a flat folder of NIfTI, a BIDS tree or folders of DICOM series.
        output_dir: where the slices go.
        plane: "axial", "coronal" or "sagittal".
        positions: millimetres from the reference; one gives a single slice a scan. Default: the range below.
        position_start_mm: first position, from the top of the brain for axial slices.
        position_stop_mm: positions stay below this.
        position_step_mm: distance of positions.
        reference: "brain_edge", "brain_center" or "volume_center".
        pixel_mm: size of a pixel (antialiased), or None for the scan's own.
        image_size: rows and columns; padded or cropped around the brain's box.
        on_trim: "error" skips a slice whose brain does not fit, "warn" crops it; both are logged.
        lower: percentile of the volume's foreground that becomes 0.
        upper: percentile that becomes 1.
        fractions: of subjects in training, validation and test.
        split_file: a split decided before, see `read_split`; takes the place of `fractions` and `seed`.
        seed: of the split.
        num_workers: worker processes; default one a core, at most 8. 0 works in this process.
        overwrite: replace earlier results.
        progress: show a bar.
        suffix: BIDS contrast.
        subject_pattern: regular expression for the subject in a file's name or path; see `discover_volumes`.
        source: free text about the data, copied into the datalist.

    Raises:
        InputError: an option that cannot work, or several processes that are not joined.
        DatalistError: no scans, no usable scan, or too few subjects.
        OutputExistsError: earlier results, and not `overwrite`.
        StageError: another of several processes has ended.
    """
    check_joined()
    if positions is None:
        positions = position_range(position_start_mm, position_stop_mm, position_step_mm)
    places = check_positions(positions)
    size = check_size(image_size if isinstance(image_size, int) else tuple(image_size))
    check_position_options(plane, "mm", reference)
    options = SliceOptions(plane, places, reference, pixel_mm, size, on_trim, lower, upper).checked()
    records = _listed(discover_volumes(dataset_dir, suffix=suffix, subject_pattern=subject_pattern), split_file)
    choose = partial(_choose_split, fractions=fractions, split_file=split_file, seed=seed)
    if split_file is None:
        choose([record.subject for record in records])  # too few: say so before the work
    output_dir = Path(output_dir)
    images = _claim(output_dir, overwrite)
    wait_for_all()  # until the first process has claimed the folder
    workers = _default_workers() if num_workers is None else num_workers
    outcomes = _outcomes(_Scans(own_part(records), options, images), workers, progress)
    about = {"source": source, **({"seed": seed} if split_file is None else {"split": Path(split_file).name})}
    return _write_list(output_dir, outcomes, choose, options=options, about=about, dataset_dir=dataset_dir)


def _choose_split(
    subjects: Sequence[str], *, fractions: Sequence[float], split_file: str | Path | None, seed: int
) -> SubjectSplit:
    return read_split(split_file, subjects) if split_file else split_subjects(subjects, fractions, seed=seed)


def _write_list(
    output_dir: Path,
    outcomes: Sequence[ScanOutcome],
    choose: Callable[[Sequence[str]], SubjectSplit],
    *,
    options: SliceOptions,
    about: dict[str, Any],
    dataset_dir: str | Path,
) -> ExtractionReport:
    """Split the subjects that gave slices; the first process writes the contact sheet and, last, the datalist."""
    skipped = [entry for outcome in outcomes for entry in outcome.skipped]
    useful = [outcome for outcome in outcomes if outcome.items]
    if not useful:
        reasons = "; ".join(entry["reason"] for entry in skipped[:3])
        raise DatalistError(f"{dataset_dir}: none of {len(outcomes)} scans gave a slice. {reasons}")
    split = choose([outcome.subject for outcome in useful])
    described = {**_description(options, useful), **about}
    content = _datalist(useful, split, described, skipped)
    if process_rank() == 0:
        drawn = next(content[part] for part in split._fields if content[part])
        write_contact_sheet(output_dir / "contact_sheet.png", output_dir, drawn)
        write_json(output_dir / "datalist.json", content)
        num_slices = sum(len(content[part]) for part in split._fields)
        logger.info("%d slices of %d scans in %s", num_slices, len(outcomes), output_dir)
        _log_skips(skipped, len(outcomes))
    wait_for_all()  # until the list is there
    return ExtractionReport(
        output_dir / "datalist.json",
        len(outcomes),
        {part: len(content[part]) for part in split._fields},
        {part: len(names) for part, names in split._asdict().items()},
        skipped,
    )


def _description(options: SliceOptions, useful: Sequence[ScanOutcome]) -> dict[str, Any]:
    return {
        "description": f"{options.plane} slices at {_range_text(options.positions)} mm from {options.reference}",
        "plane": options.plane,
        "image_size": list(options.image_size),
        "pixel_mm": _common_pixel_mm(useful),
        "reference": options.reference,
    }


def _listed(records: list[ScanRecord], split_file: str | Path | None) -> list[ScanRecord]:
    """The scans of subjects that the split lists; all of them without a split."""
    _warn_of_guesses(records)
    if split_file is None:
        return records
    members = {name for names in read_split(split_file, [record.subject for record in records]) for name in names}
    others = sorted({record.subject for record in records} - members)
    if others and process_rank() == 0:
        logger.warning("%s does not list %s: their scans are left out", split_file, ", ".join(others))
    return [record for record in records if record.subject in members]


def _warn_of_guesses(records: Sequence[ScanRecord]) -> None:
    guesses = [record for record in records if record.guessed]
    if guesses and process_rank() == 0:
        logger.warning(
            "%d of %d scans do not say whose they are (%s, for one): each stands for a subject of its own. "
            "If a subject has several scans, name it with --subject_pattern, "
            "lest it end up in training and test at once.",
            len(guesses),
            len(records),
            guesses[0].path.name,
        )


def _common_pixel_mm(outcomes: Sequence[ScanOutcome]) -> float | None:
    """The pixel size of all slices, square and one for all, else None: a set of many sizes has none to name."""
    sizes = np.array([outcome.pixel_mm for outcome in outcomes])
    # header arithmetic is single precision
    return round(float(sizes[0, 0]), 6) if np.allclose(sizes, sizes[0, 0], rtol=1e-4, atol=0) else None


def _range_text(places: Sequence[float]) -> str:
    return f"{places[0]:g}" if len(places) == 1 else f"{min(places):g} to {max(places):g}"


def _log_skips(skipped: list[dict[str, str]], num_scans: int) -> None:
    if skipped:
        files = len({entry["file"] for entry in skipped})
        logger.warning("%d skips in %d of %d scans; datalist.json lists them.", len(skipped), files, num_scans)
