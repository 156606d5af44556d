"""Rate and distortion as a picture and as figures: a system of codes beside JPEG, WebP and others.

A system of codes has one quality and two rates: that of its raw codes, log2 of the codebook's size each, and that
after its priors, what an arithmetic coder driven by them would need. The codecs have a curve each. Their dotted
curve leaves out what a black slice costs, for the codes are counted without any container too; neither side counts
the program, or the weights, that read the stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from monai_vqgen.errors import InputError
from monai_vqgen.metrics import CodecCurves, at_rate
from monai_vqgen.plots.pictures import ACCENT, FAINT, save_figure, style

PANELS = {"psnr": "PSNR, dB", "ssim_brain": "SSIM over the brain"}
TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 4, 8)  # bits a pixel
ROOM = 2.5  # factor left on both sides of the system's rates: where the codecs are worth comparing


class RatedSystem(NamedTuple):
    """A system of codes: one quality on the test slices, at the rate of its raw codes and at that after its priors.

    Attributes:
        label: what the picture calls it.
        psnr: in dB, over the slice.
        ssim_brain: SSIM over the brain.
        raw_bits_per_pixel: of the codes as they are.
        coded_bits_per_pixel: by the priors' bits per code; None where there is no prior.
    """

    label: str
    psnr: float
    ssim_brain: float
    raw_bits_per_pixel: float
    coded_bits_per_pixel: float | None = None

    @property
    def rates(self) -> dict[str, float]:
        """Its rates in bits a pixel, by how they are coded: `raw` and, where there are priors, `coded`."""
        coded = self.coded_bits_per_pixel
        return {"raw": self.raw_bits_per_pixel, **({} if coded is None else {"coded": coded})}


def rated_system(label: str, metrics: Mapping[str, Any]) -> RatedSystem:
    """A system as its evaluation's `metrics.json` has it.

    Raises:
        InputError: the file has no rate or no scores of the reconstruction.
    """
    try:
        scores, rate = metrics["reconstruction"], metrics["rate"]
        brain = float("nan") if scores["ssim_brain"] is None else scores["ssim_brain"]
        return RatedSystem(label, scores["psnr"], brain, rate["raw_bits_per_pixel"], rate.get("coded_bits_per_pixel"))
    except KeyError as error:
        raise InputError(f"the metrics of {label!r} have no {error}: evaluate it with evaluate.json") from error


def codec_figures(curves: CodecCurves, system: RatedSystem) -> dict[str, Any]:
    """What goes into a report: every codec at the system's rates, its whole ladder, and what was skipped.

    Returns:
        `{"at_rate": {"raw": {codec: point}, "coded": {...}}, "ladder": {codec: [point, ...]}, "skipped": {...}}`; a
        rate that a codec's ladder does not reach has NaN for its scores.
    """
    return {
        "at_rate": {
            name: {codec: at_rate(points, rate)._asdict() for codec, points in curves.points.items()}
            for name, rate in system.rates.items()
        },
        "ladder": {codec: [point._asdict() for point in points] for codec, points in curves.points.items()},
        "skipped": curves.skipped,
    }


def save_rate_distortion(curves: CodecCurves, system: RatedSystem, path: str | Path) -> None:
    """Write the rate-distortion picture: PSNR on the left, SSIM over the brain on the right, rate logarithmic.

    The system's raw rate is a hollow mark, its rate after the priors a filled one, joined by a line: the priors move it
    to the left and change no pixel.
    """
    figure = Figure(figsize=(10.6, 4.6), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, len(PANELS))
    for axes, (score, title) in zip(panels, PANELS.items(), strict=True):
        _draw_codecs(axes, curves, score)
        _draw_system(axes, system, score)
        _frame(axes, list(system.rates.values()))
        style(axes, x="bits a pixel", y=title)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    save_figure(figure, path)


def _draw_codecs(axes: Axes, curves: CodecCurves, score: str) -> None:
    for index, (name, points) in enumerate(curves.points.items()):
        color = ACCENT[1 + index % (len(ACCENT) - 1)]
        values = [getattr(point, score) for point in points]
        axes.plot([point.bits_per_pixel for point in points], values, color=color, lw=1.6, label=name)
        payload = [point.bits_per_pixel - point.header_bits_per_pixel for point in points]
        axes.plot(payload, values, color=color, lw=1, ls=":")
    if curves.points:
        axes.plot([], [], color=FAINT, lw=1, ls=":", label="the same without headers")
    for name, reason in curves.skipped.items():
        axes.plot([], [], ls="none", label=f"no {name}: {reason}")


def _draw_system(axes: Axes, system: RatedSystem, score: str) -> None:
    value, rates = getattr(system, score), system.rates
    look: dict[str, Any] = {"marker": "o", "ms": 8, "color": ACCENT[0], "ls": "none", "zorder": 3}
    if "coded" in rates:
        axes.plot(list(rates.values()), [value] * 2, color=ACCENT[0], lw=1, alpha=0.6)
        axes.plot(rates["coded"], value, label=f"{system.label}, after the priors", **look)
    axes.plot(rates["raw"], value, mfc="white", label=f"{system.label}, raw codes", **look)


def _frame(axes: Axes, rates: Sequence[float]) -> None:
    """Show the rates around the system's, and what is reached there."""
    axes.set_xscale("log")
    axes.set_xlim(min(rates) / ROOM, max(rates) * ROOM)
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in TICKS if low <= tick <= high])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, color=FAINT, alpha=0.25, lw=0.6)
    points = np.concatenate([np.asarray(line.get_xydata()).reshape(-1, 2) for line in axes.lines])
    seen = points[(points[:, 0] >= low) & (points[:, 0] <= high), 1]
    seen = seen[np.isfinite(seen)]
    if seen.size:
        margin = 0.05 * max(float(np.ptp(seen)), 0.02)
        axes.set_ylim(seen.min() - margin, seen.max() + margin)
