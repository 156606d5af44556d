"""All figures of a trained model on the test subjects, each beside its baseline: `metrics.json` and pictures."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_vqgen.apps.figures import (
    SHOWN,
    ReconstructionPass,
    SliceSet,
    batches,
    data_figures,
    encode_slices,
    prior_figures,
    raw_bits_per_pixel,
    reconstruct_slices,
    sampling_figures,
)
from monai_vqgen.apps.pictures import (
    PictureRow,
    grid_picture,
    save_numbered_grid,
    save_png,
    save_rows,
    save_usage,
)
from monai_vqgen.apps.priors import TrainedPriors
from monai_vqgen.apps.rate_distortion import codec_figures, rated_system, save_rate_distortion
from monai_vqgen.apps.sample_metrics import (
    ImageSet,
    check_sample_report,
    independent_codes,
    sample_metrics,
    save_closest_pairs,
    save_positions,
)
from monai_vqgen.apps.sampling import SampleBatch, crop, decode_in_batches, draw_samples
from monai_vqgen.data import load_datalist
from monai_vqgen.data.files import write_json
from monai_vqgen.errors import DatalistError, InputError
from monai_vqgen.metrics import CodebookCounter, baseline_scores, codec_curves, mean_image
from monai_vqgen.networks import HierarchicalVQVAE

__all__ = ["evaluate", "split_records"]

logger = logging.getLogger(__name__)

MOST_DRAWN = 64
"""Samples in their grid picture."""
MIXED = 32
"""Real slices, and as many samples, in the unlabelled grid of the report of samples."""


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


def _write_pictures(folder: Path, shown: Mapping[str, np.ndarray], samples: SampleBatch, counts: list) -> None:
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
    rows = [("test slices", original), ("reconstructed", reconstruction), ("samples", drawn)]
    width = min(len(images) for _, images in rows)
    save_rows([PictureRow(name, images[:width]) for name, images in rows], folder / "overview.png")
    save_png(grid_picture(drawn[:MOST_DRAWN]), folder / "samples.png")


def _save_mixed(folder: Path, real_nhw: np.ndarray, drawn_nhw: np.ndarray, seed: int) -> None:
    """Real and sampled slices in random order, numbered, and a file that says which were sampled."""
    order = np.random.default_rng(seed).permutation(len(real_nhw) + len(drawn_nhw))
    save_numbered_grid(np.concatenate([real_nhw, drawn_nhw])[order], folder / "real_and_sampled.png")
    sampled = [place + 1 for place, index in enumerate(order.tolist()) if index >= len(real_nhw)]
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
    temperature: float | Sequence[float] = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    batch_size: int = 16,
    codecs: bool = False,
    sample_report: bool = False,
) -> dict[str, Any]:
    """Judge a trained model on test slices and write `metrics.json`, then its pictures, to a folder.

    Pictures: `overview.png`, `reconstructions.png`, `samples.png`, `usage.png`, and
    `real_and_sampled.png` with its key in JSON; on demand `rate_distortion.png`, `closest_pairs.png` and
    `positions.png`.

    Args:
        network: the trained autoencoder.
        priors: the trained priors, of this autoencoder.
        training: slices for the baselines: the mean image and the per-position histograms (these also with the
            slices' mirror images, whichever is the stronger baseline).
        test: slices that everything is measured on.
        output_dir: where the results go.
        split_records: the records of each split, for the counts of subjects and slices.
        num_samples: how many samples to draw.
        seed: of the samples.
        temperature: of the samples, for all levels or one a level.
        top_k: of the samples.
        top_p: of the samples.
        batch_size: slices or samples at once.
        codecs: whether to compress the test slices with JPEG, JPEG 2000 and WebP too (under a second a slice).
        sample_report: whether to set the samples against real slices too (minutes; ask for 512 samples or more). The
            samples' conditions are then those of training slices drawn at random, so that they ask for the same mix.

    Returns:
        The content of `metrics.json`.

    Raises:
        InputError: the priors are of slices of another size, or an argument of the sampling is out of its range.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    priors = _of_slices(priors, network, test)
    if sample_report:
        check_sample_report(
            num_samples,
            {"training slices": training.data, "test slices": test.data},
            image_size=priors.image_size,
        )
    samples = draw_samples(  # first: a wrong argument costs seconds, not minutes
        network,
        priors,
        num_samples=num_samples,
        seed=seed,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        like=training.data if sample_report else None,
        batch_size=batch_size,
    )
    result = reconstruct_slices(network, test, batch_size=batch_size)
    training_codes = encode_slices(network, training, batch_size=batch_size, description="encoding training slices")
    counters = [CodebookCounter(size) for size in network.codebook_sizes]
    for counter, codes in zip(counters, result.codes, strict=True):
        counter.update(codes)
    metrics = {
        **_reconstruction_section(result, training, test, batch_size),
        "codebook": [
            {"level": level, "size": use.size, "usage": use.usage, "perplexity": use.perplexity}
            for level, use in enumerate(counter.compute() for counter in counters)
        ],
        **_prior_section(network, priors, result, training, test, training_codes, batch_size),
        "sampling": sampling_figures(priors, samples, batch_size),
        "data": data_figures(split_records, priors.image_size or ()),
    }
    if codecs:
        metrics["codecs"] = _codec_section(metrics, test, folder, batch_size)
    if sample_report:
        metrics["samples"] = _sample_section(network, samples, result, training, test, training_codes, folder, seed)
    write_json(folder / "metrics.json", _json_numbers(metrics))  # before the pictures: it took longest
    _write_pictures(folder, result.shown, samples, [c.total_counts().numpy() for c in counters])
    shown = MIXED if sample_report else SHOWN
    some = np.linspace(0, len(test) - 1, min(shown, len(test))).round().astype(int).tolist()
    real = np.stack([np.asarray(test[i]["image"])[0] for i in some])
    _save_mixed(folder, real, samples.images_ncs[:shown, 0].numpy(), seed)
    _log(metrics)
    return metrics


def _reconstruction_section(
    result: ReconstructionPass, training: SliceSet, test: SliceSet, batch_size: int
) -> dict[str, Any]:
    mean_cs = mean_image(batches(training, batch_size, description="mean image"))
    baselines = baseline_scores(batches(test, batch_size, description="baselines"), mean_cs)
    scores = {"all_black": baselines.all_black, "mean_image": baselines.mean_image}
    return {"reconstruction": {**result.full, "baselines": scores}, "top_only": result.top_only}


def _prior_section(
    network: HierarchicalVQVAE,
    priors: TrainedPriors,
    result: ReconstructionPass,
    training: SliceSet,
    test: SliceSet,
    training_codes: tuple[Tensor, ...],
    batch_size: int,
) -> dict[str, Any]:
    figures = prior_figures(
        priors,
        test_codes=result.codes,
        training_codes=training_codes,
        mirrored_codes=encode_slices(
            network, training, batch_size=batch_size, mirror=True, description="encoding mirrored slices"
        ),
        records=test.data,
        training_records=training.data,
        sizes=network.codebook_sizes,
        batch_size=batch_size,
    )
    image_size = priors.image_size or ()
    positions = [grid[0].numel() for grid in result.codes]
    coded = sum(n * row["bits_per_code"] for n, row in zip(positions, figures, strict=True)) / math.prod(image_size)
    return {
        "prior": figures,
        "rate": {"raw_bits_per_pixel": raw_bits_per_pixel(network, image_size), "coded_bits_per_pixel": coded},
    }


def _codec_section(metrics: Mapping[str, Any], test: SliceSet, folder: Path, batch_size: int) -> dict[str, Any]:
    curves = codec_curves(batches(test, batch_size, description="codecs"))
    system = rated_system("ours", metrics)
    save_rate_distortion(curves, [system], folder / "rate_distortion.png")
    return codec_figures(curves, system)


def _sample_section(
    network: HierarchicalVQVAE,
    samples: SampleBatch,
    result: ReconstructionPass,
    training: SliceSet,
    test: SliceSet,
    training_codes: tuple[Tensor, ...],
    folder: Path,
    seed: int,
) -> dict[str, Any]:
    real, learned = (
        ImageSet(torch.cat(list(batches(slices, 64, description="real slices"))), slices.data)
        for slices in (test, training)
    )
    size = real.images.shape[2:]
    context_free = independent_codes(training_codes, num_samples=len(samples.images_ncs), seed=seed)
    section, nearest = sample_metrics(
        ImageSet(samples.images_ncs, samples.conditions),
        training=learned,
        test=real,
        reconstructions=ImageSet(crop(decode_in_batches(network, result.codes), size), test.data),
        independent=ImageSet(crop(decode_in_batches(network, context_free), size)),
        mirror=test.data[0].get("plane") != "sagittal",  # whose left-right mirror is its front turned back
        seed=seed,
    )
    save_closest_pairs(samples.images_ncs, learned.images, nearest, folder / "closest_pairs.png")
    drawn = samples.images_ncs[:, 0].numpy()
    positions = [float(values["position_mm"]) for values in samples.conditions if "position_mm" in values]
    if len(positions) == len(drawn):
        save_positions(drawn, positions, folder / "positions.png")
    return section


def _of_slices(priors: TrainedPriors, network: HierarchicalVQVAE, slices: SliceSet) -> TrainedPriors:
    """The priors with the size of these slices, where their files do not tell it; refuses slices of another size."""
    image_size = tuple(int(n) for n in slices[0]["image"].shape[1:])
    if image_size != (priors.image_size or image_size) or tuple(network.grids(image_size)) != priors.grids:
        raise InputError(
            f"the slices are of {image_size} pixels, the priors of {priors.image_size or 'another size'}: evaluate on "
            "slices of the size that the priors learned from, or give --image_size"
        )
    return priors._replace(image_size=image_size)


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
