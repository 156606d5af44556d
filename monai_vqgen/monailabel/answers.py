"""Results as files that a viewer lays over its image: NIfTI with the right affine, or PNG for a PNG."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_vqgen.data.io.nifti import write_volume_nifti
from monai_vqgen.plots.pictures import save_png

__all__ = ["ANSWER_PREFIX", "answer_nifti", "answer_png"]

ANSWER_PREFIX = "monai_vqgen_"


def _path(suffix: str) -> Path:
    """A new name; MONAI Label removes the file when it has been sent."""
    with tempfile.NamedTemporaryFile(prefix=ANSWER_PREFIX, suffix=suffix, delete=False) as file:
        return Path(file.name)


def answer_nifti(voxels_s: NDArray, affine: NDArray, about: Mapping[str, Any]) -> str:
    """Write a volume, or slices stacked along the third axis, as float32, a mask as uint8; return the path.

    What it is (synthetic or not, seed, model) stands in the header too, so that the file tells it without the answer.
    """
    path = _path(".nii.gz")
    values = np.ascontiguousarray(voxels_s, dtype=np.uint8 if voxels_s.dtype == bool else np.float32)
    write_volume_nifti(path, values, np.asarray(affine, dtype=np.float64), comment=json.dumps(about))
    return str(path)


def answer_png(image_hw: NDArray) -> str:
    """Write one image in [0, 1] as 8-bit gray PNG; return the path."""
    path = _path(".png")
    save_png(image_hw, path)
    return str(path)
