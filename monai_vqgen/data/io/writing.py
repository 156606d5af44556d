"""NIfTI files of volumes and slices, complete or not there."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_vqgen.files import write_bytes

__all__ = ["write_slice_nifti", "write_volume_nifti"]

GZIP_LEVEL = 3  # slices of float32 hardly get smaller above


def write_volume_nifti(path: Path, voxels_s: NDArray, affine: NDArray, *, comment: str = "") -> None:
    """Write a NIfTI-1 file (gzip for .nii.gz, without a time stamp, so equal input gives equal bytes)."""
    image = nib.Nifti1Image(voxels_s, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    if comment:
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", comment.encode()))
    content = image.to_bytes()
    if path.name.endswith(".gz"):
        content = gzip.compress(content, GZIP_LEVEL, mtime=0)
    write_bytes(path, content, durable=False)  # one of many; datalist.json, which comes last, waits for the disk


def write_slice_nifti(path: Path, pixels_hw: NDArray, affine: NDArray, about: dict[str, Any]) -> None:
    """Write a slice as NIfTI `[H, W, 1]`, float32; what it is about goes into a comment extension as JSON."""
    pixels = np.ascontiguousarray(pixels_hw, dtype=np.float32)[:, :, None]
    write_volume_nifti(path, pixels, affine, comment=json.dumps(about))
