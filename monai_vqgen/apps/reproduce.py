"""The published figures again, from nothing but the scans: train, evaluate, write the results, keep the weights."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from monai_vqgen.apps.bundles import bundle_root
from monai_vqgen.apps.presets import fast_bfloat16, pick_preset
from monai_vqgen.apps.report import write_report
from monai_vqgen.apps.results import replace_section, results_section
from monai_vqgen.apps.stages import bundle_stages, run_stages
from monai_vqgen.data.sources import discover_volumes
from monai_vqgen.engines.seeding import check_seed
from monai_vqgen.errors import InputError

__all__ = ["reproduce"]

logger = logging.getLogger(__name__)


def reproduce(
    data: str | Path,
    output: str | Path = "out/reproduce",
    *,
    size: str = "release_128",
    seed: int = 0,
    results: str | Path | None = None,
) -> Path:
    """Run every stage of a release, going on where an earlier call was stopped, and write its figures.

    Args:
        data: a folder with the scans of OpenNeuro ds002748, or others where the preset names no split.
        output: where everything goes; complete stages found there are not run again.
        size: a preset's name.
        seed: of the training and the samples.
        results: a document with the marks `<!-- SIZE -->` and `<!-- /SIZE -->`, between which the figures go.

    Returns:
        The report.

    Raises:
        InputError: no such preset, a split file that is not at hand, or a document without the marks.
        DatalistError: the data folder holds no scans, or not those of the split.
    """
    preset = pick_preset(size, own_data=True)
    check_seed(seed)
    discover_volumes(data)  # a folder without scans is an error before anything else
    if preset.split_file is not None:
        path = bundle_root().parent / preset.split_file
        if not path.is_file():
            raise InputError(f"{path} is not there: work in a clone of the repository, or choose another size")
        preset = preset._replace(split_file=str(path))
    if not fast_bfloat16():
        preset = preset._replace(autoencoder_amp=False, prior_amp=False)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    records = run_stages(bundle_stages(preset, scans=Path(data), output=folder, seed=seed), folder, resume=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    if results is not None:
        replace_section(results, size, results_section(metrics, records))
        logger.info("The figures are in %s", results)
    return write_report(folder, stages=records)
