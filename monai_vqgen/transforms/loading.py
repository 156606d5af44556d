"""Slices from NIfTI and PNG files, in one shape and one range."""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from io import IOBase
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import Transform
from monai.utils.enums import TransformBackends
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.transforms.geometry import check_affine

__all__ = ["LoadSlice"]

NIFTI_FAULTS = (
    OSError,
    EOFError,
    zlib.error,
    ImageFileError,
    HeaderDataError,
    WrapStructError,
    ValueError,
    OverflowError,
)
"""What gzip and nibabel raise for files that are truncated, damaged or not NIfTI."""

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
RANGE_SLACK = 1e-4  # rounding of other programs' floats; clipped


@contextlib.contextmanager
def open_nifti(path: Path) -> Iterator[BinaryIO]:
    """Open a NIfTI file for reading, unpacked where it starts with gzip's magic number, whatever its name."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if packed:
            with gzip.open(raw) as stream:
                yield cast(BinaryIO, stream)
        else:
            yield raw


class LoadSlice(Transform):
    """Load one slice as `[1, H, W]`, float32 in [0, 1], in display order: rows down, columns right.

    | file | values |
    |---|---|
    | PNG, 8 or 16 bit gray | divided by 255 or 65,535 |
    | PNG in color | an error, or its luminance with `color="luminance"` |
    | NIfTI `[H, W]` or `[H, W, 1]` within [0, 1], as `extract_slices` writes | as they are |
    | NIfTI of uint8 without scaling | divided by 255 |
    | any other NIfTI | an error: give one `value_range` for all slices, or extract slices from the volumes |

    Args:
        value_range: (low, high) in the file's units that become 0 and 1, clipped.
        color: "error" or "luminance".

    Shapes: a path to a MetaTensor. A PNG's affine is the identity. meta: `filename_or_obj`, and `subject`, `plane` and
    `position_mm` where the file states them.

    Raises:
        ScanError: missing, unreadable, truncated, damaged, not a slice, NaN, or values of an unknown range.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.fromarray(np.full((4, 6), 255, dtype=np.uint8)).save(f"{folder}/white.png")
        ...     image = LoadSlice()(f"{folder}/white.png")
        >>> tuple(image.shape), float(image.max())
        ((1, 4, 6), 1.0)
    """

    backend = [TransformBackends.NUMPY]  # noqa: RUF012 (MONAI's own convention)

    def __init__(self, *, value_range: Sequence[float] | None = None, color: str = "error") -> None:
        if value_range is not None and (len(value_range) != 2 or not value_range[1] > value_range[0]):
            raise InputError(f"value_range is {value_range}; give (low, high) with low < high")
        if color not in ("error", "luminance"):
            raise InputError(f"color is {color!r}; choose 'error' or 'luminance'")
        self.value_range = (float(value_range[0]), float(value_range[1])) if value_range is not None else None
        self.color = color

    def __call__(self, filename: str | Path) -> MetaTensor:
        """Load one file."""
        path = Path(filename)
        if not path.is_file():
            raise ScanError(f"{path}: no such file")
        if path.name.lower().endswith(".png"):
            pixels, affine, meta = self._png(path), np.eye(4), dict[str, Any]()
        else:
            pixels, affine, meta = self._nifti(path)
        meta["filename_or_obj"] = str(path)
        image = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32)[None])
        return MetaTensor(image, affine=torch.as_tensor(affine, dtype=torch.float64), meta=meta)

    def _png(self, path: Path) -> NDArray:
        try:
            with Image.open(path) as picture:
                picture.load()
                mode, pixels = picture.mode, np.asarray(picture.convert("RGB") if picture.mode == "P" else picture)
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
            raise ScanError(f"{path}: unreadable or truncated picture ({error}); download or copy it again") from error
        if pixels.ndim == 3:
            pixels = self._gray(pixels, path)
        if self.value_range is not None:
            return self._windowed(pixels)
        full = 65535 if mode.startswith("I") else 1 if mode == "1" else 255
        return np.asarray(pixels, dtype=np.float32) / full

    def _gray(self, pixels: NDArray, path: Path) -> NDArray:
        color = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1]
        if (color == color[..., :1]).all():  # gray stored as color
            return color[..., 0]
        if self.color == "error":
            raise ScanError(f"{path}: a color picture; convert it to gray, or use color='luminance'")
        return color @ LUMA

    def _nifti(self, path: Path) -> tuple[NDArray, NDArray, dict[str, Any]]:
        try:
            with open_nifti(path) as stream:
                image = nib.Nifti1Image.from_stream(cast(IOBase, stream))
                pixels = np.asarray(image.dataobj)
                stream.read(1)  # the byte after the last makes gzip check the CRC
        except NIFTI_FAULTS as error:
            raise ScanError(f"{path}: unreadable, truncated or damaged ({error}); download or copy it again") from error
        if pixels.ndim < 2 or 0 in pixels.shape or set(pixels.shape[2:]) - {1} or pixels.dtype.kind not in "iuf":
            raise ScanError(
                f"{path}: {pixels.dtype} of shape {pixels.shape}; expected a gray slice [H, W] or [H, W, 1]"
            )
        proxy = cast(ArrayProxy, image.dataobj)  # nibabel clears the scaling in the header
        unscaled = proxy.slope == 1 and proxy.inter == 0
        kind = image.get_data_dtype()
        pixels = pixels.reshape(pixels.shape[:2])
        return (
            self._ranged(pixels, kind == np.uint8 and unscaled, path),
            check_affine(image.affine, str(path)),
            _about(image),
        )

    def _ranged(self, pixels: NDArray, is_byte: bool, path: Path) -> NDArray:
        if not np.isfinite(pixels).all():
            raise ScanError(f"{path}: has NaN or infinite values; exclude or fix the slice")
        if self.value_range is not None:
            return self._windowed(pixels)
        if is_byte:
            return np.asarray(pixels, dtype=np.float32) / 255
        low, high = float(pixels.min()), float(pixels.max())
        if low < -RANGE_SLACK or high > 1 + RANGE_SLACK:
            raise ScanError(
                f"{path}: values from {low:g} to {high:g} are not in [0, 1]; give value_range=(low, high), the same "
                "for all slices, or extract the slices from the volumes with extract_slices"
            )
        return np.clip(pixels, 0, 1)

    def _windowed(self, pixels: NDArray) -> NDArray:
        assert self.value_range is not None
        low, high = self.value_range
        return np.clip((np.asarray(pixels, dtype=np.float32) - low) / (high - low), 0, 1)


def _about(image: nib.Nifti1Image) -> dict[str, Any]:
    """Subject, plane and position where `extract_slices` wrote them into the header's comment."""
    for extension in image.header.extensions:
        try:
            noted = json.loads(extension.text) if extension.get_code() == 6 else None
        except (ValueError, UnicodeDecodeError):
            continue
        if isinstance(noted, dict):
            return {key: noted[key] for key in ("subject", "plane", "position_mm") if key in noted}
    return {}
