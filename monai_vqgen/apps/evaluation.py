"""All figures of a trained model on the test subjects, each beside its baseline: `metrics.json` and pictures.

Shape legend: n slices, b batch, c channels, s spatial axes, k codebook size.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from monai_vqgen.apps.pictures import (
    PictureRow,
    grid_picture,
    save_numbered_grid,
    save_png,
    save_rows,
    save_usage,
)
from monai_vqgen.apps.priors import TrainedPriors
from monai_vqgen.apps.sampling import SampleBatch, draw_samples
from monai_vqgen.data import load_datalist
from monai_vqgen.data.files import write_json
from monai_vqgen.engines import encode_records
from monai_vqgen.errors import DatalistError, InputError
from monai_vqgen.inferers import AncestralSampler
from monai_vqgen.metrics import (
    CodebookCounter,
    PositionHistogram,
    ReconstructionScores,
    baseline_scores,
    bits_per_code,
    mean_image,
    mean_scores,
    reconstruction_scores,
    uniform_bits_per_code,
)
from monai_vqgen.networks import HierarchicalVQVAE

__all__ = ["SliceSet", "encode_slices", "evaluate", "raw_bits_per_pixel", "split_records"]

logger = logging.getLogger(__name__)

SHOWN = 8  # slices in a row of the pictures
WHOLE_GRID_PASSES = 2  # passes timed a level; a sample takes as many as the level has positions


class SliceSet(Protocol):
    """A data set as MONAI's: items `{"image": [1, *s], ...}` and the records they were made of in `data`."""

    data: Sequence[Any]

    def __len__(self) -> int:
        """Number of slices."""

    def __getitem__(self, index: int) -> Any:
        """One slice."""


class _TestPass(NamedTuple):
    """What one pass over the test slices gives."""

    full: dict[str, float]
    top_only: dict[str, float]
    codes: tuple[Tensor, ...]
    shown: dict[str, np.ndarray]


def split_records(dataset_dir: str | Path) -> dict[str, list[dict[str, Any]]]:
    """The records of all three splits of a folder of slices; only the validation split may be empty.

    Raises:
        DatalistError: there are no training or no test slices.
    """
    records = {"training": load_datalist(dataset_dir, "training"), "validation": []}
    try:
        records["validation"] = load_datalist(dataset_dir, "validation")
    except DatalistError as error:
        logger.warning("%s", error)
    records["test"] = load_datalist(dataset_dir, "test")
    return records


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
    network: HierarchicalVQVAE, slices: SliceSet, *, batch_size: int = 16, description: str = "encoding"
) -> tuple[Tensor, ...]:
    """Codes of every slice, one grid `(n, *s)` a level, coarsest first, on the CPU."""
    device = next(network.parameters()).device
    parts = []
    with torch.no_grad():
        for images_bcs in batches(slices, batch_size, description=description):
            parts.append([grid.cpu() for grid in network.encode(images_bcs.to(device))])
    return tuple(torch.cat(level) for level in zip(*parts, strict=True))


def raw_bits_per_pixel(network: HierarchicalVQVAE, image_size: Sequence[int]) -> float:
    """Bits a pixel that the codes take when every code costs log2 of its codebook's size."""
    grids = network.grids(image_size)
    bits = sum(math.prod(grid) * math.log2(size) for grid, size in zip(grids, network.codebook_sizes, strict=True))
    return bits / math.prod(image_size)


def _shown_indices(count: int) -> list[int]:
    return sorted(set(np.linspace(0, count - 1, min(SHOWN, count)).round().astype(int).tolist()))


def _cropped(images_bcs: Tensor, size: Sequence[int]) -> Tensor:
    """The first pixels of each axis (sizes that do not divide are padded at the end), in [0, 1], on the CPU."""
    for axis, length in enumerate(size, start=2):
        images_bcs = images_bcs.narrow(axis, 0, length)
    return images_bcs.clamp(0, 1).cpu()


def _test_pass(network: HierarchicalVQVAE, test: SliceSet, *, batch_size: int) -> _TestPass:
    """Reconstruct every test slice from all levels and from the coarsest alone."""
    device = next(network.parameters()).device
    full: list[ReconstructionScores] = []
    top_only: list[ReconstructionScores] = []
    codes, kept, first = [], {"original": [], "reconstruction": [], "top_only": []}, 0  # type: ignore[var-annotated]
    wanted = set(_shown_indices(len(test)))
    with torch.no_grad():
        for images_bcs in batches(test, batch_size, description="reconstructing"):
            grids = network.encode(images_bcs.to(device))
            size = images_bcs.shape[2:]
            all_levels = _cropped(network.decode(grids), size)
            coarsest = _cropped(network.decode(grids[:1]), size)
            full.append(reconstruction_scores(all_levels, images_bcs))
            top_only.append(reconstruction_scores(coarsest, images_bcs))
            codes.append([grid.cpu() for grid in grids])
            for name, images in zip(kept, (images_bcs, all_levels, coarsest), strict=True):
                kept[name] += [x[0].numpy() for i, x in enumerate(images, first) if i in wanted]
            first += len(images_bcs)
    levels = tuple(torch.cat(level) for level in zip(*codes, strict=True))
    shown = {name: np.stack(images) for name, images in kept.items()}
    return _TestPass(mean_scores(full), mean_scores(top_only), levels, shown)


def _prior_figures(
    priors: TrainedPriors,
    *,
    test_codes: Sequence[Tensor],
    training_codes: Sequence[Tensor],
    records: Sequence[Mapping[str, Any]],
    sizes: Sequence[int],
    batch_size: int,
) -> list[dict[str, Any]]:
    """Bits per code of each prior on the test slices, beside the uniform's and the per-position histogram's."""
    sampler = AncestralSampler(priors.networks, batch_size=batch_size)
    device = next(priors.networks[0].parameters()).device
    condition_nf = encode_records(priors.condition, records) if priors.condition is not None else None
    parts = []
    for start in tqdm(range(0, len(records), batch_size), desc="scoring priors", unit="batch", leave=False):
        rows = slice(start, start + batch_size)
        condition = condition_nf[rows].to(device) if condition_nf is not None else None
        parts.append(sampler.log_prob([grid[rows].to(device) for grid in test_codes], condition=condition))
    figures = []
    for level, (log_prob, size) in enumerate(zip(zip(*parts, strict=True), sizes, strict=True)):
        positions = test_codes[level][0].numel()
        histogram = PositionHistogram(size).fit(training_codes[level])
        figures.append(
            {
                "level": level,
                "bits_per_code": bits_per_code(torch.cat([x.cpu() for x in log_prob]), positions),
                "uniform_bits_per_code": uniform_bits_per_code(size),
                "histogram_bits_per_code": histogram.bits_per_code(test_codes[level]),
            }
        )
    return figures


def whole_grid_seconds(priors: TrainedPriors, codes: Sequence[Tensor], condition_nf: Tensor | None) -> float:
    """Time that plain sampling of these grids would take: one pass over the whole grid for every position.

    Extrapolated: a few passes a level are timed and multiplied by the number of positions.
    """
    seconds = 0.0
    with torch.inference_mode():
        for level, prior in enumerate(priors.networks):
            arguments = (codes[level], tuple(codes[:level]), condition_nf)
            prior(*arguments)  # the first pass pays for memory and kernels
            start = time.perf_counter()
            for _ in range(WHOLE_GRID_PASSES):
                prior(*arguments)
            seconds += (time.perf_counter() - start) / WHOLE_GRID_PASSES * codes[level][0].numel()
    return seconds


def _sampling_figures(priors: TrainedPriors, samples: SampleBatch, batch_size: int) -> dict[str, Any]:
    """Our time beside whole-grid passes on batches of the same size."""
    device = samples.codes[0].device
    total = 0.0
    count = len(samples.conditions)
    for start in range(0, count, batch_size):
        rows = slice(start, start + batch_size)
        condition = None
        if priors.condition is not None:
            condition = priors.condition.encode(samples.conditions[rows]).to(device)
        total += whole_grid_seconds(priors, [grid[rows] for grid in samples.codes], condition)
    return {
        "num_samples": count,
        "seconds": samples.seconds,
        "ratio_to_whole_grid": total / samples.seconds,
        "whole_grid": f"extrapolated from {WHOLE_GRID_PASSES} passes a level",
    }


def _data_figures(splits: Mapping[str, Sequence[Mapping[str, Any]]], image_size: Sequence[int]) -> dict[str, Any]:
    return {
        "subjects": {
            name: len({record.get("subject", record["image"]) for record in records})
            for name, records in splits.items()
        },
        "slices": {name: len(records) for name, records in splits.items()},
        "image_size": [int(n) for n in image_size],
    }


def _write_pictures(
    folder: Path, shown: Mapping[str, np.ndarray], samples: SampleBatch, counts: list, seed: int
) -> None:
    original, reconstruction = shown["original"], shown["reconstruction"]
    save_rows(
        [
            PictureRow("original", original),
            PictureRow("reconstruction", reconstruction),
            PictureRow("difference\n(±0.25)", reconstruction - original, signed=True),
            PictureRow("coarsest level\nalone", shown["top_only"]),
        ],
        folder / "reconstructions.png",
    )
    save_usage(counts, folder / "usage.png")
    drawn = samples.images_ncs[:, 0].numpy()
    save_png(grid_picture(drawn), folder / "samples.png")
    order = np.random.default_rng(seed).permutation(len(original) + min(SHOWN, len(drawn)))
    mixed = np.concatenate([original, drawn[:SHOWN]])[order]
    save_numbered_grid(mixed, folder / "real_and_sampled.png")
    sampled = [place + 1 for place, index in enumerate(order.tolist()) if index >= len(original)]
    write_json(folder / "real_and_sampled.json", {"sampled": sampled})


def evaluate(
    network: HierarchicalVQVAE,
    priors: TrainedPriors,
    *,
    training: SliceSet,
    test: SliceSet,
    output_dir: str | Path,
    split_records: Mapping[str, Sequence[Mapping[str, Any]]],
    num_samples: int = 16,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    batch_size: int = 16,
) -> dict[str, Any]:
    """Judge a trained model on test slices and write `metrics.json` (last), and its pictures, to a folder.

    Pictures: `reconstructions.png`, `samples.png`, `usage.png`, `real_and_sampled.png` (with its key in JSON).

    Args:
        network: the trained autoencoder.
        priors: the trained priors, of this autoencoder.
        training: slices for the baselines: the mean image and the per-position histograms.
        test: slices that everything is measured on.
        output_dir: where the results go.
        split_records: the records of each split, for the counts of subjects and slices.
        num_samples: how many samples to draw.
        seed: of the samples.
        temperature: of the samples.
        top_k: of the samples.
        top_p: of the samples.
        batch_size: slices or samples at once.

    Returns:
        The content of `metrics.json`.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    samples = draw_samples(  # first: a wrong argument costs seconds, not minutes
        network,
        priors,
        num_samples=num_samples,
        seed=seed,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        batch_size=batch_size,
    )
    result = _test_pass(network, test, batch_size=batch_size)
    mean_cs = mean_image(batches(training, batch_size, description="mean image"))
    baselines = baseline_scores(batches(test, batch_size, description="baselines"), mean_cs)
    training_codes = encode_slices(network, training, batch_size=batch_size, description="encoding training slices")
    counters = [CodebookCounter(size) for size in network.codebook_sizes]
    for counter, codes in zip(counters, result.codes, strict=True):
        counter.update(codes)
    figures = _prior_figures(
        priors,
        test_codes=result.codes,
        training_codes=training_codes,
        records=test.data,
        sizes=network.codebook_sizes,
        batch_size=batch_size,
    )
    image_size = mean_cs.shape[1:]
    positions = [grid[0].numel() for grid in result.codes]
    coded = sum(n * row["bits_per_code"] for n, row in zip(positions, figures, strict=True)) / math.prod(image_size)
    uses = [counter.compute() for counter in counters]
    metrics = {
        "reconstruction": {
            **result.full,
            "baselines": {"all_black": baselines.all_black, "mean_image": baselines.mean_image},
        },
        "top_only": result.top_only,
        "codebook": [
            {"level": level, "size": use.size, "usage": use.usage, "perplexity": use.perplexity}
            for level, use in enumerate(uses)
        ],
        "prior": figures,
        "rate": {"raw_bits_per_pixel": raw_bits_per_pixel(network, image_size), "coded_bits_per_pixel": coded},
        "sampling": _sampling_figures(priors, samples, batch_size),
        "data": _data_figures(split_records, image_size),
    }
    _write_pictures(folder, result.shown, samples, [c.total_counts().numpy() for c in counters], seed=seed)
    write_json(folder / "metrics.json", _json_numbers(metrics))
    _log(metrics)
    return metrics


def _json_numbers(content: Any) -> Any:
    """The same with NaN as null, for JSON has none: a score over no brain at all."""
    if isinstance(content, Mapping):
        return {key: _json_numbers(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_json_numbers(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _log(metrics: Mapping[str, Any]) -> None:
    scores, mean = metrics["reconstruction"], metrics["reconstruction"]["baselines"]["mean_image"]
    logger.info(
        "Brain SSIM %.3f (mean training image %.3f), PSNR %.2f dB (%.2f)",
        scores["ssim_brain"],
        mean["ssim_brain"],
        scores["psnr"],
        mean["psnr"],
    )
    for row in metrics["prior"]:
        logger.info(
            "Prior of level %d: %.3f bits a code (histogram %.3f, uniform %.3f)",
            row["level"],
            row["bits_per_code"],
            row["histogram_bits_per_code"],
            row["uniform_bits_per_code"],
        )
