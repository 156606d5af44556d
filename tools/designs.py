"""Designs of the autoencoder to be compared: a YAML list, and the stages that train and judge each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from monai_vqgen.bundles import bundle_root, run_stage_apart
from monai_vqgen.demo.sizes import Size
from monai_vqgen.demo.stages import Stage, bundle_stage
from monai_vqgen.errors import InputError

__all__ = ["Design", "design_options", "design_overlays", "design_stages", "read_designs"]

MOST_EPOCHS = 10_000  # the budget ends the training long before
SECONDS_A_MINUTE = 60
COMMON = frozenset(
    ["dataset_dir", "output_dir", "max_epochs", "max_minutes", "budget_clock", "val_interval", "overwrite", "resume"]
)
"""Options of `train.json` that are the same for all designs, or the comparison would be none."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Design(NamedTuple):
    """One design.

    Attributes:
        name: for people; unique.
        group: what it varies.
        overlay: a config that replaces the network, from the repository's folder; None for the bundle's own.
        options: of `train.json`, beyond those that all designs share.
    """

    name: str
    group: str
    overlay: str | None = None
    options: Mapping[str, Any] = {}

    @property
    def folder(self) -> str:
        """A folder's name made of its name."""
        return "design_" + re.sub(r"[^a-z0-9.]+", "_", self.name.lower()).strip("_")


def read_designs(path: str | Path) -> list[Design]:
    """Read a YAML list of designs; the first is the one that the others are compared with.

    Raises:
        InputError: the file is not readable or is no such list, two designs have the same name, an overlay is not
            there, or an option is one that all designs must share.
    """
    try:
        designs = [Design(**row) for row in yaml.safe_load(Path(path).read_text())]
    except (OSError, yaml.YAMLError, TypeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no list of designs with {', '.join(Design._fields)} ({error})") from error
    for design in designs:
        _check(design, path)
    folders = [design.folder for design in designs]
    twice = sorted({name for name in folders if folders.count(name) > 1})
    if twice or not designs:
        raise InputError(f"{path} needs designs of different names; given twice: {', '.join(twice) or 'none at all'}")
    return designs


def _check(design: Design, path: str | Path) -> None:
    if not (isinstance(design.name, str) and isinstance(design.group, str) and isinstance(design.options, Mapping)):
        raise InputError(f"{path}: name and group of {design.name!r} must be text, its options names with values")
    if not re.search(r"[a-z0-9]", design.name.lower()):
        raise InputError(f"{path}: the name {design.name!r} has no letter of a to z and no digit: its folder needs one")
    common = sorted(COMMON.intersection(design.options))
    if common:
        raise InputError(f"{path}: {design.name!r} sets {', '.join(common)}, which all designs share: leave it out")
    if design.overlay is not None and not (bundle_root().parent / design.overlay).is_file():
        raise InputError(f"{path}: the overlay {design.overlay} of {design.name!r} is not in {bundle_root().parent}")


def design_stages(
    design: Design, size: Size, *, folder: Path, steps: int, cost: float, split: str, seed: int
) -> list[Stage]:
    """Training on the slices of the folder, and evaluation on its subjects of a split, in processes of their own.

    Args:
        design: which.
        size: options that it does not change.
        folder: of the comparison.
        steps: what the training may cost, in steps of the reference.
        cost: of one of its own steps, in steps of the reference.
        split: whose subjects judge.
        seed: of the training, where the design has none of its own.
    """
    place, cuda = folder / design.folder, torch.cuda.is_available()
    shared = {"dataset_dir": str(folder / "slices"), "seed": seed}
    runner = partial(run_stage_apart, log=place / "log.txt", environment={} if cuda else ONE_THREAD)
    # a step of the reference counts as a second
    budget = {"max_epochs": MOST_EPOCHS, "max_minutes": steps / SECONDS_A_MINUTE, "budget_clock": round(cost, 4)}
    judging = {"model": str(place / "model.pt"), "with_priors": False, "split": split}
    return [
        bundle_stage(
            f"training of {design.name}",
            "train",
            result="model.pt",
            state="training_state.pt",
            options={**shared, "output_dir": str(place), **design_options(design, size), **budget, "val_interval": 1},
            overlays=design_overlays(design),
            runner=runner,
        ),
        bundle_stage(
            f"evaluation of {design.name}",
            "evaluate",
            result="metrics.json",
            options={**shared, "output_dir": str(place / "evaluation"), **judging},
            runner=runner,
        ),
    ]


def design_overlays(design: Design) -> list[str]:
    """The config files that change `train.json` for a design."""
    return [] if design.overlay is None else [str(bundle_root().parent / design.overlay)]


def design_options(design: Design, size: Size) -> dict[str, Any]:
    """The options of the training, its network's included; later stages read the network in the model's record."""
    of_its_own = design.overlay is not None  # an overlay brings a whole network
    shared = {k: v for k, v in size.autoencoder.items() if not (of_its_own and k.startswith("network_def::"))}
    return {**shared, **design.options}
