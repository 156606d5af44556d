"""What a folder of slices says of all of them: the plane they were cut in and the size of their pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from monai_vqgen.transforms.geometry import PLANES

__all__ = ["SliceGeometry", "read_slice_geometry"]


class SliceGeometry(NamedTuple):
    """Plane and pixel size in mm of a folder's slices; None where the folder does not say."""

    plane: str | None = None
    pixel_mm: float | None = None


def read_slice_geometry(dataset_dir: str | Path) -> SliceGeometry:
    """Read plane and pixel size from `datalist.json`; ready-made folders have none, and say nothing.

    Example:
        >>> read_slice_geometry("/a/folder/of/png")
        SliceGeometry(plane=None, pixel_mm=None)
    """
    path = Path(dataset_dir) / "datalist.json"
    if not path.is_file():
        return SliceGeometry()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # `load_datalist` tells the user
        return SliceGeometry()
    plane, pixel_mm = content.get("plane"), content.get("pixel_mm")
    known = isinstance(pixel_mm, int | float) and not isinstance(pixel_mm, bool) and pixel_mm > 0
    return SliceGeometry(plane if plane in PLANES else None, float(pixel_mm) if known else None)
