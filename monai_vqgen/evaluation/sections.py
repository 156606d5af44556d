"""The sections of `metrics.json`: reconstruction, codebooks, priors, codecs, samples.

Shape legend: n slices, b batch, c channels, s spatial axes, k codebook size.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monai_vqgen.evaluation.rate_distortion import RatedSystem, codec_figures, save_rate_distortion
from monai_vqgen.evaluation.sample_pictures import save_closest_pairs, save_positions
from monai_vqgen.evaluation.sample_scores import ImageSet, independent_codes, sample_metrics
from monai_vqgen.evaluation.scores import (
    ReconstructionPass,
    SliceSet,
    batches,
    encode_slices,
    prior_figures,
    raw_bits_per_pixel,
    sampling_figures,
)
from monai_vqgen.inferers import crop
from monai_vqgen.metrics import CodebookCounter, FeatureSpace, baseline_scores, codec_curves, mean_image
from monai_vqgen.models.priors import TrainedPriors
from monai_vqgen.models.sampling import SampleBatch, decode_in_batches
from monai_vqgen.networks import HierarchicalVQVAE

__all__ = ["Judged", "autoencoder_sections", "codec_section", "prior_sections", "sample_section"]


class Judged(NamedTuple):
    """An autoencoder with the slices it is judged on.

    Attributes:
        network: the autoencoder.
        training: slices for the baselines.
        test: slices that everything is measured on.
        batch_size: slices at once.
    """

    network: HierarchicalVQVAE
    training: SliceSet
    test: SliceSet
    batch_size: int


def autoencoder_sections(judged: Judged, result: ReconstructionPass, counters: list[CodebookCounter]) -> dict[str, Any]:
    """`reconstruction` with its baselines, `top_only`, `codebook` and the raw `rate`; fills one counter a level."""
    for counter, codes in zip(counters, result.codes, strict=True):
        counter.update(codes)
    mean_cs = mean_image(batches(judged.training, judged.batch_size, description="mean image"))
    baselines = baseline_scores(batches(judged.test, judged.batch_size, description="baselines"), mean_cs)
    scores = {"all_black": baselines.all_black, "mean_image": baselines.mean_image}
    image_size = judged.test[0]["image"].shape[1:]
    return {
        "reconstruction": {**result.full, "baselines": scores},
        "top_only": result.top_only,
        "codebook": [
            {"level": level, "size": use.size, "usage": use.usage, "perplexity": use.perplexity}
            for level, use in enumerate(counter.compute() for counter in counters)
        ],
        "rate": {"raw_bits_per_pixel": raw_bits_per_pixel(judged.network, image_size)},
    }


def prior_sections(
    judged: Judged,
    priors: TrainedPriors,
    result: ReconstructionPass,
    training_codes: tuple[Tensor, ...],
    samples: SampleBatch,
) -> dict[str, Any]:
    """`prior`, the `rate` raw and after the priors, and `sampling`."""
    figures = prior_figures(
        priors,
        test_codes=result.codes,
        training_codes=training_codes,
        mirrored_codes=encode_slices(
            judged.network,
            judged.training,
            batch_size=judged.batch_size,
            mirror=True,
            description="encoding mirrored slices",
        ),
        records=judged.test.data,
        training_records=judged.training.data,
        sizes=judged.network.codebook_sizes,
        batch_size=judged.batch_size,
    )
    image_size = priors.image_size or ()
    positions = [grid[0].numel() for grid in result.codes]
    coded = sum(n * row["bits_per_code"] for n, row in zip(positions, figures, strict=True)) / math.prod(image_size)
    return {
        "prior": figures,
        "rate": {"raw_bits_per_pixel": raw_bits_per_pixel(judged.network, image_size), "coded_bits_per_pixel": coded},
        "sampling": sampling_figures(priors, samples, judged.batch_size),
    }


def codec_section(judged: Judged, system: RatedSystem, folder: Path) -> dict[str, Any]:
    """`codecs`: JPEG, JPEG 2000 and WebP at the system's rates; draws `rate_distortion.png`."""
    curves = codec_curves(batches(judged.test, judged.batch_size, description="codecs"))
    save_rate_distortion(curves, [system], folder / "rate_distortion.png")
    return codec_figures(curves, system)


def sample_section(
    judged: Judged,
    samples: SampleBatch,
    result: ReconstructionPass,
    training_codes: tuple[Tensor, ...],
    folder: Path,
    *,
    feature_space: FeatureSpace | None,
    seed: int,
) -> dict[str, Any]:
    """`samples`: sampled against real slices; draws `closest_pairs.png` and, where it can, `positions.png`."""
    network, test = judged.network, judged.test
    real, learned = (
        ImageSet(torch.cat(list(batches(slices, 64, description="real slices"))), slices.data)
        for slices in (test, judged.training)
    )
    size = real.images.shape[2:]
    context_free = independent_codes(training_codes, num_samples=len(samples.images_ncs), seed=seed)
    section, nearest = sample_metrics(
        ImageSet(samples.images_ncs, samples.conditions),
        training=learned,
        test=real,
        reconstructions=ImageSet(crop(decode_in_batches(network, result.codes), size), test.data),
        independent=ImageSet(crop(decode_in_batches(network, context_free), size)),
        feature_space=feature_space,
        mirror=test.data[0].get("plane") != "sagittal",  # whose left-right mirror is its front turned back
        seed=seed,
    )
    save_closest_pairs(samples.images_ncs, learned.images, nearest, folder / "closest_pairs.png")
    drawn = samples.images_ncs[:, 0].numpy()
    positions = [float(values["position_mm"]) for values in samples.conditions if "position_mm" in values]
    if len(positions) == len(drawn):
        save_positions(drawn, positions, folder / "positions.png")
    return section
