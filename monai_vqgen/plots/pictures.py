"""Pictures of slices, codes and curves, as PNG files. Every image is drawn in the fixed range [0, 1].

Shape legend: n images, h w rows and columns.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from monai_vqgen.files import replace_file

__all__ = [
    "Curve",
    "PictureRow",
    "grid_picture",
    "save_curves",
    "save_numbered_grid",
    "save_png",
    "save_rows",
    "save_usage",
]

DIFFERENCE_RANGE = 0.25  # of the intensity range: where the color map of differences saturates
INK, FAINT, ACCENT = "#1d2733", "#8592a0", ("#1f6f8b", "#d1762b", "#5a8f3c", "#8a5aa8")
MARK = "#ffd27a"  # text on images
DPI = 100
TILE_PIXELS = 128  # width of an image in a picture made for looking at


class PictureRow(NamedTuple):
    """A labeled row of images; a signed row holds differences, drawn blue to red."""

    label: str
    images_nhw: NDArray
    signed: bool = False


class Curve(NamedTuple):
    """One line of a plot."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


def as_bytes(image_hw: NDArray) -> NDArray:
    """[0, 1] to 0..255."""
    return (np.clip(np.nan_to_num(image_hw), 0, 1) * 255 + 0.5).astype(np.uint8)


def save_png(image_hw: NDArray, path: str | Path) -> None:
    """Write one gray image in [0, 1] as 8-bit PNG."""
    buffer = io.BytesIO()
    Image.fromarray(as_bytes(image_hw)).save(buffer, format="PNG")
    with replace_file(path) as file:
        file.write(buffer.getvalue())


def grid_picture(images_nhw: NDArray, *, columns: int | None = None, gap: int = 2) -> NDArray:
    """Tile images row by row into one image in [0, 1], nearly square unless the columns are given.

    Small images are enlarged by a whole factor, so that one can look at them.
    """
    factor = max(1, TILE_PIXELS // images_nhw.shape[2])
    images_nhw = images_nhw.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width = images_nhw.shape
    columns = columns or max(1, int(np.ceil(np.sqrt(count))))
    rows = max(1, -(-count // columns))
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap), 0.12, dtype=np.float32)
    for index, image_hw in enumerate(images_nhw):
        top, left = (index // columns) * (height + gap) + gap, (index % columns) * (width + gap) + gap
        canvas[top : top + height, left : left + width] = image_hw
    return canvas


def _save_figure(figure: Figure, path: str | Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    with replace_file(path) as file:
        file.write(buffer.getvalue())


def save_rows(
    rows: Sequence[PictureRow], path: str | Path, *, titles: Sequence[str] = (), pixels: int = TILE_PIXELS
) -> None:
    """Write rows of images below each other, each with its label at the left.

    Args:
        rows: all with the same number of images.
        path: the PNG.
        titles: one a column, in the corners of the first row's images.
        pixels: width of one image in the picture.
    """
    columns, (height, width) = len(rows[0].images_nhw), rows[0].images_nhw.shape[1:]
    label, cell_w, cell_h = 1.25, pixels / DPI, pixels / DPI * height / width
    size = (label + columns * cell_w, len(rows) * cell_h)
    figure = Figure(figsize=size)
    for r, row in enumerate(rows):
        bottom = 1 - (r + 1) * cell_h / size[1]
        figure.text(0.08 / size[0], bottom + 0.5 * cell_h / size[1], row.label, va="center", color=INK, fontsize=9)
        for c, image_hw in enumerate(row.images_nhw):
            left = (label + c * cell_w) / size[0]
            axes = figure.add_axes((left, bottom, cell_w * 0.97 / size[0], cell_h * 0.97 / size[1]))
            limit = DIFFERENCE_RANGE if row.signed else 1.0
            axes.imshow(
                image_hw,
                cmap="RdBu_r" if row.signed else "gray",
                vmin=-limit if row.signed else 0,
                vmax=limit,
                interpolation="nearest",
            )
            axes.set_axis_off()
            if r == 0 and c < len(titles):
                axes.text(0.04, 0.95, titles[c], transform=axes.transAxes, color=MARK, va="top", fontsize=9)
    _save_figure(figure, path)


def save_numbered_grid(images_nhw: NDArray, path: str | Path, *, columns: int = 8, pixels: int = TILE_PIXELS) -> None:
    """Write images row by row, each with its number (from 1) in the corner."""
    count, height, width = images_nhw.shape
    rows = max(1, -(-count // columns))
    figure = Figure(figsize=(columns * pixels / DPI, rows * pixels / DPI * height / width))
    for index, image_hw in enumerate(images_nhw):
        axes = figure.add_axes(
            ((index % columns) / columns, 1 - (index // columns + 1) / rows, 0.98 / columns, 0.98 / rows)
        )
        axes.imshow(image_hw, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.text(0.04, 0.95, str(index + 1), transform=axes.transAxes, color=MARK, va="top", fontsize=9)
        axes.set_axis_off()
    _save_figure(figure, path)


def _style(axes: object, *, x: str, y: str) -> None:
    axes.set_xlabel(x, color=INK)  # type: ignore[attr-defined]
    axes.set_ylabel(y, color=INK)  # type: ignore[attr-defined]
    axes.tick_params(colors=FAINT)  # type: ignore[attr-defined]
    for name, spine in axes.spines.items():  # type: ignore[attr-defined]
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(FAINT)


def save_usage(counts: Sequence[NDArray], path: str | Path) -> None:
    """Write how often each code occurs, most frequent first, one panel a level (coarsest first)."""
    figure = Figure(figsize=(4.6 * len(counts), 2.9), layout="constrained")
    for level, (counts_k, axes) in enumerate(zip(counts, np.atleast_1d(figure.subplots(1, len(counts))), strict=True)):
        ranked = np.sort(np.asarray(counts_k))[::-1]
        axes.fill_between(np.arange(len(ranked)), np.maximum(ranked, 0.5), 0.5, step="mid", color=ACCENT[0], lw=0)
        axes.set_yscale("log")
        axes.set_xlim(0, len(ranked))
        axes.set_ylim(0.5, max(2, ranked[0] * 1.5))
        axes.set_title(f"Level {level}: {(ranked > 0).sum()} of {len(ranked)} codes in use", color=INK, fontsize=10)
        _style(axes, x="code, most frequent first", y="occurrences")
    _save_figure(figure, path)


def save_curves(
    panels: Mapping[str, Sequence[Curve]], path: str | Path, *, y: Mapping[str, str], x: str = "epoch"
) -> None:
    """Write curves, one panel a name, two panels a row; logarithmic where positive values span a decade.

    Args:
        panels: curves by the panel's title.
        path: the PNG.
        y: label of each panel's vertical axis, by the panel's title.
        x: label of the horizontal axes.
    """
    columns, rows = min(2, len(panels)), -(-len(panels) // 2)
    figure = Figure(figsize=(5.3 * columns, 3.0 * rows), layout="constrained")
    for place, (title, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        for index, curve in enumerate(curves):
            marker = "o" if len(curve.x) < 3 else None
            axes.plot(curve.x, curve.y, color=ACCENT[index % len(ACCENT)], label=curve.label, lw=1.6, marker=marker)
        values = np.concatenate([np.asarray(curve.y, dtype=float) for curve in curves])
        values = values[np.isfinite(values)]
        if values.size and values.min() > 0 and values.max() > 10 * values.min():
            axes.set_yscale("log")
        axes.set_title(title, color=INK, fontsize=10)
        axes.legend(frameon=False, fontsize=8)
        if all(float(value).is_integer() for curve in curves for value in curve.x):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _style(axes, x=x, y=y[title])
    _save_figure(figure, path)
