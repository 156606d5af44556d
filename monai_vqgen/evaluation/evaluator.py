"""All figures of a trained model on slices of subjects it has not seen, each beside its baseline, and pictures."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ignite.engine import Engine
from monai.inferers import Inferer, SimpleInferer

from monai_vqgen.data import load_datalist
from monai_vqgen.errors import DatalistError, InputError
from monai_vqgen.evaluation.pictures import save_reconstruction_pictures, save_sample_pictures
from monai_vqgen.evaluation.rate_distortion import codec_figures, rated_system, save_rate_distortion
from monai_vqgen.evaluation.sample_scores import CLASSIFIER_STEPS, check_sample_report
from monai_vqgen.evaluation.sections import (
    SHOWN,
    EvaluationData,
    ReconstructionPass,
    autoencoder_sections,
    batches,
    data_figures,
    encode_slices,
    prior_sections,
    reconstruct_slices,
    sample_section,
)
from monai_vqgen.files import write_json
from monai_vqgen.handlers import claim_output
from monai_vqgen.metrics import CodebookCounter, FeatureSpace, codec_curves
from monai_vqgen.models import Samples, TrainedModel, draw_conditions

logger = logging.getLogger(__name__)

RESULTS = ("metrics.json", "reconstructions.png", "samples.png")
PICTURES = ("overview.png", "usage.png", "real_and_sampled.*")
ON_DEMAND = ("rate_distortion.png", "closest_pairs.png", "positions.png")
MIXED = 32  # real slices, and as many samples, in the unlabeled grid of the report of samples


def split_records(dataset_dir: str | Path) -> dict[str, list[dict[str, Any]]]:
    """The records of all three splits of a folder of slices; only that of training may not be empty.

    Raises:
        DatalistError: there are no training slices.
    """
    records: dict[str, list[dict[str, Any]]] = {"training": load_datalist(dataset_dir, "training")}
    for split in ("validation", "test"):
        try:
            records[split] = load_datalist(dataset_dir, split)
        except DatalistError as error:
            logger.warning("%s", error)
            records[split] = []
    return records


def pick_split(records: Mapping[str, Sequence[Any]], name: str) -> list[Any]:
    """The records of one split, to be judged on.

    Raises:
        DatalistError: there is no such split, or it is empty.
    """
    if not records.get(name):
        filled = ", ".join(split for split in records if records[split])
        raise DatalistError(f"split {name!r} holds no slices; choose one of {filled}, or give slices that have it")
    return list(records[name])


def claim_evaluation(output_dir: str | Path, overwrite: bool = False) -> Path:
    """`claim_output` for an evaluation: refuse a folder with earlier results, or remove these where asked.

    Raises:
        OutputExistsError: earlier results are there and `overwrite` is off.
    """
    return claim_output(output_dir, RESULTS, overwrite, by_products=(*PICTURES, *ON_DEMAND))


class SamplingOptions(NamedTuple):
    """How many samples an evaluation draws, and how; None takes a setting that is recorded with the weights.

    Attributes:
        num_samples: how many.
        seed: of the draws.
        temperature: a number or one a level, coarsest first, as with the next two.
        top_k: draw from the k likeliest codes only.
        top_p: draw from the likeliest codes that hold this much probability.
    """

    num_samples: int = 16
    seed: int = 0
    temperature: float | Sequence[float] | None = None
    top_k: int | Sequence[int | None] | None = None
    top_p: float | Sequence[float | None] | None = None


class ReportOptions(NamedTuple):
    """What an evaluation reports beyond reconstruction, codebooks and priors.

    Attributes:
        codecs: compress the test slices with JPEG, JPEG 2000, WebP, AVIF and JPEG XL too (some seconds a slice).
        samples: compare the samples with real slices (minutes; ask for 512 samples or more). Their conditions are then
            those of training slices drawn at random, so that both show the same mix of positions.
        feature_space: in which samples are compared, for example `NetworkFeatures`; by default a whitened filter bank,
            which needs no weights.
        classifier_steps: training steps of each of the twelve small networks that tell samples, reconstructions and
            others from training slices: most of the report's time. Compare accuracies only at the same number.
    """

    codecs: bool = False
    samples: bool = False
    feature_space: FeatureSpace | None = None
    classifier_steps: int = CLASSIFIER_STEPS


class ModelEvaluation:
    """Evaluate a trained model on slices, write `metrics.json` and then its pictures to a folder: a bundle's evaluator.

    Pictures: `reconstructions.png`, `usage.png`; with priors `overview.png`, `samples.png`, and
    `real_and_sampled.png` with its key in JSON; on demand `rate_distortion.png`, `closest_pairs.png` and
    `positions.png`.

    Args:
        model: what is evaluated; without priors only its autoencoder.
        data: slices and their records.
        output_dir: where the results go.
        sampling: how many samples to draw, and how.
        report: what is reported besides.
        batch_size: slices or samples at once.
        inferer: reconstructs a batch; by default one pass of the network.
        val_handlers: of Ignite's; attached to the one step of an engine that the evaluation is, at whose end
            `state.metrics` holds every number of `metrics.json` (see `flat_numbers`). `--tracking` adds its own.

    Raises:
        InputError: the priors are of slices of another size, a report of samples without priors, codecs or that
            report for several channels or volumes, or, at `run`, an
            argument of the sampling is out of its range.
    """

    def __init__(
        self,
        model: TrainedModel,
        data: EvaluationData,
        *,
        output_dir: str | Path,
        sampling: SamplingOptions | None = None,
        report: ReportOptions | None = None,
        batch_size: int = 16,
        inferer: Inferer | None = None,
        val_handlers: Sequence[Any] = (),
    ) -> None:
        self.model, self.data, self.folder = model, data, Path(output_dir)
        self.model.batch_size = batch_size
        self.sampling, self.report = sampling or SamplingOptions(), report or ReportOptions()
        self.inferer, self.val_handlers = inferer or SimpleInferer(), val_handlers
        known, size = model.record.image_size, data.image_size
        if model.priors and (size != (known or size) or tuple(model.autoencoder.grids(size)) != model.grids):
            raise InputError(
                f"the slices are of {size} pixels, the priors of {known or 'another size'}: evaluate on slices of the "
                "size that the priors were trained on, or give --image_size"
            )
        channels = model.autoencoder.in_channels
        if channels > 1 and (self.report.codecs or self.report.samples):
            raise InputError(
                f"codecs and sample_report take one channel, and the images have {channels}: leave them off"
            )
        if model.autoencoder.spatial_dims == 3 and (self.report.codecs or self.report.samples):
            raise InputError("codecs and sample_report compare slices, and the model is one of volumes: leave them off")
        if self.report.feature_space is not None and not self.report.samples:
            raise InputError("a feature network serves the report of samples: ask for it with sample_report true")
        if self.report.samples and not model.priors:
            raise InputError("sample_report asks for samples, and there are no priors: leave with_priors on")
        if self.report.samples:
            sets = {"training slices": data.training.data, "test slices": data.test.data}
            size_or_none, steps = model.record.image_size or None, self.report.classifier_steps
            check_sample_report(self.sampling.num_samples, sets, image_size=size_or_none, classifier_steps=steps)

    def run(self) -> dict[str, Any]:
        """Measure, write, and return the content of `metrics.json`."""
        engine = Engine(self._measure)
        for handler in self.val_handlers:
            handler.attach(engine)
        metrics: Any = engine.run([None]).output
        return dict(metrics)

    def _measure(self, engine: Engine, _: None) -> dict[str, Any]:
        self.folder.mkdir(parents=True, exist_ok=True)
        model, data, report = self.model, self.data, self.report
        if report.feature_space is not None:
            report.feature_space(data.test[0]["image"][None])
        samples = self._draw() if model.priors else None  # first: a wrong argument costs seconds, not minutes
        result = reconstruct_slices(model, data.test, inferer=self.inferer)
        counters = [CodebookCounter(size) for size in model.autoencoder.codebook_sizes]
        metrics = {
            "judged": data.split,
            "data": data_figures(data.records, data.image_size),
            **autoencoder_sections(model, data, result, counters),
        }
        if samples is not None:
            metrics.update(self._priors_and_samples(result, samples))
        if report.codecs:
            curves = codec_curves(batches(data.test, model.batch_size, description="codecs"))
            ours = rated_system("ours", metrics)
            save_rate_distortion(curves, ours, self.folder / "rate_distortion.png")
            metrics["codecs"] = codec_figures(curves, ours)
        write_json(self.folder / "metrics.json", _json_numbers(metrics))  # before the pictures: it took longest
        save_reconstruction_pictures(self.folder, result.shown, [c.total_counts().numpy() for c in counters])
        if samples is not None:
            mixed = MIXED if report.samples else SHOWN[model.autoencoder.spatial_dims]
            save_sample_pictures(self.folder, result.shown, samples, data.test, split=data.split, mixed=mixed)
        _log(metrics)
        engine.state.metrics = flat_numbers(metrics)
        return metrics

    def _draw(self) -> Samples:
        options = self.sampling._asdict()
        count, like = options.pop("num_samples"), self.data.training.data if self.report.samples else None
        conditions = draw_conditions(self.model.condition, count, seed=self.sampling.seed, like=like)
        return self.model.sample(count, conditions=conditions, **options)

    def _priors_and_samples(self, result: ReconstructionPass, samples: Samples) -> dict[str, Any]:
        model, data = self.model, self.data
        codes = encode_slices(model, data.training, description="encoding training slices")
        sections = prior_sections(model, data, result, codes, samples)
        if self.report.samples:
            sections["samples"] = sample_section(
                model,
                data,
                result,
                codes,
                samples,
                folder=self.folder,
                feature_space=self.report.feature_space,
                classifier_steps=self.report.classifier_steps,
            )
        return sections


def _json_numbers(content: Any) -> Any:
    """The same with NaN as null, for JSON has none: a score over no brain at all."""
    if isinstance(content, Mapping):
        return {key: _json_numbers(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_json_numbers(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def flat_numbers(content: Any, name: str = "") -> dict[str, float]:
    """Every finite number of nested figures under one name, as trackers of experiments want them.

    Examples:
        >>> flat_numbers({"judged": "test", "prior": [{"level": 0, "bits_per_code": 3.5}]})
        {'prior/0/level': 0.0, 'prior/0/bits_per_code': 3.5}
    """
    if isinstance(content, Mapping):
        named = [(str(key), value) for key, value in content.items()]
    elif isinstance(content, (list, tuple)):
        named = [(str(index), value) for index, value in enumerate(content)]
    else:
        is_number = isinstance(content, int | float) and not isinstance(content, bool) and math.isfinite(content)
        return {name: float(content)} if is_number else {}
    return {
        key: number
        for part, value in named
        for key, number in flat_numbers(value, f"{name}/{part}" if name else part).items()
    }


def _log(metrics: Mapping[str, Any]) -> None:
    scores, mean = metrics["reconstruction"], metrics["reconstruction"]["baselines"]["mean_image"]
    values = (scores["ssim_brain"], mean["ssim_brain"], scores["psnr"], mean["psnr"])
    logger.info("Brain SSIM %.3f (mean training image %.3f), PSNR %.2f dB (%.2f)", *values)
    for row in metrics.get("prior", []):
        bits = [row[f"{kind}bits_per_code"] for kind in ("", "histogram_", "uniform_")]
        logger.info("Prior of level %d: %.3f bits a code (histogram %.3f, uniform %.3f)", row["level"], *bits)
