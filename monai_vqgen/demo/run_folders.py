"""Runs that go on where they were stopped: a folder that is theirs alone, and sizes that this machine can do."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_vqgen.bundles import bundle_root
from monai_vqgen.data.slices.sources import ScanRecord
from monai_vqgen.data.slices.splits import read_split
from monai_vqgen.demo.presets import RunPreset, fast_bfloat16
from monai_vqgen.errors import InputError, OutputExistsError
from monai_vqgen.files import write_json

__all__ = ["claim_run", "for_this_machine", "usable_cores"]


def claim_run(folder: Path, marker: str, run: Mapping[str, Any]) -> None:
    """Make a folder a run's own, by a file that tells what the run is of, or see that it is.

    Args:
        folder: made if need be.
        marker: name of that file.
        run: what makes it this run and no other; can be written as JSON.

    Raises:
        OutputExistsError: the folder holds another run, or something else.
    """
    told = json.loads(json.dumps(run))
    if (folder / marker).is_file():
        before = json.loads((folder / marker).read_text())
        other = sorted(key for key in told if before.get(key) != told[key])
        if other:
            raise OutputExistsError(f"{folder} holds a run with other {', '.join(other)}: give another output folder")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(f"{folder} holds files that no such run has written: give another output folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / marker, told)


def for_this_machine(preset: RunPreset, scans: Sequence[ScanRecord]) -> RunPreset:
    """The preset with its split file found and checked, and without bfloat16 where that is slow.

    Raises:
        InputError: the split file is not at hand.
        DatalistError: the scans are not those of the split.
    """
    if preset.split_file is not None:
        path = bundle_root().parent / preset.split_file
        if not path.is_file():
            raise InputError(f"{path} is not there: work in a clone of the repository, or choose another size")
        read_split(path, [scan.subject for scan in scans])
        preset = preset._replace(split_file=str(path))
    return preset if fast_bfloat16() else preset._replace(autoencoder_amp=False, prior_amp=False)


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
