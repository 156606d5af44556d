"""A page of slices to look at: a row a subject, a column a position, drawn as the slices are stored (radiological)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from monai_vqgen.files import write_bytes

__all__ = ["write_contact_sheet"]

LABEL_PX = 14
LEAST_WIDTH_PX = 120
"""A label's room: smaller slices are drawn at a whole multiple of their size."""
SIDES = {"axial": ("R", "L"), "coronal": ("R", "L"), "sagittal": ("A", "P")}
"""What lies at the image's left and right edge."""


def _pick(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` items, evenly spread, first and last among them."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def _rows(items: Sequence[Mapping[str, Any]], rows: int, columns: int) -> list[list[Mapping[str, Any]]]:
    scans: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        scans.setdefault(item["subject"], []).append(item)
    return [_pick(scans[subject], columns) for subject in _pick(sorted(scans), rows)]


def _label(item: Mapping[str, Any]) -> str:
    return f"{item['subject'][-12:]} {round(item['position_mm'], 1):g} mm"


def _load(path: Path) -> NDArray:
    pixels = np.asarray(nib.load(path).dataobj, dtype=np.float32)[:, :, 0]  # type: ignore[attr-defined]
    times = -(-LEAST_WIDTH_PX // pixels.shape[1])
    return (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8).repeat(times, 0).repeat(times, 1)


def write_contact_sheet(
    path: Path, folder: Path, items: Sequence[Mapping[str, Any]], *, rows: int = 6, columns: int = 8
) -> None:
    """Draw a grid of a few subjects and positions with their names.

    Args:
        path: the PNG.
        folder: what the items' `image` is relative to.
        items: of a datalist, with subject, plane and position_mm.
        rows: most subjects drawn.
        columns: most positions drawn.
    """
    grid = _rows(items, rows, columns)
    tiles = [[_load(folder / item["image"]) for item in row] for row in grid]
    height = max(tile.shape[0] for row in tiles for tile in row) + LABEL_PX
    width = max(tile.shape[1] for row in tiles for tile in row)
    sheet = Image.new("L", (width * max(map(len, grid)), height * len(grid)))
    draw = ImageDraw.Draw(sheet)
    for r, (row, row_tiles) in enumerate(zip(grid, tiles, strict=True)):
        for c, (item, tile) in enumerate(zip(row, row_tiles, strict=True)):
            x, y = c * width, r * height
            sheet.paste(Image.fromarray(tile), (x, y + LABEL_PX))
            draw.text((x + 2, y + 1), _label(item), fill=200)
            left, right = SIDES[item["plane"]]
            draw.text((x + 2, y + height // 2), left, fill=120)
            draw.text((x + width - 8, y + height // 2), right, fill=120)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())
