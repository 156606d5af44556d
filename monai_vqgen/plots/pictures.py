"""Pictures of slices, codes and curves, as PNG files. Every image is drawn in the fixed range [0, 1].

Shape legend: n images, h w rows and columns.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from monai_vqgen.files import replace_file
from monai_vqgen.transforms.geometry import three_planes

DIFFERENCE_RANGE = 0.25  # of the intensity range: where the color map of differences saturates
INK, FAINT, ACCENT = "#1d2733", "#8592a0", ("#1f6f8b", "#d1762b", "#5a8f3c", "#8a5aa8")
MARK = "#ffd27a"  # text on images, edged in INK for light ones
DPI = 100
LETTERS_AN_INCH = 13  # of a title
TILE_PIXELS = 128  # width of an image in a picture made for looking at; several times that of one so many times as wide


class PictureRow(NamedTuple):
    """A labeled row of images, each with a mark in its corner where there are some; a signed row holds differences,
    drawn blue to red."""

    label: str
    images_nhw: NDArray
    signed: bool = False
    marks: Sequence[str] = ()


class Curve(NamedTuple):
    """One line of a plot."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


def as_shown(image_chw: NDArray) -> NDArray:
    """How an image of several channels is shown: one as gray (h, w), three as colors (h, w, 3), others side by side.

    A volume (c, x, y, z) is shown as its middle axial, coronal and sagittal slice.

    Examples:
        >>> [as_shown(np.zeros((c, 4, 6))).shape for c in (1, 2, 3)]
        [(4, 6), (4, 12), (4, 6, 3)]
        >>> as_shown(np.zeros((1, 4, 6, 5))).shape
        (6, 14)
    """
    if image_chw.ndim == 4:
        image_chw = np.stack([three_planes(volume_s) for volume_s in image_chw])
    return np.moveaxis(image_chw, 0, -1) if len(image_chw) == 3 else np.concatenate(image_chw, axis=1)


def save_png(image_hw: NDArray, path: str | Path, *, description: str = "") -> None:
    """Write one image in [0, 1], gray or (h, w, 3), as 8-bit PNG, with a description in its `Description` text."""
    bytes_hw = (np.clip(np.nan_to_num(image_hw), 0, 1) * 255 + 0.5).astype(np.uint8)
    texts = PngInfo()
    if description:
        texts.add_text("Description", description)
    with replace_file(path) as file:
        Image.fromarray(bytes_hw).save(file, format="PNG", pnginfo=texts)


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
    edge = [withStroke(linewidth=1.5, foreground=INK)]
    axes.text(0.04, 0.95, mark, transform=axes.transAxes, color=MARK, va="top", fontsize=9, path_effects=edge)
    axes.set_axis_off()


def _tile_pixels(height: int, width: int) -> int:
    """Width of an image in a picture: volumes stand there in three planes, side by side."""
    return TILE_PIXELS * max(1, round(width / height))


def save_rows(rows: Sequence[PictureRow], path: str | Path, *, title: str = "", pixels: int | None = None) -> None:
    """Write rows of images below each other, each with its label at the left.

    Args:
        rows: all with the same number of images.
        path: the PNG.
        title: a line above them.
        pixels: width of one image in the picture; by default 128, more where it is wider than high.
    """
    columns, (height, width) = len(rows[0].images_nhw), rows[0].images_nhw.shape[1:3]
    pixels = pixels or _tile_pixels(height, width)
    label, cell_w, cell_h = 1.25, pixels / DPI, pixels / DPI * height / width
    figure = _titled_figure(label + columns * cell_w, len(rows) * cell_h, title)
    size = tuple(figure.get_size_inches())
    for r, row in enumerate(rows):
        bottom = (len(rows) - r - 1) * cell_h / size[1]
        figure.text(0.08 / size[0], bottom + 0.5 * cell_h / size[1], row.label, va="center", color=INK, fontsize=9)
        for c, image_hw in enumerate(row.images_nhw):
            box = ((label + c * cell_w) / size[0], bottom, cell_w * 0.97 / size[0], cell_h * 0.97 / size[1])
            mark = row.marks[c] if c < len(row.marks) else ""
            _draw_image(figure, image_hw, box, mark=mark, signed=row.signed)
    save_figure(figure, path)


def save_grid(
    images_nhw: NDArray, path: str | Path, *, marks: Sequence[str] = (), title: str = "", columns: int | None = None
) -> None:
    """Write images row by row, nearly square unless the columns are given.

    Args:
        images_nhw: in [0, 1], (n, h, w), or (n, h, w, 3) in color.
        path: the PNG.
        marks: one an image, in its corner.
        title: a line above them.
        columns: images a row.
    """
    count, height, width = images_nhw.shape[:3]
    columns = columns or max(1, int(np.ceil(np.sqrt(count * height / width))))
    rows, cell_w = max(1, -(-count // columns)), _tile_pixels(height, width) / DPI
    cell_h = cell_w * height / width
    figure = _titled_figure(columns * cell_w, rows * cell_h, title)
    size = tuple(figure.get_size_inches())
    for index, image_hw in enumerate(images_nhw):
        row, column = divmod(index, columns)
        box = (column / columns, (rows - row - 1) * cell_h / size[1], 0.98 / columns, 0.98 * cell_h / size[1])
        _draw_image(figure, image_hw, box, mark=marks[index] if marks else "")
    save_figure(figure, path)


def _titled_figure(width: float, height: float, title: str) -> Figure:
    """A figure with room for images of this size in inches, below a title of as many lines as it takes."""
    lines = textwrap.wrap(title, max(8, int(width * LETTERS_AN_INCH)))
    whole = height + (0.08 + 0.2 * len(lines) if lines else 0)
    figure = Figure(figsize=(width, whole))
    figure.text(0.06 / width, 1 - 0.06 / whole, "\n".join(lines), va="top", color=INK, fontsize=9)
    return figure


def style(axes: Axes, *, x: str, y: str) -> None:
    """Name the axes of a plot and leave only their lines."""
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.tick_params(which="both", colors=FAINT)  # a logarithmic axis labels its minor ticks too
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
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
        if all(float(value).is_integer() for curve in curves for value in curve.x):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        style(axes, x=x, y=y[title])
    save_figure(figure, path)
