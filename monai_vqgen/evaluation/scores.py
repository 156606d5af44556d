"""The figures of an evaluation: scores of the test slices, of the priors, of the sampling, and what they came from.

Shape legend: n slices, b batch, c channels, s spatial axes, k codebook size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from monai.inferers import Inferer
from torch import Tensor
from tqdm.auto import tqdm

from monai_vqgen.data.slices.datalists import evenly_spaced
from monai_vqgen.engines import encode_records
from monai_vqgen.errors import InputError
from monai_vqgen.inferers import finished_time
from monai_vqgen.metrics import (
    PositionHistogram,
    ReconstructionScores,
    bits_per_code,
    mean_scores,
    reconstruction_scores,
    uniform_bits_per_code,
)
from monai_vqgen.models import Samples, TrainedModel

__all__ = [
    "SHOWN",
    "ReconstructionPass",
    "SliceSet",
    "batches",
    "data_figures",
    "encode_slices",
    "prior_figures",
    "raw_bits_per_pixel",
    "reconstruct_slices",
    "sampling_figures",
    "whole_grid_seconds",
]

SHOWN = 8
"""Slices in a row of the pictures."""
WHOLE_GRID_PASSES = 2
"""Passes timed a level; a sample takes as many as the level has positions."""


class SliceSet(Protocol):
    """A data set as MONAI's: items `{"image": [1, *s], ...}` and the records they were made of in `data`."""

    data: Sequence[Any]

    def __len__(self) -> int:
        """Number of slices."""

    def __getitem__(self, index: int) -> Any:
        """One slice."""


class ReconstructionPass(NamedTuple):
    """What one pass over the test slices gives."""

    full: dict[str, float]
    top_only: dict[str, float]
    codes: tuple[Tensor, ...]
    shown: dict[str, np.ndarray]


def batches(slices: SliceSet, batch_size: int, *, description: str) -> Iterator[Tensor]:
    """The images of a data set in order, `(b, 1, *s)`, plain tensors; a progress bar runs through them.

    Raises:
        InputError: the slices differ in size.
    """
    for start in tqdm(range(0, len(slices), batch_size), desc=description, unit="batch", leave=False):
        images = [
            torch.as_tensor(slices[i]["image"]).as_subclass(Tensor).float()
            for i in range(start, min(start + batch_size, len(slices)))
        ]
        if len({image.shape for image in images}) > 1:
            raise InputError("the slices differ in size: extract them at one image_size")
        yield torch.stack(images)


def encode_slices(
    model: TrainedModel, slices: SliceSet, *, mirror: bool = False, description: str = "encoding"
) -> tuple[Tensor, ...]:
    """Codes of every slice, or of its mirror image, one grid `(n, *s)` a level, coarsest first, on the CPU."""
    parts = [
        [grid.cpu() for grid in model.encode(images_bcs.flip(-1) if mirror else images_bcs)]
        for images_bcs in batches(slices, model.batch_size, description=description)
    ]
    return tuple(torch.cat(level) for level in zip(*parts, strict=True))


def raw_bits_per_pixel(network: Any, image_size: Sequence[int]) -> float:
    """Bits a pixel that the codes take when every code costs log2 of its codebook's size."""
    grids = network.grids(image_size)
    bits = sum(math.prod(grid) * math.log2(size) for grid, size in zip(grids, network.codebook_sizes, strict=True))
    return bits / math.prod(image_size)


def reconstruct_slices(model: TrainedModel, test: SliceSet, *, inferer: Inferer) -> ReconstructionPass:
    """Reconstruct every test slice, by the inferer from all levels, and from the coarsest alone."""
    network, device = model.autoencoder, model.device
    full: list[ReconstructionScores] = []
    top_only: list[ReconstructionScores] = []
    codes, kept, first = [], {"original": [], "reconstruction": [], "top_only": []}, 0  # type: ignore[var-annotated]
    wanted = set(evenly_spaced(SHOWN, len(test)))
    with torch.no_grad():
        for images_bcs in batches(test, model.batch_size, description="reconstructing"):
            grids = network.encode(images_bcs.to(device))
            size = images_bcs.shape[2:]
            all_levels = inferer(images_bcs.to(device), network).clamp(0, 1).cpu()
            coarsest = network.decode(grids[:1], image_size=size).clamp(0, 1).cpu()
            full.append(reconstruction_scores(all_levels, images_bcs))
            top_only.append(reconstruction_scores(coarsest, images_bcs))
            codes.append([grid.cpu() for grid in grids])
            for name, images in zip(kept, (images_bcs, all_levels, coarsest), strict=True):
                kept[name] += [x[0].numpy() for i, x in enumerate(images, first) if i in wanted]
            first += len(images_bcs)
    levels = tuple(torch.cat(level) for level in zip(*codes, strict=True))
    shown = {name: np.stack(images) for name, images in kept.items()}
    return ReconstructionPass(mean_scores(full), mean_scores(top_only), levels, shown)


def prior_figures(
    model: TrainedModel,
    *,
    test_codes: Sequence[Tensor],
    training_codes: Sequence[Tensor],
    mirrored_codes: Sequence[Tensor],
    records: Sequence[Mapping[str, Any]],
    training_records: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Bits per code of each prior on the test slices, beside the uniform's and the per-position histogram's.

    Beside them stand the bits per code of as many training slices, evenly chosen: how much the priors have overfitted.

    The histogram is fitted twice, to the training slices and to these with their mirror images (on which the priors
    may have been trained as well); the lower of the two figures is reported, the stronger baseline.
    """
    test_bits = _bits_of_priors(model, test_codes, records)
    some = (
        torch.linspace(0, len(training_records) - 1, min(len(records), len(training_records))).round().long().tolist()
    )
    training_bits = _bits_of_priors(model, [grid[some] for grid in training_codes], [training_records[i] for i in some])
    figures = []
    for level, size in enumerate(prior.num_codes for prior in model.priors):
        seen = (training_codes[level], torch.cat([training_codes[level], mirrored_codes[level]]))
        histograms = [PositionHistogram(size).fit(codes).bits_per_code(test_codes[level]) for codes in seen]
        figures.append(
            {
                "level": level,
                "bits_per_code": test_bits[level],
                "training_bits_per_code": training_bits[level],
                "uniform_bits_per_code": uniform_bits_per_code(size),
                "histogram_bits_per_code": min(histograms),
            }
        )
    return figures


def _bits_of_priors(model: TrainedModel, codes: Sequence[Tensor], records: Sequence[Mapping[str, Any]]) -> list[float]:
    """Mean bits per code of each level's prior on these slices."""
    sampler, device, size = model.sampler(), model.device, model.batch_size
    condition_nf = encode_records(model.condition, records) if model.condition is not None else None
    parts = []
    for start in tqdm(range(0, len(records), size), desc="scoring priors", unit="batch", leave=False):
        rows = slice(start, start + size)
        condition = condition_nf[rows].to(device) if condition_nf is not None else None
        parts.append(sampler.log_prob([grid[rows].to(device) for grid in codes], condition=condition))
    return [
        bits_per_code(torch.cat([x.cpu() for x in log_prob]), codes[level][0].numel())
        for level, log_prob in enumerate(zip(*parts, strict=True))
    ]


def whole_grid_seconds(priors: Sequence[Any], codes: Sequence[Tensor], condition_nf: Tensor | None) -> float:
    """Time that plain sampling of these grids would take: one pass over the whole grid for every position.

    Extrapolated: a few passes a level are timed and multiplied by the number of positions.
    """
    seconds, device = 0.0, codes[0].device
    with torch.inference_mode():
        for level, prior in enumerate(priors):
            arguments = (codes[level], tuple(codes[:level]), condition_nf)
            prior(*arguments)  # the first pass pays for memory and kernels
            start = finished_time(device)
            for _ in range(WHOLE_GRID_PASSES):
                prior(*arguments)
            seconds += (finished_time(device) - start) / WHOLE_GRID_PASSES * codes[level][0].numel()
    return seconds


def sampling_figures(model: TrainedModel, samples: Samples) -> dict[str, Any]:
    """Our time beside whole-grid passes on batches of the same size."""
    total, count = 0.0, len(samples.conditions)
    for start in range(0, count, model.batch_size):
        rows = slice(start, start + model.batch_size)
        condition = None
        if model.condition is not None:
            condition = model.condition.encode(samples.conditions[rows]).to(model.device)
        total += whole_grid_seconds(model.priors, [grid[rows] for grid in samples.codes], condition)
    return {
        "num_samples": count,
        "seconds": samples.seconds,
        "ratio_to_whole_grid": total / samples.seconds,
        "whole_grid": f"extrapolated from {WHOLE_GRID_PASSES} passes a level",
    }


def data_figures(splits: Mapping[str, Sequence[Mapping[str, Any]]], image_size: Sequence[int]) -> dict[str, Any]:
    """How many subjects and slices each split has, and the slices' size in pixels."""
    return {
        "subjects": {
            name: len({record.get("subject", record["image"]) for record in records})
            for name, records in splits.items()
        },
        "slices": {name: len(records) for name, records in splits.items()},
        "image_size": [int(n) for n in image_size],
    }
