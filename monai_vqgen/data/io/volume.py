"""One scan from a NIfTI file or a DICOM series; every fault is a ScanError that names the file and says what to do."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_vqgen.data.io.dicom import read_dicom_series
from monai_vqgen.data.io.nifti import read_nifti
from monai_vqgen.errors import ScanError

__all__ = ["Volume", "read_volume"]

logger = logging.getLogger(__name__)

MAX_BYTES = 4 * 2**30  # bytes of voxels; a 512^3 float64 volume has 1 GiB. Stops gzip bombs


class Volume(NamedTuple):
    """One scan as stored: voxels `(X, Y, Z)` before `scl_slope`, finite, and their place in space.

    Intensities are `voxels_s * slope`; an offset (`scl_inter`) or a negative slope has already been applied. The
    affine is 4x4, voxel centers to RAS+ millimeters.
    """

    voxels_s: NDArray
    slope: float
    affine: NDArray
    path: Path


def read_volume(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Volume:
    """Read a scan: a NIfTI file, or a folder that holds one DICOM series (extra `dicom`).

    A 4-D NIfTI gives its first volume. NaN and infinite voxels become 0 (background). Both are logged as warnings.

    Args:
        path: the file or folder.
        max_bytes: of voxels; a file or series that announces more is refused.

    Raises:
        ScanError: unreadable, truncated, damaged, not a volume, too large, an unusable affine, or no finite voxel.
    """
    path = Path(path)
    stored = (read_dicom_series if path.is_dir() else read_nifti)(path, max_bytes=max_bytes)
    voxels, slope, offset = stored.voxels_s, stored.slope, stored.offset
    if not voxels.dtype.isnative:
        voxels = voxels.astype(voxels.dtype.newbyteorder("="))
    if not (np.isfinite(slope) and np.isfinite(offset)):
        raise ScanError(f"{path}: scl_slope or scl_inter is not a number; fix the header")
    if offset != 0 or slope <= 0:
        voxels, slope = voxels.astype(np.float32) * np.float32(slope) + np.float32(offset), 1.0
    if voxels.dtype.kind == "f":
        voxels = _without_nan(voxels, path)
    return Volume(voxels, slope, stored.affine, path)


def _without_nan(voxels: NDArray, path: Path) -> NDArray:
    with np.errstate(all="ignore"):
        if np.isfinite(np.add.reduce(voxels, axis=None)):  # one cheap pass; NaN and infinity survive a sum
            return voxels
    bad = ~np.isfinite(voxels)
    count = int(bad.sum())
    if count == 0:  # the sum overflowed
        return voxels
    if count == voxels.size:
        raise ScanError(f"{path}: no voxel is a number (all NaN or infinite); exclude or fix the scan")
    logger.warning("%s: %d voxels are NaN or infinite and count as background (0)", path, count)
    return np.where(bad, voxels.dtype.type(0), voxels)
