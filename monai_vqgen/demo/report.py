"""One self-contained page of a run: pictures inside, every number beside its baseline, how to make it again."""

from __future__ import annotations

import base64
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import monai
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import monai_vqgen
from monai_vqgen.data.processes import usable_cores
from monai_vqgen.demo.showcase import SHOWCASE
from monai_vqgen.demo.stages import StageRecord, change_words
from monai_vqgen.errors import InputError
from monai_vqgen.files import read_json, replace_file
from monai_vqgen.plots.pictures import Curve, save_curves

__all__ = ["as_data_uri", "page_template", "write_report"]

SKIPS_SHOWN = 12


class ScoreRow(NamedTuple):
    """One reconstruction score with its label, direction and what it is compared with."""

    label: str
    name: str
    better: str
    digits: int


SCORE_ROWS = (
    ScoreRow("SSIM, brain", "ssim_brain", "higher", 3),
    ScoreRow("SSIM, whole image", "ssim", "higher", 3),
    ScoreRow("MS-SSIM, brain", "ms_ssim_brain", "higher", 3),
    ScoreRow("MS-SSIM, whole image", "ms_ssim", "higher", 3),
    ScoreRow("PSNR, brain (dB)", "psnr_brain", "higher", 2),
    ScoreRow("PSNR, whole image (dB)", "psnr", "higher", 2),
    ScoreRow("Mean absolute error, brain", "mae_brain", "lower", 4),
    ScoreRow("Mean absolute error, whole image", "mae", "lower", 4),
)


def _json(path: Path) -> dict[str, Any]:
    """The content of a JSON file, nothing where there is none."""
    try:
        return read_json(path) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): run the stage that writes it again") from error


def as_data_uri(path: Path) -> str | None:
    """A PNG as a data URI, None where there is no such file."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" if path.is_file() else None


def _number(value: float | None, digits: int = 3) -> str:
    """A figure for reading; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:,.{digits}f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _curves(history: Mapping[str, Any], metric: str) -> list[Curve]:
    """Training and validation curves of a metric; epochs without a finite value are left out."""
    curves = []
    for part in ("train", "validation"):
        values = history.get(part, {}).get(metric, [])
        points = [(x, y) for x, y in zip(history.get(part, {}).get("epoch", []), values, strict=False) if y is not None]
        if points:
            curves.append(Curve("training" if part == "train" else part, *zip(*points, strict=True)))
    return curves


def _save_learning_curves(folder: Path, levels: int) -> None:
    """`learning.png`: reconstruction error, codebook perplexity, bits per code of each prior."""
    history = _json(folder / "history.json")
    perplexities = [
        curve._replace(label=f"level {level}")
        for level in range(levels)
        for curve in _curves(history, f"perplexity_level{level}")
        if curve.label == "validation"
    ]
    panels = {"Autoencoder: squared error": _curves(history, "mse"), "Codebooks: perplexity (validation)": perplexities}
    labels = dict(zip(panels, ("mean squared error", "codes in even use"), strict=True))
    for level in range(levels):
        title, prior = f"Prior of level {level}", _json(folder / f"history_prior_level{level}.json")
        panels[title], labels[title] = _curves(prior, "bits_per_code"), "bits per code"
    shown = {title: curves for title, curves in panels.items() if curves}
    if shown:
        save_curves(shown, folder / "learning.png", y={title: labels[title] for title in shown})


def _processor() -> str:
    """The processor's name where the system tells it, else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> str:
    """The device and the versions that results depend on, in a line."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{_processor()}, {usable_cores()} cores"
    return (
        f"{device}, Python {platform.python_version()}, PyTorch {torch.__version__}, MONAI {monai.__version__}, "
        f"monai_vqgen {monai_vqgen.__version__}"
    )


def write_report(folder: str | Path, *, stages: Sequence[StageRecord], phantoms: bool = False) -> Path:
    """Write `report.html` from the results of a run in its folder.

    Args:
        folder: with `metrics.json`, the pictures of the evaluation, `history*.json` and `slices/`.
        stages: what was run, in order.
        phantoms: whether the scans were made rather than measured.

    Raises:
        InputError: the folder holds no `metrics.json`.
    """
    folder = Path(folder)
    metrics = _json(folder / "metrics.json")
    if not metrics:
        raise InputError(f"{folder} holds no metrics.json: run evaluate.json first")
    datalist = _json(folder / "slices" / "datalist.json")
    _save_learning_curves(folder, len(metrics["codebook"]))
    total = sum(stage.seconds for stage in stages)
    skipped = datalist.get("skipped", [])
    page = page_template("report.html").render(
        metrics=metrics,
        scores=SCORE_ROWS,
        datalist={key: datalist.get(key) for key in ("description", "plane", "pixel_mm", "image_size", "source")},
        skipped=skipped[:SKIPS_SHOWN],
        num_skipped=len(skipped),
        pictures={
            name: as_data_uri(folder / path)
            for name, path in {
                "package_weights": SHOWCASE,
                "contact_sheet": "slices/contact_sheet.png",
                "learning": "learning.png",
                "reconstructions": "reconstructions.png",
                "usage": "usage.png",
                "mixed": "real_and_sampled.png",
                "samples": "samples.png",
                "rate_distortion": "rate_distortion.png",
                "positions": "positions.png",
                "closest": "closest_pairs.png",
            }.items()
        },
        sampled=_json(folder / "real_and_sampled.json").get("sampled", []),
        stages=[stage._replace(command=_portable(stage.command, folder)) for stage in stages],
        total_seconds=total,
        phantoms=phantoms,
        machine=machine(),
    )
    report = folder / "report.html"
    with replace_file(report) as file:
        file.write(page.encode())
    return report


def _portable(command: str, folder: Path) -> str:
    """A command that does not tell where on this machine things lie: as typed beside the run's folder."""
    home = folder.absolute().parent

    def shown(word: str) -> str:
        path = Path(word)
        if not path.is_absolute():
            return word
        return str(path.relative_to(home)) if path.is_relative_to(home) else path.name

    return change_words(command, shown)


def page_template(name: str) -> Any:
    """A page of this package, from its file's name."""
    loader = PackageLoader("monai_vqgen.demo", "")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=_number, duration=_duration, percent=lambda part: _number(100 * part, 0) + " %")
    environment.globals["picture"] = lambda uri, text: (
        Markup('<img src="{}" alt="{}">').format(Markup(uri), text) if uri else Markup("<p>No picture.</p>")
    )
    return environment.get_template(name)
