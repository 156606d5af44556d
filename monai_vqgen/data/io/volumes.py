"""Read one scan, and believe nothing: every fault is a ScanError that names the file and the mend.

A NIfTI is read through `gzip.open` to the very end, because only the byte after the last makes Python check the CRC:
a flipped bit in a `.nii.gz` otherwise loads silently with wrong voxels.
"""

from __future__ import annotations

import gzip
import logging
from io import IOBase
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from numpy.typing import NDArray

from monai_vqgen.errors import ScanError
from monai_vqgen.transforms.geometry import check_affine
from monai_vqgen.transforms.loading import NIFTI_FAULTS

__all__ = ["MAX_BYTES", "Volume", "read_nifti", "read_volume"]

logger = logging.getLogger(__name__)

MAX_BYTES = 4 * 2**30  # bytes of voxels; a 512^3 float64 volume has 1 GiB. Stops gzip bombs
NIFTI2_HEADER_BYTES = 540


class Volume(NamedTuple):
    """One scan as stored: voxels `(X, Y, Z)` before `scl_slope`, finite, and where they lie.

    Intensities are `voxels_s * slope`; an offset (`scl_inter`) or a negative slope has been applied already.
    """

    voxels_s: NDArray
    slope: float
    affine: NDArray
    path: Path


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path, "rb") if packed else path.open("rb"))


def _from_stream(stream: BinaryIO, path: Path, max_bytes: int) -> tuple[NDArray, nib.Nifti1Image]:
    size_field = stream.read(4)
    stream.seek(0)
    nifti2 = NIFTI2_HEADER_BYTES in (int.from_bytes(size_field, order) for order in ("little", "big"))
    image = (nib.Nifti2Image if nifti2 else nib.Nifti1Image).from_stream(cast(IOBase, stream))
    shape, dtype = image.shape, image.header.get_data_dtype()
    proxy = cast(ArrayProxy, image.dataobj)  # knows offset and scaling, which nibabel clears in the header
    if dtype.kind not in "iuf":
        raise ScanError(f"{path}: voxels of type {dtype} are not grey values; convert the scan to one channel.")
    if len(shape) < 3 or (len(shape) > 3 and set(shape[3:]) != {1} and len(shape) != 4):
        raise ScanError(f"{path}: a volume of three axes is due, this file has shape {shape}.")
    if 0 in shape or min(shape[:3]) < 2:
        raise ScanError(f"{path}: shape {shape} is not a volume: every axis needs at least two voxels.")
    count = int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize
    if count + proxy.offset > max_bytes:
        raise ScanError(
            f"{path}: its header announces {count / 2**30:.1f} GiB of voxels, more than {max_bytes / 2**30:.1f} GiB; "
            "if the file is sound, crop it or raise max_bytes."
        )
    # one read into one buffer: nibabel's own path copies the voxels once more
    stream.seek(proxy.offset)
    content = stream.read(count)
    if len(content) < count:
        raise ScanError(f"{path}: truncated, {len(content)} of {count} bytes of voxels are there; fetch it again.")
    if stream.read(1):
        raise ScanError(f"{path}: holds more data than its header says; the file is damaged, fetch it again.")
    return np.frombuffer(content, dtype).reshape(shape, order="F"), image


def _first_volume(voxels: NDArray, path: Path) -> NDArray:
    if voxels.ndim > 3:
        if voxels.shape[3] > 1:
            logger.warning("%s: has shape %s; the first of %d volumes is used.", path, voxels.shape, voxels.shape[3])
        voxels = voxels.reshape((*voxels.shape[:3], -1), order="F")[..., 0]
    return voxels


def read_nifti(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Volume:
    """Read a NIfTI-1 or -2 volume (.nii, .nii.gz), CRC checked.

    A 4D file gives its first volume, with a logged warning. NaN and infinite voxels become 0 (background), with a
    logged warning.

    Raises:
        ScanError: unreadable, truncated, damaged, not a volume, too large, useless affine, no finite voxel.
    """
    path = Path(path)
    try:
        with _open(path) as stream:
            voxels, image = _from_stream(stream, path, max_bytes)
    except ScanError:
        raise
    except FileNotFoundError as error:
        raise ScanError(f"{path}: no such file.") from error
    except NIFTI_FAULTS as error:
        raise ScanError(f"{path}: unreadable, truncated or damaged ({error}); fetch the file again.") from error
    except MemoryError as error:
        raise ScanError(f"{path}: does not fit into memory; crop it or use a machine with more.") from error
    affine = check_affine(image.affine, str(path))
    if not (int(image.header["sform_code"]) or int(image.header["qform_code"])):
        logger.warning("%s: its header does not say how it lies in space; anatomical planes are a guess.", path)
    proxy = cast(ArrayProxy, image.dataobj)
    slope, inter = float(proxy.slope), float(proxy.inter)
    return _finished(_first_volume(voxels, path), slope, inter, affine, path)


def _finished(voxels: NDArray, slope: float, inter: float, affine: NDArray, path: Path) -> Volume:
    """Native byte order, no offset, no NaN."""
    if not voxels.dtype.isnative:
        voxels = voxels.astype(voxels.dtype.newbyteorder("="))
    if not (np.isfinite(slope) and np.isfinite(inter)):
        raise ScanError(f"{path}: scl_slope or scl_inter is not a number; mend the header.")
    if inter != 0 or slope <= 0:
        voxels, slope = voxels.astype(np.float32) * np.float32(slope) + np.float32(inter), 1.0
    if voxels.dtype.kind == "f":
        voxels = _without_nan(voxels, path)
    return Volume(voxels, slope, affine, path)


def _without_nan(voxels: NDArray, path: Path) -> NDArray:
    with np.errstate(all="ignore"):
        if np.isfinite(np.add.reduce(voxels, axis=None)):  # one cheap pass; NaN and infinity survive a sum
            return voxels
    bad = ~np.isfinite(voxels)
    count = int(bad.sum())
    if count == 0:  # the sum overflowed
        return voxels
    if count == voxels.size:
        raise ScanError(f"{path}: no voxel is a number (all NaN or infinite); leave the scan out or mend it.")
    logger.warning("%s: %d voxels are NaN or infinite; they count as background (0).", path, count)
    return np.where(bad, voxels.dtype.type(0), voxels)


def read_volume(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Volume:
    """Read a scan: a NIfTI file, or a folder that holds one DICOM series (extra `dicom`)."""
    if Path(path).is_dir():
        from monai_vqgen.data.io.dicom import read_dicom_series  # an extra: pydicom may be missing

        return read_dicom_series(path)
    return read_nifti(path, max_bytes=max_bytes)
