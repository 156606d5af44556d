"""One scan from a NIfTI file or a DICOM series; every fault is a ScanError that names the file and says what to do."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_vqgen.data.io.dicom import read_dicom_series
from monai_vqgen.errors import ScanError
from monai_vqgen.transforms.foreground import find_background
from monai_vqgen.transforms.nifti import StoredVoxels, read_nifti

__all__ = ["Volume", "read_stored", "read_volume", "usable_volume"]

logger = logging.getLogger(__name__)

SMALLEST, LARGEST = 1e-30, 1e37  # of a scan's largest value; float32 goes from 1e-38 to 3e38


class Volume(NamedTuple):
    """One scan as stored: voxels `(X, Y, Z)` before `scl_slope`, finite, and their place in space.

    Intensities are `voxels_s * slope`; an offset (`scl_inter`) or a negative slope has already been applied. The
    affine is 4x4, voxel centers to RAS+ millimeters.
    """

    voxels_s: NDArray
    slope: float
    affine: NDArray
    path: Path


def read_volume(path: str | Path, *, max_bytes: int | None = None) -> Volume:
    """Read a scan: a NIfTI file, or a folder that holds one DICOM series (extra `dicom`).

    A 4-D NIfTI gives its first volume. NaN and infinite voxels become background. Both are logged as warnings.

    Args:
        path: the file or folder.
        max_bytes: of voxels, in memory; a file or series that announces more is refused. By default as many as one of
            its size may hold, see `monai_vqgen.transforms.nifti.check_unfolding`.

    Raises:
        ScanError: unreadable, truncated, damaged, not a volume, too large, an unusable affine, or no finite voxel.
    """
    return usable_volume(read_stored(path, max_bytes=max_bytes), Path(path))


def read_stored(path: str | Path, *, max_bytes: int | None = None) -> StoredVoxels:
    """The voxels `(X, Y, Z)` of a scan as they are stored; arguments and errors are those of `read_volume`."""
    path = Path(path)
    return read_dicom_series(path, max_bytes=max_bytes) if path.is_dir() else _read_nifti(path, max_bytes)


def usable_volume(stored: StoredVoxels, path: Path) -> Volume:
    """What `read_volume` makes of voxels as stored."""
    voxels, slope, offset = stored.voxels_s, stored.slope, stored.offset
    if not voxels.dtype.isnative:
        voxels = voxels.astype(voxels.dtype.newbyteorder("="))
    if offset != 0 or slope <= 0:
        _check_magnitude(voxels, slope, path)  # before voxels overflow to infinity
        voxels, slope = voxels.astype(np.float32) * np.float32(slope) + np.float32(offset), 1.0
    if voxels.dtype.kind == "f":
        voxels = _without_nan(voxels, path)
    _check_magnitude(voxels, slope, path)
    return Volume(voxels, slope, stored.affine, path)


def _read_nifti(path: Path, max_bytes: int | None) -> StoredVoxels:
    """The first volume of a NIfTI file."""

    def why_not(shape: tuple[int, ...]) -> str | None:
        if len(shape) < 3 or (len(shape) > 4 and set(shape[3:]) != {1}):
            return "is not that of a 3-D volume; cut slices are read by LoadSlice"
        return "is not a volume; every axis needs at least two voxels" if min(shape[:3]) < 2 else None

    stored = read_nifti(path, why_not, max_bytes=max_bytes)
    if not stored.spaced:
        raise ScanError(f"{path}: the header gives no voxel size; export the scan again, or set its pixdim")
    if not stored.oriented:
        logger.warning("%s: the header does not give its orientation; anatomical planes are a guess", path)
    voxels = stored.voxels_s
    if voxels.ndim > 3:
        if voxels.shape[3] > 1:
            logger.warning("%s: has shape %s; using the first of %d volumes", path, voxels.shape, voxels.shape[3])
        voxels = voxels.reshape((*voxels.shape[:3], -1), order="F")[..., 0]
    return stored._replace(voxels_s=voxels)


def _check_magnitude(voxels: NDArray, slope: float, path: Path) -> None:
    """Refuse values that single precision cannot calculate with: slices of them would be black."""
    if voxels.dtype.kind != "f" and slope == 1:
        return
    with np.errstate(all="ignore"):
        ends = [abs(float(end) * slope) for end in (np.nanmin(voxels), np.nanmax(voxels))]
    largest = max((end for end in ends if math.isfinite(end)), default=0.0)
    if largest != 0 and not SMALLEST <= largest <= LARGEST:
        raise ScanError(
            f"{path}: values of up to {largest:g} (scl_slope {slope:g}); expected {SMALLEST:g} to {LARGEST:g}: export "
            "the scan again, or divide its values"
        )


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
    background = find_background(voxels).value
    logger.warning("%s: %d voxels are NaN or infinite and count as background (%g)", path, count, background)
    return np.where(bad, voxels.dtype.type(background), voxels)
