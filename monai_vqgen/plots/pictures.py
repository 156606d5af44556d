"""Pictures of slices, codes and curves, as PNG files. Every image is drawn in the fixed range [0, 1].

Shape legend: n images, h w rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from monai_vqgen.files import replace_file

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


def save_png(image_hw: NDArray, path: str | Path) -> None:
    """Write one gray image in [0, 1] as 8-bit PNG."""
    bytes_hw = (np.clip(np.nan_to_num(image_hw), 0, 1) * 255 + 0.5).astype(np.uint8)
    with replace_file(path) as file:
        Image.fromarray(bytes_hw).save(file, format="PNG")


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


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG."""
    with replace_file(path) as file:
        figure.savefig(file, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})


def _draw_image(
    figure: Figure, image_hw: NDArray, box: tuple[float, float, float, float], *, mark: str = "", signed: bool = False
) -> None:
    """Draw an image into a part of a figure, with a mark in its corner."""
    axes, limit = figure.add_axes(box), DIFFERENCE_RANGE if signed else 1.0
    low, colors = (-limit, "RdBu_r") if signed else (0, "gray")
    axes.imshow(image_hw, cmap=colors, vmin=low, vmax=limit, interpolation="nearest")
    axes.text(0.04, 0.95, mark, transform=axes.transAxes, color=MARK, va="top", fontsize=9)
    axes.set_axis_off()


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
            box = ((label + c * cell_w) / size[0], bottom, cell_w * 0.97 / size[0], cell_h * 0.97 / size[1])
            mark = titles[c] if r == 0 and c < len(titles) else ""
            _draw_image(figure, image_hw, box, mark=mark, signed=row.signed)
    save_figure(figure, path)


def save_numbered_grid(images_nhw: NDArray, path: str | Path, *, columns: int = 8) -> None:
    """Write images row by row, each with its number (from 1) in the corner."""
    count, height, width = images_nhw.shape
    rows, pixels = max(1, -(-count // columns)), TILE_PIXELS
    figure = Figure(figsize=(columns * pixels / DPI, rows * pixels / DPI * height / width))
    for index, image_hw in enumerate(images_nhw):
        row, column = divmod(index, columns)
        box = (column / columns, 1 - (row + 1) / rows, 0.98 / columns, 0.98 / rows)
        _draw_image(figure, image_hw, box, mark=str(index + 1))
    save_figure(figure, path)


def style(axes: Axes, *, x: str, y: str) -> None:
    """Name the axes of a plot and leave only their lines."""
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.tick_params(colors=FAINT)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.spines[["right", "top"]].set_visible(False)


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
        style(axes, x="code, most frequent first", y="occurrences")
    save_figure(figure, path)


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
        style(axes, x=x, y=y[title])
    save_figure(figure, path)
