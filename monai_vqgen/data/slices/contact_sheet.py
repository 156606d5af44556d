"""A picture of slices or volumes for review: a row a subject, a column a position, drawn as stored (radiological)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from monai_vqgen.data.slices.datalists import evenly_spaced
from monai_vqgen.files import write_bytes
from monai_vqgen.transforms.geometry import three_planes

__all__ = ["write_contact_sheet"]

LABEL_PX, LABEL_GAP_PX = 14, 8
LEAST_WIDTH_PX = 120
"""Room for a label: smaller slices are enlarged by a whole factor."""
SIDES = {"axial": ("R", "L"), "coronal": ("R", "L"), "sagittal": ("A", "P"), "volume": ("R", "P")}
"""The directions at the image's left and right edge."""


def _rows(items: Sequence[Mapping[str, Any]], rows: int, columns: int) -> list[list[Mapping[str, Any]]]:
    scans: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        scans.setdefault(item["subject"], []).append(item)
    subjects = sorted(scans)
    chosen = [scans[subjects[index]] for index in evenly_spaced(rows, len(subjects))]
    return [[slices[index] for index in evenly_spaced(columns, len(slices))] for slices in chosen]


def _load(path: Path) -> NDArray:
    voxels = np.asarray(nib.load(path).dataobj, dtype=np.float32)  # type: ignore[attr-defined]
    pixels = voxels[:, :, 0] if voxels.shape[2] == 1 else three_planes(voxels)
    times = -(-LEAST_WIDTH_PX // pixels.shape[1])
    return (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8).repeat(times, 0).repeat(times, 1)


def write_contact_sheet(
    path: Path, folder: Path, items: Sequence[Mapping[str, Any]], *, rows: int = 6, columns: int = 8
) -> None:
    """Draw a grid of a few subjects and positions with their names; each volume in its three middle planes.

    Args:
        path: the PNG.
        folder: the items' `image` is relative to it.
        items: of a datalist, with subject, and of slices plane and position_mm.
        rows: subjects drawn at most.
        columns: positions drawn at most.
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
            position = f"{round(item['position_mm'], 1):g} mm" if "position_mm" in item else ""
            place = width - 3 - draw.textlength(position)
            subject = item["subject"]
            while subject and draw.textlength(subject) > place - 2 - LABEL_GAP_PX:
                subject = subject[1:]  # the end of a name tells subjects apart
            draw.text((x + 2, y + 1), subject, fill=200)
            draw.text((x + place, y + 1), position, fill=200)
            left, right = SIDES[item.get("plane", "volume")]
            draw.text((x + 2, y + height // 2), left, fill=120)
            draw.text((x + width - 8, y + height // 2), right, fill=120)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())
