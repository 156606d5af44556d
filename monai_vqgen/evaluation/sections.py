"""The sections of `metrics.json`: data, reconstruction, codebooks, priors, sampling, samples.

Shape legend: n slices, b batch, c channels, s spatial axes, k codebook size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import Dataset
from monai.inferers import Inferer
from torch import Tensor
from tqdm.auto import tqdm

from monai_vqgen.data.slices.datalists import evenly_spaced
from monai_vqgen.errors import InputError
from monai_vqgen.evaluation.pictures import save_closest_pairs, save_positions
from monai_vqgen.evaluation.prior_figures import inside_figures, prior_figures
from monai_vqgen.evaluation.sample_scores import ImageKinds, ImageSet, independent_codes, sample_metrics
from monai_vqgen.inferers.draws import finished_time
from monai_vqgen.metrics import (
    CodebookCounter,
    FeatureSpace,
    ReconstructionScores,
    baseline_scores,
    mean_image,
    mean_scores,
    reconstruction_scores,
)
from monai_vqgen.models import Samples, TrainedModel
from monai_vqgen.plots.pictures import as_shown
from monai_vqgen.transforms.geometry import LEFT_RIGHT_AXIS

SHOWN = {2: 8, 3: 3}  # slices, or volumes in three planes, in a row of the pictures
WHOLE_GRID_PASSES = 2  # timed a level; a sample takes as many as the level has positions


class EvaluationData(NamedTuple):
    """What a model is evaluated on.

    Attributes:
        training: slices for the baselines: the mean image and the per-position histograms.
        test: slices that everything is measured on, of subjects not trained on.
        records: of all splits by name, for the counts of subjects and slices.
        split: which of them `test` is; goes into the results.
    """

    training: Dataset
    test: Dataset
    records: Mapping[str, Sequence[Mapping[str, Any]]]
    split: str = "test"

    @property
    def image_size(self) -> tuple[int, ...]:
        """Of the slices, in pixels."""
        return tuple(int(n) for n in self.test[0]["image"].shape[1:])


class ReconstructionPass(NamedTuple):
    """What one pass over the test slices gives."""

    full: dict[str, float]
    top_only: dict[str, float]
    codes: tuple[Tensor, ...]
    shown: dict[str, np.ndarray]


def batches(slices: Dataset, batch_size: int, *, description: str) -> Iterator[Tensor]:
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
    model: TrainedModel, slices: Dataset, *, mirror: bool = False, description: str = "encoding"
) -> tuple[Tensor, ...]:
    """Codes of every slice, or of its mirror image, one grid `(n, *s)` a level, coarsest first, on the CPU."""
    axis = LEFT_RIGHT_AXIS[model.autoencoder.spatial_dims]
    parts = [
        [grid.cpu() for grid in model.encode(images_bcs.flip(axis) if mirror else images_bcs)]
        for images_bcs in batches(slices, model.batch_size, description=description)
    ]
    return tuple(torch.cat(level) for level in zip(*parts, strict=True))


def reconstruct_slices(model: TrainedModel, test: Dataset, *, inferer: Inferer) -> ReconstructionPass:
    """Reconstruct every test slice, by the inferer from all levels, and from the coarsest alone."""
    network, device = model.autoencoder, model.device
    full: list[ReconstructionScores] = []
    top_only: list[ReconstructionScores] = []
    codes, kept, first = [], {"original": [], "reconstruction": [], "top_only": []}, 0  # type: ignore[var-annotated]
    wanted = set(evenly_spaced(SHOWN[network.spatial_dims], len(test)))
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
                kept[name] += [as_shown(x.numpy()) for i, x in enumerate(images, first) if i in wanted]
            first += len(images_bcs)
    levels = tuple(torch.cat(level) for level in zip(*codes, strict=True))
    shown = {name: np.stack(images) for name, images in kept.items()}
    return ReconstructionPass(mean_scores(full), mean_scores(top_only), levels, shown)


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


def autoencoder_sections(
    model: TrainedModel, data: EvaluationData, result: ReconstructionPass, counters: list[CodebookCounter]
) -> dict[str, Any]:
    """`reconstruction` with its baselines, `top_only`, `codebook` and the raw `rate`; fills one counter a level."""
    for counter, codes in zip(counters, result.codes, strict=True):
        counter.update(codes)
    mean_cs = mean_image(batches(data.training, model.batch_size, description="mean image"))
    baselines = baseline_scores(batches(data.test, model.batch_size, description="baselines"), mean_cs)
    return {
        "reconstruction": {**result.full, "baselines": baselines._asdict()},
        "top_only": result.top_only,
        "codebook": [
            {"level": level, "size": use.size, "usage": use.usage, "perplexity": use.perplexity}
            for level, use in enumerate(counter.compute() for counter in counters)
        ],
        "rate": {"raw_bits_per_pixel": _bits_per_pixel(model, data)},
    }


def prior_sections(
    model: TrainedModel,
    data: EvaluationData,
    result: ReconstructionPass,
    training_codes: tuple[Tensor, ...],
    samples: Samples,
) -> dict[str, Any]:
    """`prior`, the `rate` raw and after the priors, and `sampling`."""
    figures = prior_figures(
        model,
        test_codes=result.codes,
        training_codes=training_codes,
        mirrored_codes=encode_slices(model, data.training, mirror=True, description="encoding mirrored slices"),
        records=data.test.data,
        training_records=data.training.data,
    )
    for row, inside in zip(figures, inside_figures(model, data.test, result.codes), strict=True):
        row.update(inside)
    coded = _bits_per_pixel(model, data, [row["bits_per_code"] for row in figures])
    return {
        "prior": figures,
        "rate": {"raw_bits_per_pixel": _bits_per_pixel(model, data), "coded_bits_per_pixel": coded},
        "sampling": sampling_figures(model, samples),
    }


def _bits_per_pixel(model: TrainedModel, data: EvaluationData, bits: Sequence[float] | None = None) -> float:
    """What the codes take at so many bits a code of each level; by default log2 of the codebook's size."""
    bits = bits or [math.log2(size) for size in model.autoencoder.codebook_sizes]
    codes = [math.prod(grid) for grid in model.autoencoder.grids(data.image_size)]
    return sum(n * each for n, each in zip(codes, bits, strict=True)) / math.prod(data.image_size)


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


def sample_section(
    model: TrainedModel,
    data: EvaluationData,
    result: ReconstructionPass,
    training_codes: tuple[Tensor, ...],
    samples: Samples,
    *,
    folder: Path,
    feature_space: FeatureSpace | None,
    classifier_steps: int,
) -> dict[str, Any]:
    """`samples`: sampled against real slices; draws `closest_pairs.png` and, where it can, `positions.png`."""
    real, learned = (
        ImageSet(torch.cat(list(batches(slices, 64, description="real slices"))), slices.data)
        for slices in (data.test, data.training)
    )
    context_free = independent_codes(training_codes, num_samples=len(samples.images), seed=samples.seed)
    kinds = ImageKinds(
        samples=ImageSet(samples.images, samples.conditions),
        training=learned,
        test=real,
        reconstructions=ImageSet(model.decode(result.codes).cpu(), data.test.data),
        independent=ImageSet(model.decode(context_free).cpu()),
    )
    section, nearest = sample_metrics(
        kinds,
        feature_space=feature_space,
        classifier_steps=classifier_steps,
        mirror=data.test.data[0].get("plane") != "sagittal",  # whose left-right mirror is its front turned back
        seed=samples.seed,
    )
    save_closest_pairs(samples, learned.images, nearest, folder / "closest_pairs.png")
    if all("position_mm" in values for values in samples.conditions):
        save_positions(samples, folder / "positions.png")
    return section
