"""How large a model of one's own data can be in the time and memory there are: measured, chosen by rule, and written.

folder --survey_folder--> Survey --propose--> Plan --text--> plan.yaml, which extract_slices, train and others take
                                    ^ try_design: batches, seconds a step
"""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from monai_vqgen.bundles import bundle_root
from monai_vqgen.data.slices.scan import position_range
from monai_vqgen.data.slices.sources import ScanOptions
from monai_vqgen.data.survey import Survey, survey_folder
from monai_vqgen.demo.sizes import fast_bfloat16
from monai_vqgen.engines import AutoencoderObjective, PriorObjective, local_device, place
from monai_vqgen.errors import InputError, OutputExistsError
from monai_vqgen.files import write_bytes
from monai_vqgen.inferers.draws import finished_time
from monai_vqgen.networks import GatedPixelCNN, HierarchicalVQVAE
from monai_vqgen.networks.blocks import ceil_to
from monai_vqgen.transforms.geometry import PLANES, check_plane

__all__ = ["Costs", "Design", "Plan", "Value", "plan_run", "propose", "try_design"]

logger = logging.getLogger(__name__)

AXES = {"axial": (0, 1, 2), "coronal": (2, 1, 0), "sagittal": (2, 0, 1)}
"""Rows, columns and normal of each plane, as columns of `Survey.spacing_mm`."""
BRAIN_MM = {"axial": 150.0, "coronal": 190.0, "sagittal": 150.0}  # along the normal; what is longer has face or neck
CENTRAL = (0.3, 0.7)  # of the brain's depth; nearer its ends there is little brain
ALIKE = 1.25  # ratio of voxel sizes that count as equal
STEP_MM, SLICES = 3.0, 1000  # closer slices are nearly alike: only where there would be fewer to train with
SIDES = (128, 96, 64)  # pixels of the longer side, where those of the scans take too long
CODES = 512  # of each level, as in the weights that ship
FEW_STEPS, ENOUGH_STEPS = 4_000, 20_000  # of each training: `standard` makes the former, the shipped weights 10,000
TRAINING, STEPPING = 0.8, 0.8  # shares of the time: the rest cuts, encodes and draws; validates, loads and saves
BATCH = {"cpu": 4, "cuda": 64}  # of the autoencoder; more learn less in the same time, but a GPU wants to be filled
STEPS_AN_EPOCH, VALIDATIONS = 32, 50  # at least, so that a batch is a small part of the slices; at most
PROGRAM_BYTES = 2**30  # Python, torch and MONAI
WARM_UP, TIMED = 1, 3  # steps; the first of a codebook runs k-means


class Design(NamedTuple):
    """Slices of some rows and columns, of pixels of a size where that is known, and the networks for them."""

    image_size: tuple[int, int]
    pixel_mm: float | None
    strides: tuple[int, ...]
    channels: int
    in_channels: int = 1

    @classmethod
    def of(
        cls, pixels: Sequence[int], pixel_mm: float | None = None, *, channels: int = 64, in_channels: int = 1
    ) -> Design:
        """For slices of at least so many rows and columns."""
        longest = max(pixels)
        strides = (4, 2) if longest < 64 else (8, 4) if longest <= 256 else (16, 8, 4)
        size = (ceil_to(pixels[0], strides[0]), ceil_to(pixels[1], strides[0]))
        return cls(size, pixel_mm, strides, channels, in_channels)


class Costs(NamedTuple):
    """Batch and seconds a step of each training, the autoencoder's first; a batch that does not fit is 0."""

    batches: Sequence[int]
    seconds: Sequence[float]


class Value(NamedTuple):
    """An option, and why it has its value; `::` stands before what is nested."""

    name: str
    value: Any
    reason: str


class Plan(NamedTuple):
    """What is proposed, in the order of the file, and what should be known about it."""

    values: Sequence[Value]
    notes: Sequence[str]
    survey: Survey

    def option(self, name: str) -> Any:
        """The value of an option."""
        return next(each.value for each in self.values if each.name == name)

    def commands(self, data: str | Path, path: str | Path) -> list[str]:
        """What makes a model by this plan: of scans one command or all stages by themselves, of slices the stages."""
        configs, here = bundle_root() / "configs", Path("bundle/configs")  # here in a clone of the repository
        configs = here if here.is_dir() and here.samefile(configs) else configs
        folder, run, scans = shlex.quote(str(data)), "python -m monai.bundle run", len(self.survey.sizes) == 0
        slices = "out/slices" if scans else folder

        def files(config: str) -> str:
            return f"--config_file \"['{configs}/{config}.json','{path}']\""

        lines = [f"monai-vqgen train {folder} --size {shlex.quote(str(path))}"] * scans
        lines += [f"{run} {files('extract_slices')} --dataset_dir {folder} --output_dir out/slices"] * scans
        lines += [f"{run} training {files('train')} --dataset_dir {slices} --output_dir out/autoencoder"]
        codes = f"--dataset_dir {slices} --model out/autoencoder/model.pt --output_dir out/codes"
        lines += [f"{run} {files('extract_codes')} {codes}"]
        for level, prior in enumerate(self.option("priors")):
            told = " ".join(f"--{name} {value}" for name, value in prior.items())
            config = f"--config_file {configs}/train_prior.json --level {level}"
            lines += [f"{run} training {config} --dataset_dir out/codes --output_dir out/autoencoder {told}"]
        return lines

    def text(self, data: str | Path, path: str | Path) -> str:
        """The overlay as YAML, the reason beside each value."""
        lines = [f"# {self.commands(data, path)[0]}", *(f"# {line}" for line in (self.survey.summary, *self.notes))]
        for name, value, reason in self.values:
            above, _, leaf = name.rpartition("::")
            if above and leaf == "_target_":
                lines.append(f"{above}:")
            elif name == "priors":
                lines += [f"{name}:  # {reason}", *(f"- {json.dumps(prior)}" for prior in value)]
                continue
            lines.append(f"{'  ' * bool(above)}{leaf}: {json.dumps(value)}{f'  # {reason}' * bool(reason)}")
        return "\n".join([*lines, ""])


def plan_run(
    data: str | Path,
    output: str | Path = "plan.yaml",
    *,
    minutes: float = 45.0,
    memory_gb: float | None = None,
    plane: str | None = None,
    scans: ScanOptions | None = None,
    overwrite: bool = False,
) -> Plan:
    """Look at the data, try networks on this machine, and write an overlay for the largest that the time allows.

    Args:
        data: a folder of scans, or of slices by split.
        output: the YAML file.
        minutes: for all stages, from scans to samples.
        memory_gb: that may be used; by default what is free on the GPU, or half of the machine's.
        plane: of the slices, in place of the one that the voxel sizes suggest.
        scans: which scans are taken, and how their subjects are named.
        overwrite: replace an earlier file.

    Raises:
        InputError: a time or memory that is not positive, or no such plane.
        DatalistError: nothing to look at, or too few subjects.
        OutputExistsError: the file is there, perhaps with changes of yours.
    """
    for name, value in (("minutes", minutes), ("memory_gb", memory_gb)):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} is {value}; give a positive number")
    check_plane(plane or "axial")
    path, scans, device = Path(output), scans or ScanOptions(), local_device()
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} is there, perhaps with changes of yours; name another file, or overwrite it")
    survey = survey_folder(data, scans=scans)
    memory = _memory_bytes(device) if memory_gb is None else memory_gb * 1e9

    def trial(design: Design, most: int) -> Costs:
        logger.info("Trying %d channels on slices of %d x %d pixels", design.channels, *design.image_size)
        return try_design(design, most=most, memory=memory, device=device)

    plan = propose(survey, minutes=minutes, plane=plane, most=BATCH[device.type], trial=trial)
    asked = [
        Value(*item, "as asked") for item in scans._asdict().items() if item not in ScanOptions()._asdict().items()
    ]
    plan = plan._replace(values=[*asked, *plan.values])
    write_bytes(path, plan.text(data, path).encode())
    return plan


def _memory_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 4e9


def propose(
    survey: Survey, *, minutes: float, plane: str | None = None, most: int = 4, trial: Callable[[Design, int], Costs]
) -> Plan:
    """Choose every option by the rules of docs/getting_started.md.

    Args:
        survey: of the data.
        minutes: for all stages.
        plane: in place of the one that the voxel sizes suggest.
        most: images a batch of the autoencoder.
        trial: measures a design, told the largest batch.
    """
    plane, count, notes = plane or survey.plane, survey.training, _notes(survey)
    values = _cuts(survey, plane) if len(survey.spacing_mm) else []
    if values:
        plane, *positions = (each.value for each in values)
        count *= len(position_range(*positions))
    most = min(most, max(4, 2 ** int(math.log2(max(1, count / STEPS_AN_EPOCH)))))
    seconds, passed = TRAINING * STEPPING * 60 * minutes, list[str]()
    for design in _designs(survey, plane):
        costs = trial(design, most)
        steps, fits = int(seconds / sum(costs.seconds)), min(costs.batches) > 0
        if steps >= FEW_STEPS and fits:
            break
        fault = "slow" if fits else "large for the memory"
        passed.append(f"{max(design.image_size)} pixels with {design.channels} channels are too {fault}")
    else:
        last, more = passed.pop(), math.ceil(minutes * FEW_STEPS / max(1, steps))
        blur = "blur" if steps > FEW_STEPS / 10 else "blobs without anatomy"
        few = f"{minutes:g} minutes allow {steps} steps of each training, and {FEW_STEPS} are wanted"
        notes.append(f"{few}: expect {blur}, or give {more} minutes" if fits else f"even {last}: give more memory")
    values += _frame(survey, plane, design, "; ".join(passed))
    return Plan([*values, *_trainings(design, costs, steps, minutes, count, plane)], notes, survey)


def _notes(survey: Survey) -> list[str]:
    notes = []
    for name, part in zip(("front to back", "left to right", "top to bottom"), survey.spacing_mm.T, strict=True):
        if part.size and part.max() > ALIKE * part.min():
            notes.append(f"mixed spacing, {part.min():.2f} to {part.max():.2f} mm from {name}: its median counts")
    if len(np.unique(survey.sizes, axis=0)) > 1:
        notes.append("slices of several sizes: all are padded to one")
    if not survey.complete:
        notes.append(f"looked at {max(len(survey.spacing_mm), len(survey.sizes))} files, evenly spaced among all")
    if survey.skipped:
        notes.append(f"files that will be skipped: {len(survey.skipped)}, such as {survey.skipped[0]['file']}")
    return notes


def _cuts(survey: Survey, plane: str | None) -> list[Value]:
    """Plane, and positions: start, stop and step."""
    coarse = {name: float(np.median(survey.spacing_mm[:, AXES[name][:2]].max(axis=1))) for name in PLANES}
    told = ", ".join(f"{name} {mm:.2f}" for name, mm in coarse.items())
    plane = plane or next(name for name in PLANES if coarse[name] <= ALIKE * min(coarse.values()))
    depths_mm, apart_mm = survey.extent_mm[:, AXES[plane][2]], float(np.median(survey.spacing_mm[:, AXES[plane][2]]))
    depth_mm = min(float(np.median(depths_mm)), BRAIN_MM[plane])
    start, stop = (float(round(share * depth_mm)) for share in CENTRAL)
    step = math.floor(2 * min(STEP_MM, (stop - start) * survey.training / SLICES)) / 2
    return [
        Value("plane", plane, f"coarser side of a pixel in mm: {told}"),
        Value("position_start_mm", start, f"{CENTRAL[0]:.0%} of the depth of the brain, {depth_mm:.0f} mm (median)"),
        Value("position_stop_mm", stop, f"{CENTRAL[1]:.0%} of it"),
        Value(
            "position_step_mm", max(step, math.ceil(10 * apart_mm - 0.5) / 10), f"planes are {apart_mm:.2f} mm apart"
        ),
    ]


def _designs(survey: Survey, plane: str | None) -> Iterator[Design]:
    """The largest first."""
    if len(survey.sizes):
        for channels in (64, 32):
            yield Design.of(survey.sizes.max(axis=0).tolist(), channels=channels, in_channels=survey.channels)
        return
    axes = list(AXES[plane or "axial"][:2])
    extent_mm, pixel_mm = survey.extent_mm[:, axes].max(axis=0), round(float(np.median(survey.spacing_mm[:, axes])), 3)

    def pixels() -> list[int]:  # that hold the box wherever it lies between them
        return [math.ceil(mm / pixel_mm - 1e-9) + 2 for mm in extent_mm]

    yield Design.of(pixels(), pixel_mm)
    for side in (side for side in SIDES if side < max(pixels())):
        pixel_mm = math.ceil(1000 * extent_mm.max() / (side - 2)) / 1000
        yield Design.of(pixels(), pixel_mm)
    yield Design.of(pixels(), pixel_mm, channels=32)


def _frame(survey: Survey, plane: str | None, design: Design, passed: str) -> list[Value]:
    """Pixel and image size."""
    size, stride = list(design.image_size), design.strides[0]
    if design.pixel_mm is None:
        return [Value("image_size", size, f"the largest slice, rounded up to multiples of {stride}")]
    height, width = survey.extent_mm[:, AXES[plane or "axial"][:2]].max(axis=0)
    return [
        Value("pixel_mm", design.pixel_mm, passed or "median of the scans within the plane: nothing is lost"),
        Value("image_size", size, f"the largest brain, {height:.0f} x {width:.0f} mm, up to multiples of {stride}"),
        *[Value("on_trim", "warn", "a brain larger than those looked at is cropped")] * (not survey.complete),
    ]


def _trainings(design: Design, costs: Costs, steps: int, minutes: float, count: int, plane: str | None) -> list[Value]:
    mirrored, amp, steps = plane in ("axial", "coronal"), fast_bfloat16(), max(1, min(steps, ENOUGH_STEPS))
    each = []
    for number, (batch, seconds) in enumerate(zip(costs.batches, costs.seconds, strict=True)):
        steps_an_epoch = math.ceil(count * (2 if mirrored and number else 1) / max(1, batch))
        limit = max(0.05, round(TRAINING * minutes * seconds / sum(costs.seconds), 2))
        epochs = math.ceil(steps / steps_an_epoch)
        each.append({"max_epochs": epochs, "max_minutes": limit, "batch_size": max(1, batch), "amp": amp})
    first, priors = each[0], [{**prior, "prior_def::channels": design.channels} for prior in each[1:]]
    told = ", ".join(f"{1000 * seconds:.0f}" for seconds in costs.seconds)
    return [
        Value("network_def::_target_", f"monai_vqgen.networks.{HierarchicalVQVAE.__name__}", ""),
        Value("network_def::strides", design.strides, "image pixels a code along an axis, coarsest level first"),
        Value("network_def::channels", design.channels, "64 as in the weights that ship, 32 for want of time"),
        Value("network_def::residual_channels", design.channels // 2, "half of them"),
        *[Value("network_def::in_channels", design.in_channels, "colors; gray pictures among them count as such")]
        * (design.in_channels > 1),
        Value("network_def::num_codes", CODES, "of each level, as in the weights that ship"),
        Value("batch_size", first["batch_size"], f"fits into the memory, of {count} slices for training"),
        Value("max_epochs", first["max_epochs"], f"{steps} steps; one of each training took here, in ms: {told}"),
        Value("max_minutes", first["max_minutes"], f"its share of {minutes:g}: a busier machine makes fewer steps"),
        Value("val_interval", math.ceil(first["max_epochs"] / VALIDATIONS), f"at most {VALIDATIONS} validations"),
        Value("amp", amp, "bfloat16 is " + ("fast here" if amp else "slow here")),
        Value("mirror_probability", 0.5 * mirrored, "only left and right may be mirrored, where they are known"),
        Value("mirror_training", mirrored, "likewise, for the priors"),
        Value("priors", priors, "coarsest level first: options of train_prior.json, for monai-vqgen train"),
    ]


def try_design(design: Design, *, most: int, memory: float, device: torch.device) -> Costs:
    """Make some steps of each training on random images.

    Args:
        design: what to try.
        most: images a batch of the autoencoder; the priors get half as many.
        memory: bytes that may be used.
        device: where.

    Returns:
        Of each training the largest power of two as a batch that fits, and the median time of its steps.
    """
    amp, channels = fast_bfloat16(), design.channels
    autoencoder = HierarchicalVQVAE(
        in_channels=design.in_channels,
        strides=design.strides,
        channels=channels,
        residual_channels=channels // 2,
        num_codes=CODES,
    )
    images_bcs = torch.rand(most, design.in_channels, *design.image_size, device=device)
    place(autoencoder, device)
    with torch.no_grad():
        codes = autoencoder.encode(images_bcs[: max(1, most // 2)])
    costs = [_try(AutoencoderObjective(autoencoder, amp=amp), [images_bcs], memory)]
    for level, grid in enumerate(codes):
        layers = {"num_layers": 8, "attention_every": 0} if level else {"num_layers": 10, "attention_every": 5}
        prior = GatedPixelCNN(CODES, channels=channels, coarser_codes=[CODES] * level, **layers)
        costs.append(_try(PriorObjective(place(prior, device), amp=amp), [grid, *codes[:level]], memory))
    return Costs(*zip(*costs, strict=True))


def _try(objective: nn.Module, inputs: Sequence[torch.Tensor], memory: float) -> tuple[int, float]:
    """Batch and seconds of a training; the inputs are images, or codes of a level and of those before it."""
    kept: dict[int, int] = {}  # bytes by address of what a batch of one keeps for its gradients

    def loss(batch: int) -> torch.Tensor:
        first, *coarser = (each[:batch] for each in inputs)
        return objective(first, *([coarser] if coarser else []))["loss"]

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    objective.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        one = loss(1)  # named, so that it lives, and no address is used twice
    fitting = fitting_batch(sum(kept.values()), memory, len(inputs[0]))
    optimizer, seconds = torch.optim.Adam(objective.parameters(), fused=True), []
    for _ in range(WARM_UP + TIMED):
        start = finished_time(one.device)
        optimizer.zero_grad()
        loss(max(1, fitting)).backward()
        optimizer.step()
        seconds.append(finished_time(one.device) - start)
    return fitting, statistics.median(seconds[WARM_UP:])


def fitting_batch(item_bytes: float, memory: float, most: int) -> int:
    """The largest power of two that fits, at most so many; gradients take as much as what is kept for them.

    Examples:
        >>> fitting_batch(1e9, 16e9, 64), fitting_batch(1e9, 1e9, 64)
        (4, 0)
    """
    fits = (memory - PROGRAM_BYTES) / (2 * item_bytes)
    return 0 if fits < 1 else 2 ** int(math.log2(min(fits, most)))
