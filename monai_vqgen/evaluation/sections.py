"""The sections of `metrics.json`: reconstruction, codebooks, priors, codecs, samples.

Shape legend: n slices, b batch, c channels, s spatial axes, k codebook size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monai_vqgen.evaluation.pictures import save_closest_pairs, save_positions
from monai_vqgen.evaluation.rate_distortion import RatedSystem, codec_figures, save_rate_distortion
from monai_vqgen.evaluation.sample_scores import ImageKinds, ImageSet, independent_codes, sample_metrics
from monai_vqgen.evaluation.scores import (
    ReconstructionPass,
    SliceSet,
    batches,
    encode_slices,
    prior_figures,
    raw_bits_per_pixel,
    sampling_figures,
)
from monai_vqgen.metrics import CodebookCounter, FeatureSpace, baseline_scores, codec_curves, mean_image
from monai_vqgen.models import Samples, TrainedModel

__all__ = ["EvaluationData", "autoencoder_sections", "codec_section", "prior_sections", "sample_section"]


class EvaluationData(NamedTuple):
    """What a model is evaluated on.

    Attributes:
        training: slices for the baselines: the mean image and the per-position histograms.
        test: slices that everything is measured on, of subjects not trained on.
        records: of all splits by name, for the counts of subjects and slices.
        split: which of them `test` is; goes into the results.
    """

    training: SliceSet
    test: SliceSet
    records: Mapping[str, Sequence[Mapping[str, Any]]]
    split: str = "test"

    @property
    def image_size(self) -> tuple[int, ...]:
        """Of the slices, in pixels."""
        return tuple(int(n) for n in self.test[0]["image"].shape[1:])


def autoencoder_sections(
    model: TrainedModel, data: EvaluationData, result: ReconstructionPass, counters: list[CodebookCounter]
) -> dict[str, Any]:
    """`reconstruction` with its baselines, `top_only`, `codebook` and the raw `rate`; fills one counter a level."""
    for counter, codes in zip(counters, result.codes, strict=True):
        counter.update(codes)
    mean_cs = mean_image(batches(data.training, model.batch_size, description="mean image"))
    baselines = baseline_scores(batches(data.test, model.batch_size, description="baselines"), mean_cs)
    scores = {"all_black": baselines.all_black, "mean_image": baselines.mean_image}
    return {
        "reconstruction": {**result.full, "baselines": scores},
        "top_only": result.top_only,
        "codebook": [
            {"level": level, "size": use.size, "usage": use.usage, "perplexity": use.perplexity}
            for level, use in enumerate(counter.compute() for counter in counters)
        ],
        "rate": {"raw_bits_per_pixel": raw_bits_per_pixel(model.autoencoder, data.image_size)},
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
    size, positions = data.image_size, [grid[0].numel() for grid in result.codes]
    coded = sum(n * row["bits_per_code"] for n, row in zip(positions, figures, strict=True)) / math.prod(size)
    raw = raw_bits_per_pixel(model.autoencoder, size)
    return {
        "prior": figures,
        "rate": {"raw_bits_per_pixel": raw, "coded_bits_per_pixel": coded},
        "sampling": sampling_figures(model, samples),
    }


def codec_section(model: TrainedModel, data: EvaluationData, system: RatedSystem, folder: Path) -> dict[str, Any]:
    """`codecs`: JPEG, JPEG 2000 and WebP at the system's rates; draws `rate_distortion.png`."""
    curves = codec_curves(batches(data.test, model.batch_size, description="codecs"))
    save_rate_distortion(curves, [system], folder / "rate_distortion.png")
    return codec_figures(curves, system)


def sample_section(
    model: TrainedModel,
    data: EvaluationData,
    result: ReconstructionPass,
    training_codes: tuple[Tensor, ...],
    samples: Samples,
    *,
    folder: Path,
    feature_space: FeatureSpace | None,
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
        mirror=data.test.data[0].get("plane") != "sagittal",  # whose left-right mirror is its front turned back
        seed=samples.seed,
    )
    save_closest_pairs(samples.images, learned.images, nearest, folder / "closest_pairs.png")
    drawn = samples.images[:, 0].numpy()
    positions = [float(values["position_mm"]) for values in samples.conditions if "position_mm" in values]
    if len(positions) == len(drawn):
        save_positions(drawn, positions, folder / "positions.png")
    return section
