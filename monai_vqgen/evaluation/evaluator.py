"""All figures of a trained model on slices of subjects it has not seen, each beside its baseline, and pictures."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ignite.engine import Engine
from monai.inferers import Inferer, SimpleInferer

from monai_vqgen.data import load_datalist
from monai_vqgen.errors import DatalistError, InputError
from monai_vqgen.evaluation.pictures import save_reconstruction_pictures, save_sample_pictures
from monai_vqgen.evaluation.rate_distortion import rated_system
from monai_vqgen.evaluation.sample_scores import check_sample_report
from monai_vqgen.evaluation.scores import (
    SHOWN,
    ReconstructionPass,
    SliceSet,
    data_figures,
    encode_slices,
    reconstruct_slices,
)
from monai_vqgen.evaluation.sections import (
    Judged,
    autoencoder_sections,
    codec_section,
    prior_sections,
    sample_section,
)
from monai_vqgen.files import write_json
from monai_vqgen.metrics import CodebookCounter, FeatureSpace
from monai_vqgen.models.priors import TrainedPriors
from monai_vqgen.models.sampling import SampleBatch, SamplingOptions, draw_samples
from monai_vqgen.networks import HierarchicalVQVAE

__all__ = ["ModelEvaluation", "flat_numbers", "pick_split", "split_records"]

logger = logging.getLogger(__name__)

MIXED = 32
"""Real slices, and as many samples, in the unlabelled grid of the report of samples."""


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


class Attachable(Protocol):
    """A handler of Ignite's, such as MONAI's for MLflow."""

    def attach(self, engine: Engine) -> None:
        """Listen to an engine's events."""


class ModelEvaluation:
    """Judge a trained model on slices, write `metrics.json` and then its pictures to a folder: a bundle's evaluator.

    Pictures: `reconstructions.png`, `usage.png`; with priors `overview.png`, `samples.png`, and
    `real_and_sampled.png` with its key in JSON; on demand `rate_distortion.png`, `closest_pairs.png` and
    `positions.png`.

    Args:
        network: the trained autoencoder.
        priors: the trained priors, of this autoencoder; without them the autoencoder is judged alone.
        training: slices for the baselines: the mean image and the per-position histograms (these also with the
            slices' mirror images, whichever is the stronger baseline).
        test: slices that everything is measured on.
        output_dir: where the results go.
        split_records: the records of each split, for the counts of subjects and slices.
        split: which of them `test` is; goes into the results.
        inferer: reconstructs a batch; by default one pass of the network.
        sampling: how many samples to draw, and how.
        batch_size: slices or samples at once.
        codecs: whether to compress the test slices with JPEG, JPEG 2000 and WebP too (under a second a slice).
        sample_report: whether to set the samples against real slices too (minutes; ask for 512 samples or more). The
            samples' conditions are then those of training slices drawn at random, so that they ask for the same mix.
        feature_space: that the samples are judged in, for example `NetworkFeatures`; by default a whitened filter bank,
            which needs no weights.
        val_handlers: are attached to the one step of an engine that the evaluation is; at its end `state.metrics` holds
            every number of `metrics.json` (see `flat_numbers`). `--tracking` adds its own.

    Raises:
        InputError: the priors are of slices of another size, a report of samples without priors, or, at `run`, an
            argument of the sampling is out of its range.
    """

    def __init__(
        self,
        network: HierarchicalVQVAE,
        priors: TrainedPriors | None = None,
        *,
        training: SliceSet,
        test: SliceSet,
        output_dir: str | Path,
        split_records: Mapping[str, Sequence[Mapping[str, Any]]],
        split: str = "test",
        inferer: Inferer | None = None,
        sampling: SamplingOptions = SamplingOptions(),  # noqa: B008 (it cannot be changed)
        batch_size: int = 16,
        codecs: bool = False,
        sample_report: bool = False,
        feature_space: FeatureSpace | None = None,
        val_handlers: Sequence[Attachable] = (),
    ) -> None:
        self.judged = Judged(network, training, test, batch_size)
        self.priors = None if priors is None else _of_slices(priors, network, test)
        self.folder, self.split_records, self.split = Path(output_dir), split_records, split
        self.inferer = inferer or SimpleInferer()
        self.sampling = sampling
        self.codecs, self.sample_report, self.val_handlers = codecs, sample_report, val_handlers
        self.feature_space = feature_space
        if feature_space is not None and not sample_report:
            raise InputError("a feature network judges the report of samples: ask for it with sample_report true")
        if sample_report and self.priors is None:
            raise InputError("sample_report asks for samples, and there are no priors: leave with_priors on")
        if sample_report and self.priors is not None:
            sets = {"training slices": training.data, "test slices": test.data}
            check_sample_report(sampling.num_samples, sets, image_size=self.priors.image_size)

    def run(self) -> dict[str, Any]:
        """Measure, write, and return the content of `metrics.json`."""
        engine = Engine(self._measure)
        for handler in self.val_handlers:
            handler.attach(engine)
        metrics: Any = engine.run([None]).output
        return dict(metrics)

    def _measure(self, engine: Engine, _: None) -> dict[str, Any]:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.feature_space is not None:
            self.feature_space(self.judged.test[0]["image"][None])
        judged, samples = self.judged, self._draw()  # all this first: a wrong argument costs seconds, not minutes
        result = reconstruct_slices(judged.network, judged.test, batch_size=judged.batch_size, inferer=self.inferer)
        counters = [CodebookCounter(size) for size in judged.network.codebook_sizes]
        data = data_figures(self.split_records, judged.test[0]["image"].shape[1:])
        metrics = {"judged": self.split, "data": data, **autoencoder_sections(judged, result, counters)}
        if samples is not None:
            metrics.update(self._priors_and_samples(result, samples))
        if self.codecs:
            metrics["codecs"] = codec_section(judged, rated_system("ours", metrics), self.folder)
        write_json(self.folder / "metrics.json", _json_numbers(metrics))  # before the pictures: it took longest
        save_reconstruction_pictures(self.folder, result.shown, [c.total_counts().numpy() for c in counters])
        if samples is not None:
            mixed = MIXED if self.sample_report else SHOWN
            save_sample_pictures(
                self.folder, result, samples, judged.test, split=self.split, mixed=mixed, seed=self.sampling.seed
            )
        _log(metrics)
        engine.state.metrics = flat_numbers(metrics)
        return metrics

    def _draw(self) -> SampleBatch | None:
        if self.priors is None:
            return None
        return draw_samples(
            self.judged.network,
            self.priors,
            **self.sampling._asdict(),
            like=self.judged.training.data if self.sample_report else None,
            batch_size=self.judged.batch_size,
        )

    def _priors_and_samples(self, result: ReconstructionPass, samples: SampleBatch) -> dict[str, Any]:
        assert self.priors is not None, "samples were drawn from them"
        judged = self.judged
        codes = encode_slices(
            judged.network, judged.training, batch_size=judged.batch_size, description="encoding training slices"
        )
        sections = prior_sections(judged, self.priors, result, codes, samples)
        if self.sample_report:
            sections["samples"] = sample_section(
                judged,
                samples,
                result,
                codes,
                self.folder,
                feature_space=self.feature_space,
                seed=self.sampling.seed,
            )
        return sections


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


def flat_numbers(content: Any, name: str = "") -> dict[str, float]:
    """Every finite number of nested figures under one name, as trackers of experiments want them.

    Example:
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
    logger.info(
        "Brain SSIM %.3f (mean training image %.3f), PSNR %.2f dB (%.2f)",
        scores["ssim_brain"],
        mean["ssim_brain"],
        scores["psnr"],
        mean["psnr"],
    )
    for row in metrics.get("prior", []):
        logger.info(
            "Prior of level %d: %.3f bits a code (histogram %.3f, uniform %.3f)",
            row["level"],
            row["bits_per_code"],
            row["histogram_bits_per_code"],
            row["uniform_bits_per_code"],
        )
