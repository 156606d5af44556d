"""The figures of a run as Markdown, written between two marks of a document."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_vqgen.demo.stages import StageRecord
from monai_vqgen.errors import InputError
from monai_vqgen.files import write_bytes

__all__ = ["check_section", "markdown_table", "replace_section", "results_section", "rounded"]

SCORES = {
    "ssim": "SSIM",
    "ssim_brain": "brain SSIM",
    "ms_ssim": "MS-SSIM",
    "ms_ssim_brain": "brain MS-SSIM",
    "psnr": "PSNR, dB",
    "psnr_brain": "brain PSNR, dB",
}


def check_section(path: str | Path, name: str) -> str:
    """The document, if it has a place for this section.

    Raises:
        InputError: no readable document, or it lacks the lines `<!-- name -->` and `<!-- /name -->`, once each.
    """
    try:
        document = Path(path).read_text()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}): give a Markdown document for the results") from error
    if len(_place(name).findall(document)) != 1:
        raise InputError(f"{path} needs the lines '<!-- {name} -->' and '<!-- /{name} -->', once, around these results")
    return document


def replace_section(path: str | Path, name: str, text: str) -> None:
    """Put text between the lines `<!-- name -->` and `<!-- /name -->` of a document.

    Raises:
        InputError: see `check_section`.
    """
    document = check_section(path, name)
    changed = _place(name).sub(lambda match: f"{match[1]}{text.strip()}\n{match[2]}", document)
    write_bytes(path, changed.encode())


def _place(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", flags=re.DOTALL)


def results_section(metrics: Mapping[str, Any], stages: Sequence[StageRecord], *, machine: str) -> str:
    """Tables of a run: reconstructions and codecs, codebooks and priors, samples, time and memory.

    Args:
        metrics: the content of its `metrics.json`.
        stages: what was run.
        machine: what it ran on, in a line.
    """
    parts = [_data(metrics), _reconstruction(metrics), _priors(metrics)]
    if "samples" in metrics:
        parts += [_samples(metrics["samples"]), _memorization(metrics["samples"])]
    return "\n\n".join([*parts, _cost(metrics, stages, machine)])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def rounded(value: float | None, digits: int) -> str:
    """A figure for people; `n/a` for none."""
    return "n/a" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def _data(metrics: Mapping[str, Any]) -> str:
    subjects, slices = metrics["data"]["subjects"], metrics["data"]["slices"]
    size = "x".join(str(n) for n in metrics["data"]["image_size"])
    counts = ", ".join(f"{name} {subjects[name]} subjects with {slices[name]} slices" for name in subjects)
    return f"Slices of {size} pixels: {counts}. All figures are of {metrics.get('judged', 'test')} slices."


def _reconstruction(metrics: Mapping[str, Any]) -> str:
    scores, rate = metrics["reconstruction"], metrics["rate"]
    raw, coded = rounded(rate["raw_bits_per_pixel"], 3), rounded(rate["coded_bits_per_pixel"], 3)

    def row(label: str, bits: str, values: Mapping[str, Any]) -> list[str]:
        return [label, bits, *(rounded(values.get(name), 3 if "ssim" in name else 2) for name in SCORES)]

    rows = [row("ours", f"{raw} raw, {coded} after the priors", scores)]
    rows.append(row("ours, coarsest level alone", "", metrics["top_only"]))
    for name, points in metrics.get("codecs", {}).get("at_rate", {}).items():
        bits = raw if name == "raw" else coded
        rows += [row(f"{codec} at {bits}", bits, point) for codec, point in points.items()]
    rows += [row(name.replace("_", " "), "0", values) for name, values in scores["baselines"].items()]
    return markdown_table(["reconstruction", "bits a pixel", *SCORES.values()], rows)


def _priors(metrics: Mapping[str, Any]) -> str:
    rows = []
    for use, prior in zip(metrics["codebook"], metrics["prior"], strict=True):
        gain = 1 - prior["bits_per_code"] / prior["histogram_bits_per_code"]
        rows.append(
            [
                str(prior["level"]),
                f"{use['usage']:.0%} of {use['size']}",
                rounded(use["perplexity"], 0),
                rounded(prior["bits_per_code"], 3),
                rounded(prior.get("training_bits_per_code"), 3),
                rounded(prior["histogram_bits_per_code"], 3),
                f"{gain:.0%}",
                rounded(prior["uniform_bits_per_code"], 2),
                rounded(prior.get("inside_bits_per_code"), 2),
                rounded(prior.get("explained_variance"), 2),
            ]
        )
    header = ["level", "codes in use", "perplexity", "prior, bits a code", "on training slices"]
    header += [
        "per-position histogram",
        "below it",
        "uniform",
        "prior, where there is content",
        "variance explained there",
    ]
    return markdown_table(header, rows)


def _samples(samples: Mapping[str, Any]) -> str:
    header = ["", "linear classifier", "CNN classifier", "Frechet", "precision", "recall", "density", "coverage"]
    rows = []
    for name in ("samples", "real", "reconstructions", "independent_codes"):
        kind = samples[name]
        accuracies = [
            f"{rounded(score['accuracy'], 3)} ± {rounded(score['standard_error'], 3)}"
            for score in (kind["two_sample"]["linear"], kind["two_sample"]["cnn"])
        ]
        scores = [rounded(kind[key], 3) for key in ("frechet", "precision", "recall", "density", "coverage")]
        similarity = rounded(kind["pairwise_ms_ssim"]["mean"], 3)
        rows.append([name.replace("_", " "), *accuracies, *scores, similarity])
    text = (
        f"{samples['num_samples']} samples against training slices; `real` are test slices: few heads with many slices "
        "each, so that Frechet, recall and coverage, which ask for variety, leave room for better. "
        f"Classifiers tell a kind from training slices, on subjects they have not seen (0.5 is chance; the CNN "
        "is the mean of three networks; errors count slices as independent, which those of one head are not); "
        f"the other columns compare {samples['compared']} of each kind, neighbors being {samples['neighbors']}. "
        f"Features: {samples['feature_space']}."
    )
    position = samples.get("position")
    if position:
        text += (
            f" Position asked for and position seen by a regressor differ by {rounded(position['samples_mm'], 1)} mm "
            f"(real test slices {rounded(position['held_out_mm'], 1)} mm, a constant "
            f"{rounded(position['constant_samples_mm'], 1)} mm)."
        )
    return text + "\n\n" + markdown_table([*header, "pairwise MS-SSIM"], rows)


def _memorization(samples: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            f"{audit['share_below']:.1%}",
            rounded(audit["samples_median"], 4),
            rounded(audit["held_out_median"], 4),
        ]
        for name, audit in samples["memorization"].items()
        if audit is not None
    ]
    header = ["distance to the nearest training slice", "samples below the held-out slices' first percentile"]
    rates = (
        f"Authenticity {samples['samples']['authenticity']:.2f}, of test slices {samples['real']['authenticity']:.2f}."
    )
    return markdown_table([*header, "median of samples", "of held-out slices"], rows) + "\n\n" + rates


def _cost(metrics: Mapping[str, Any], stages: Sequence[StageRecord], machine: str) -> str:
    sampling = metrics["sampling"]
    seconds = sampling["seconds"] / sampling["num_samples"]
    minutes = ", ".join(f"{stage.name} {stage.seconds / 60:.1f}" for stage in stages)
    peaks = [stage.peak_bytes for stage in stages if stage.peak_bytes is not None]
    memory = f" The largest process took {max(peaks) / 1e9:.1f} GB of main memory." if peaks else ""
    return (
        f"Minutes, of each stage's last start: {minutes}. Sampling: {rounded(seconds, 2)} s a sample, "
        f"{rounded(sampling['ratio_to_whole_grid'], 0)} times as fast as whole-grid passes.{memory} On {machine}."
    )
