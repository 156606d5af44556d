"""NIfTI files: read to the last byte, written complete or not at all.

A file is read through `gzip.open` to the very end, because only the byte after the last makes Python check the CRC: a
flipped bit in a `.nii.gz` otherwise loads silently with wrong voxels.
"""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Mapping
from io import IOBase
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import nibabel as nib
import numpy as np
from monai.config import PathLike
from monai.data.image_writer import NibabelWriter
from nibabel.arrayproxy import ArrayProxy
from numpy.typing import NDArray

from monai_vqgen.errors import ScanError
from monai_vqgen.files import replace_path, write_bytes
from monai_vqgen.transforms.geometry import check_affine
from monai_vqgen.transforms.loading import NIFTI_FAULTS, open_nifti

__all__ = ["CompleteNiftiWriter", "StoredVoxels", "read_nifti", "write_slice_nifti", "write_volume_nifti"]

logger = logging.getLogger(__name__)

NIFTI2_HEADER_BYTES = 540
GZIP_LEVEL = 3  # slices of float32 hardly get smaller above


class StoredVoxels(NamedTuple):
    """Voxels `(X, Y, Z)` as a file stores them; intensities are `voxels_s * slope + offset`."""

    voxels_s: NDArray
    affine: NDArray
    slope: float = 1.0
    offset: float = 0.0


def read_nifti(path: Path, *, max_bytes: int) -> StoredVoxels:
    """Read a NIfTI-1 or -2 volume (.nii, .nii.gz), CRC checked; a 4-D file gives its first volume, with a warning.

    Raises:
        ScanError: unreadable, truncated, damaged, not a volume, more than `max_bytes`, or an unusable affine.
    """
    try:
        with open_nifti(path) as stream:
            voxels, image = _from_stream(stream, path, max_bytes)
    except ScanError:
        raise
    except FileNotFoundError as error:
        raise ScanError(f"{path}: no such file") from error
    except NIFTI_FAULTS as error:
        raise ScanError(f"{path}: unreadable, truncated or damaged ({error}); download or copy it again") from error
    except MemoryError as error:
        raise ScanError(f"{path}: does not fit into memory; crop it or use a machine with more memory") from error
    affine = check_affine(image.affine, str(path))
    if not (int(image.header["sform_code"]) or int(image.header["qform_code"])):
        logger.warning("%s: the header does not give its orientation; anatomical planes are a guess", path)
    if voxels.ndim > 3:
        if voxels.shape[3] > 1:
            logger.warning("%s: has shape %s; using the first of %d volumes", path, voxels.shape, voxels.shape[3])
        voxels = voxels.reshape((*voxels.shape[:3], -1), order="F")[..., 0]
    proxy = cast(ArrayProxy, image.dataobj)  # knows offset and scaling, which nibabel clears in the header
    return StoredVoxels(voxels, affine, float(proxy.slope), float(proxy.inter))


def _from_stream(stream: BinaryIO, path: Path, max_bytes: int) -> tuple[NDArray, nib.Nifti1Image]:
    size_field = stream.read(4)
    stream.seek(0)
    nifti2 = NIFTI2_HEADER_BYTES in (int.from_bytes(size_field, order) for order in ("little", "big"))
    image = (nib.Nifti2Image if nifti2 else nib.Nifti1Image).from_stream(cast(IOBase, stream))
    shape, dtype = image.shape, image.header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise ScanError(f"{path}: voxels of type {dtype} are not gray values; convert the scan to one channel")
    if len(shape) < 3 or (len(shape) > 3 and set(shape[3:]) != {1} and len(shape) != 4):
        raise ScanError(f"{path}: shape {shape}; expected a 3-D volume")
    if 0 in shape or min(shape[:3]) < 2:
        raise ScanError(f"{path}: shape {shape} is not a volume; every axis needs at least two voxels")
    offset = cast(ArrayProxy, image.dataobj).offset
    count = int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize
    if count + offset > max_bytes:
        raise ScanError(
            f"{path}: the header announces {count / 2**30:.1f} GiB of voxels, more than {max_bytes / 2**30:.1f} GiB; "
            "if the file is intact, crop it or raise max_bytes"
        )
    # one read into one buffer: nibabel's own path copies the voxels once more
    stream.seek(offset)
    content = stream.read(count)
    if len(content) < count:
        raise ScanError(f"{path}: truncated, has {len(content)} of {count} bytes of voxels; download or copy it again")
    if stream.read(1):
        raise ScanError(f"{path}: has more data than its header announces; download or copy it again")
    return np.frombuffer(content, dtype).reshape(shape, order="F"), image


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


def write_slice_nifti(path: Path, pixels_hw: NDArray, affine: NDArray, about: Mapping[str, Any]) -> None:
    """Write a slice as NIfTI `[H, W, 1]`, float32, with `about` as JSON in a comment extension."""
    pixels = np.ascontiguousarray(pixels_hw, dtype=np.float32)[:, :, None]
    write_volume_nifti(path, pixels, affine, comment=json.dumps(about))


class CompleteNiftiWriter(NibabelWriter):
    """MONAI's NIfTI writer for one channel, `SaveImaged(..., writer=CompleteNiftiWriter)`: nothing is resampled.

    A slice `[1, H, W]` or `[1, H, W, 1]` becomes `[H, W, 1]`, placed in space by its 4x4 affine. MONAI's own writer
    treats it as a picture in the x-y plane: it cannot write one in any other plane, nor one whose meta lacks the
    volume's shape. A file at its final name is complete.
    """

    def set_data_array(self, data_array: Any, *args: Any, **kwargs: Any) -> None:
        """Take `[1, X, Y, Z]` or `[1, H, W]` as it is; MONAI would also drop a last spatial axis of one voxel.

        Raises:
            ScanError: another shape.
        """
        if data_array.ndim not in (3, 4) or data_array.shape[0] != 1:
            raise ScanError(f"shape {tuple(data_array.shape)}: expected one channel, [1, X, Y, Z] or [1, H, W]")
        voxels = np.asarray(data_array[0])
        self.data_obj = voxels[..., None] if voxels.ndim == 2 else voxels

    def set_metadata(self, meta_dict: Mapping[str, Any] | None = None, resample: bool = True, **options: Any) -> None:
        """Take the affine; `resample` and its options do not apply to slices and are ignored."""
        self.affine = np.eye(4) if meta_dict is None else np.asarray(meta_dict["affine"], dtype=np.float64)

    def write(self, filename: PathLike, verbose: bool = False, **obj_kwargs: Any) -> None:
        """Write beside the file, then rename."""
        with replace_path(filename, durable=False) as partial:  # nibabel goes by the suffix, which it keeps
            super().write(partial, verbose=verbose, **obj_kwargs)
