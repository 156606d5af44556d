"""The whole way, from scans to new slices and a report, by the bundle's own configs."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

from monai_vqgen.data.phantoms.volumes import make_phantoms
from monai_vqgen.data.slices.sources import discover_volumes
from monai_vqgen.data.slices.splits import split_subjects
from monai_vqgen.demo.report import write_report
from monai_vqgen.demo.showcase import SHOWCASE, save_showcase
from monai_vqgen.demo.sizes import Size, read_size
from monai_vqgen.demo.stages import Stage, bundle_stages, run_stages
from monai_vqgen.engines.seeding import check_seed
from monai_vqgen.errors import InputError, OutputExistsError
from monai_vqgen.files import write_json

__all__ = ["claim_demo_folder", "run_demo"]

logger = logging.getLogger(__name__)

DEFAULT_SIZES = {(2, True): "small", (2, False): "standard", (3, True): "volumes", (3, False): "volumes_64"}
"""By dimensions, and whether the scans are phantoms."""

MARKER = "demo.json"  # written first: a folder with it was made by a demo and may be moved aside


def claim_demo_folder(output: str | Path) -> Path:
    """Make the output folder; results of an earlier demo are moved aside to `<name>.1`, `.2`, ... first.

    Raises:
        OutputExistsError: the folder holds something that no demo has written.
    """
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file; give another output folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MARKER).is_file():
            raise OutputExistsError(f"{folder} holds files that no demo has written; give another output folder")
        number = 1
        while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
            number += 1
        folder.rename(aside)
        logger.info("Results of an earlier demo in %s were moved aside to %s", folder, aside)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _phantom_stage(size: Size, folder: Path, seed: int) -> Stage:
    subjects = size.phantoms["subjects"]
    command = f"python -m monai_vqgen phantoms --output {shlex.quote(str(folder))} --seed {seed}"
    return Stage(
        "phantoms",
        f"{command} --subjects {subjects}",
        lambda leftovers: make_phantoms(folder, subjects, seed=seed),
        (folder,),
    )


def _showcase_stage(scans: Path, folder: Path, seed: int) -> Stage:
    path = shlex.quote(str(scans))
    return Stage(
        "what the weights of the package draw and reconstruct",
        f"python -m monai_vqgen sample --seed {seed} & python -m monai_vqgen reconstruct {path} & wait",
        lambda leftovers: save_showcase(scans, folder, seed=seed),
        (folder / SHOWCASE,),
    )


def run_demo(
    data: str | Path | None = None,
    output: str | Path = "out/demo",
    *,
    seed: int = 0,
    size: str | None = None,
    dimensions: int | None = None,
) -> Path:
    """Run every stage and end with `report.html` in the output folder.

    Args:
        data: a folder of scans; without one, phantoms are made.
        output: where everything goes; results of an earlier demo there are moved aside.
        seed: of the phantoms, the split, the training and the samples.
        size: "small" (default for phantoms), "standard" (default for scans), "tiny", or the path of a YAML file like
            those in `configs/sizes`.
        dimensions: 2 for slices, 3 for whole volumes ("volumes" for phantoms, "volumes_64" for scans); by default those
            of the size.

    Returns:
        The report.

    Raises:
        InputError: no such size, one of other dimensions, a negative seed, or the output folder would hold the scans.
        DatalistError: the data folder holds no scans, or those of too few subjects.
        OutputExistsError: the output folder holds something else.
    """
    if dimensions not in (None, 2, 3):
        raise InputError(f"dimensions is {dimensions}; give 2 for slices or 3 for volumes")
    chosen = read_size(size or DEFAULT_SIZES[dimensions or 2, data is None]).for_this_machine()
    if dimensions not in (None, found := chosen.slices.get("dimensions", 2)):
        raise InputError(f"size {size!r} is of {found} dimensions, not of {dimensions}: give one of the two alone")
    if "split_file" in chosen.slices:
        raise InputError(f"size {size!r} is a release, of scans with a split of their own: use `reproduce`")
    check_seed(seed)
    if data is None and "subjects" not in chosen.phantoms:
        raise InputError(
            f"size {size!r} does not say how many phantoms to make: give `data`, or `phantoms: {{subjects: 48}}`"
        )
    if data is not None:
        found = discover_volumes(data)  # a folder without scans is an error before anything is moved or made
        if Path(output).resolve() in [Path(data).resolve(), *Path(data).resolve().parents]:
            raise InputError(f"the output folder {output} holds the scans of {data}; give another output folder")
        split_subjects([scan.subject for scan in found], seed=seed)  # so are too few of them
    folder = claim_demo_folder(output)
    scans = Path(data) if data is not None else folder / "phantoms"
    write_json(folder / MARKER, {"data": scans.name, "seed": seed, "size": chosen._asdict()})
    stages = [] if data is not None else [_phantom_stage(chosen, scans, seed)]
    stages.append(_showcase_stage(scans, folder, seed))
    stages += bundle_stages(chosen, scans=scans, output=folder, seed=seed)
    records = run_stages(stages, folder)
    report = write_report(folder, stages=records, phantoms=data is None)
    logger.info("All stages took %.1f minutes. Look at %s", sum(r.seconds for r in records) / 60, report)
    return report
