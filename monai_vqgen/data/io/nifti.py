"""NIfTI files, written complete or not at all."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import PathLike
from monai.data.image_writer import NibabelWriter
from numpy.typing import NDArray

from monai_vqgen.errors import ScanError
from monai_vqgen.files import replace_path, write_bytes

__all__ = ["CompleteNiftiWriter", "write_slice_nifti", "write_volume_nifti"]

GZIP_LEVEL = 3  # slices of float32 hardly get smaller above
SLOPE = 112  # where scl_slope and scl_inter stand in the header, which nibabel makes itself


def write_volume_nifti(path: Path, voxels_s: NDArray, affine: NDArray, *, comment: str = "") -> None:
    """Write a NIfTI-1 file (gzip for .nii.gz, without a time stamp, so equal input gives equal bytes)."""
    content = nifti_bytes(voxels_s, affine, comment=comment, packed=path.name.endswith(".gz"))
    write_bytes(path, content, durable=False)  # one of many; datalist.json, which comes last, waits for the disk


def nifti_bytes(
    voxels_s: NDArray,
    affine: NDArray,
    *,
    comment: str = "",
    packed: bool = True,
    slope: float = 1.0,
    offset: float = 0.0,
) -> bytes:
    """The bytes of a NIfTI-1 file, those of a .nii.gz where they are to be packed; slope and offset are only stated."""
    image = nib.Nifti1Image(voxels_s, affine, dtype=voxels_s.dtype)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    if comment:
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", comment.encode()))
    content: bytes = image.to_bytes()
    if (slope, offset) != (1, 0):
        content = content[:SLOPE] + struct.pack("<2f", slope, offset) + content[SLOPE + 8 :]
    return gzip.compress(content, GZIP_LEVEL, mtime=0) if packed else content


def write_slice_nifti(path: Path, pixels_hw: NDArray, affine: NDArray, about: Mapping[str, Any]) -> None:
    """Write a slice, (h, w) or of several channels (c, h, w), as NIfTI `[H, W, 1]` or `[H, W, 1, C]`, float32.

    `about` goes as JSON into a comment extension. The affine of a slice cut from a scan is made in
    `transforms.volume_slicing.cut_plane` and moved with its frame by `transforms.size.frame_affine`; that of a sample
    in `models.samples.sample_affines`.
    """
    channels = pixels_hw[None] if pixels_hw.ndim == 2 else pixels_hw
    pixels = np.ascontiguousarray(_channels_last(channels), dtype=np.float32)
    write_volume_nifti(path, pixels, affine, comment=json.dumps(about))


def _channels_last(voxels_cs: NDArray) -> NDArray:
    """A volume (c, x, y, z) or slice (c, h, w) as NIfTI has it: three axes, and a fourth where there are channels."""
    voxels_cs = voxels_cs[..., None] if voxels_cs.ndim == 3 else voxels_cs
    return voxels_cs[0] if len(voxels_cs) == 1 else np.moveaxis(voxels_cs, 0, -1)


class CompleteNiftiWriter(NibabelWriter):
    """MONAI's NIfTI writer, `SaveImaged(..., writer=CompleteNiftiWriter)`: nothing is resampled.

    A slice `[1, H, W]` or `[1, H, W, 1]` becomes `[H, W, 1]`, placed in space by its 4x4 affine; one of several
    channels becomes `[H, W, 1, C]`. MONAI's own writer
    treats it as a picture in the x-y plane: it cannot write one in any other plane, nor one whose meta lacks the
    volume's shape. A file at its final name is complete.
    """

    def set_data_array(self, data_array: Any, *args: Any, **kwargs: Any) -> None:
        """Take `[C, X, Y, Z]` or `[C, H, W]` as it is; MONAI would also drop a last spatial axis of one voxel.

        Raises:
            ScanError: another shape.
        """
        if data_array.ndim not in (3, 4):
            raise ScanError(f"shape {tuple(data_array.shape)}: expected channels first, [C, X, Y, Z] or [C, H, W]")
        self.data_obj = _channels_last(np.asarray(data_array))

    def set_metadata(self, meta_dict: Mapping[str, Any] | None = None, resample: bool = True, **options: Any) -> None:
        """Take the affine; `resample` and its options do not apply to slices and are ignored."""
        self.affine = np.eye(4) if meta_dict is None else np.asarray(meta_dict["affine"], dtype=np.float64)

    def write(self, filename: PathLike, verbose: bool = False, **obj_kwargs: Any) -> None:
        """Write beside the file, then rename."""
        with replace_path(filename, durable=False) as partial:  # nibabel goes by the suffix, which it keeps
            super().write(partial, verbose=verbose, **obj_kwargs)
