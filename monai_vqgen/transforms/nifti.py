"""NIfTI files, read to the last byte, and how much a file of any kind may unfold to.

A file is read through `gzip.open` to the very end, because only the byte after the last makes Python check the CRC: a
flipped bit in a `.nii.gz` otherwise loads silently with wrong voxels. Nothing is allocated before its size is checked.
"""

from __future__ import annotations

import gzip
import logging
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from monai_vqgen.errors import ScanError
from monai_vqgen.transforms.geometry import check_affine

__all__ = ["StoredVoxels", "check_unfolding", "nifti_shape", "read_nifti"]

logger = logging.getLogger(__name__)

MAX_BYTES = 4 * 2**30  # of what a file unfolds to, in memory as float32 or as stored; 512^3 float64 voxels have 1 GiB
FREE_BYTES = 2**27  # any file may unfold to that much, else to so many times its own size
MAX_RATIO = 64  # scans shrink to a half to a twentieth; gzip could do a thousandth
NIFTI1_BYTES, NIFTI2_BYTES = 348, 540  # of the header
COMMENT, SEARCHED = 6, 2**20  # the code of a comment, and how many bytes of extensions are looked through
MM = {1: 1e3, 3: 1e-3}  # by the code of xyzt_units: meters, micrometers
FAULTS = (OSError, EOFError, zlib.error, HeaderDataError, WrapStructError, ValueError, OverflowError, LookupError)
"""What gzip and nibabel raise for files that are truncated, damaged or not NIfTI."""


class StoredVoxels(NamedTuple):
    """Voxels `(X, Y, Z)` as a file stores them; intensities are `voxels_s * slope + offset`."""

    voxels_s: NDArray
    affine: NDArray
    slope: float = 1.0
    offset: float = 0.0
    comments: tuple[bytes, ...] = ()
    """The comment extensions of a NIfTI file."""
    oriented: bool = True
    """Whether the file says how its axes lie in the patient."""
    spaced: bool = True
    """Whether it gives the distances of voxels along all three axes."""


def check_unfolding(path: Path, count: int, max_bytes: int | None = None, *, file_bytes: int | None = None) -> None:
    """Raise ScanError where a file announces more bytes than one of its size may unfold to, or than `max_bytes`."""
    size = path.stat().st_size if file_bytes is None else file_bytes
    limit = min(MAX_BYTES, max(FREE_BYTES, MAX_RATIO * size)) if max_bytes is None else max_bytes
    if count > limit:
        raise ScanError(
            f"{path}: the header announces {count / 2**30:.2f} GiB, and {limit / 2**30:.2f} GiB are allowed for "
            f"{size / 2**20:.1f} MiB on disk; if the file is intact, crop it, save it uncompressed, or raise max_bytes"
        )


def nifti_shape(path: Path) -> tuple[int, ...]:
    """The shape that a file's header states; raises as `read_nifti` does."""
    return cast("tuple[int, ...]", _guarded(path, _shape))


def _shape(stream: BinaryIO) -> tuple[int, ...]:
    header = _header(stream)
    header.check_fix()
    return cast("tuple[int, ...]", header.get_data_shape())


def read_nifti(
    path: Path, why_not: Callable[[tuple[int, ...]], str | None], *, max_bytes: int | None = None
) -> StoredVoxels:
    """Read NIfTI-1 or -2 (.nii, .nii.gz) with the CRC checked; positions in meters or micrometers become millimeters.

    Args:
        path: the file.
        why_not: what is wrong with a shape, in words, or None.
        max_bytes: the file may unfold to this much; by default that depends on its size, see `check_unfolding`.

    Raises:
        ScanError: unreadable, truncated, damaged, of another shape, not gray values, too large, or an unusable affine.
    """
    return cast(StoredVoxels, _guarded(path, lambda stream: _from_stream(stream, path, why_not, max_bytes)))


def _guarded(path: Path, read: Callable[[BinaryIO], Any]) -> Any:
    """Read from a file, unpacked where it starts with gzip's magic number, whatever its name; faults are ScanErrors."""
    try:
        if path.exists() and not path.is_file():  # a pipe would wait for its end, a device may have none
            raise ScanError(f"{path}: no file, but a folder, pipe or device; give a NIfTI file")
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not packed:
                return read(raw)
            with gzip.open(raw) as stream:
                return read(cast(BinaryIO, stream))
    except ScanError:
        raise
    except FileNotFoundError as error:
        linked = ", only a link to a file that is not there: fetch it (git annex get, datalad get)"
        raise ScanError(f"{path}: no such file{linked if path.is_symlink() else ''}") from error
    except FAULTS as error:
        raise ScanError(f"{path}: unreadable, truncated or damaged ({error}); download or copy it again") from error
    except MemoryError as error:
        raise ScanError(f"{path}: does not fit into memory; crop it or use a machine with more memory") from error


def _header(stream: BinaryIO) -> Any:
    """The header as it stands: `check_fix` then raises for faults, and mends some."""
    head = stream.read(NIFTI1_BYTES)
    if NIFTI2_BYTES in (int.from_bytes(head[:4], order) for order in ("little", "big")):
        return nib.Nifti2Header(head + stream.read(NIFTI2_BYTES - NIFTI1_BYTES), check=False)
    return nib.Nifti1Header(head, check=False)


def _from_stream(
    stream: BinaryIO, path: Path, why_not: Callable[[tuple[int, ...]], str | None], max_bytes: int | None
) -> StoredVoxels:
    header = _header(stream)
    spaced = header["sform_code"] > 0 or bool((header["pixdim"][1:4] != 0).all())  # nibabel makes 1 mm of 0
    header.check_fix()
    shape, dtype = tuple(int(n) for n in header.get_data_shape()), header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise ScanError(f"{path}: voxels of type {dtype} are not gray values; convert the scan to one channel")
    if fault := "has an axis without voxels" if min(shape, default=0) < 1 else why_not(shape):
        raise ScanError(f"{path}: shape {shape} {fault}")
    between = int(header.get_data_offset()) - header.structarr.dtype.itemsize
    count = math.prod(shape) * dtype.itemsize
    check_unfolding(path, between + math.prod(shape) * max(4, dtype.itemsize), max_bytes)
    affine = check_affine(header.get_best_affine(), str(path))
    if scale := MM.get(int(header["xyzt_units"]) & 7):
        logger.warning(
            "%s: the header states %s; positions are converted", path, "meters" if scale > 1 else "micrometers"
        )
        affine[:3] *= scale
    slope, offset = header.get_slope_inter()
    extensions = stream.read(between)
    content = stream.read(count)  # one read into one buffer: nibabel's own path copies the voxels once more
    if len(extensions) < between or len(content) < count:
        raise ScanError(f"{path}: truncated, has {len(content)} of {count} bytes of voxels; download or copy it again")
    if stream.read(1):
        raise ScanError(f"{path}: has more data than its header announces; download or copy it again")
    voxels = np.frombuffer(content, dtype).reshape(shape, order="F")
    # nibabel, too, takes a slope that is no number as 1, and an offset beside it as 0
    comments = tuple(_comments(extensions[4 : 4 + SEARCHED], header.endianness))
    oriented = bool(header["sform_code"] or header["qform_code"])
    return StoredVoxels(voxels, affine, 1.0 if slope is None else slope, offset or 0.0, comments, oriented, spaced)


def _comments(extensions: bytes, order: str) -> Iterator[bytes]:
    at = 0
    while at + 16 <= len(extensions):
        size, code = struct.unpack_from(f"{order}2i", extensions, at)
        if size < 16:
            return
        if code == COMMENT:
            yield extensions[at + 8 : at + size].rstrip(b"\0")
        at += size
