"""Slices from NIfTI files and pictures, and volumes, in one shape and one range."""

from __future__ import annotations

import json
import os
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import Transform
from monai.utils.enums import TransformBackends
from numpy.typing import NDArray
from PIL import Image, ImageOps

from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.transforms.nifti import check_unfolding, read_nifti
from monai_vqgen.transforms.tensors import as_slice

__all__ = ["PICTURE_SUFFIXES", "LoadSlice"]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
FULL = {"1": 1, "L": 255, "LA": 255, "RGB": 255, "RGBA": 255, "I;16": 65535, "I;16B": 65535, "I;16L": 65535}
"""White, by Pillow's mode; of others it is unknown."""
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by color type
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row, and steps along these, of the passes of an interlaced PNG (ISO/IEC 15948, section 8.2)."""

TIFF_BITS, TIFF_COMPRESSION, TIFF_PHOTOMETRIC, TIFF_STRIPS = 258, 259, 262, 279  # tags; the last: bytes of each strip

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
RANGE_SLACK = 1e-4  # rounding of other programs' floats; clipped


class LoadSlice(Transform):
    """Load one slice as `[C, H, W]`, float32 in [0, 1], in display order: rows down, columns right; or one volume.

    | file | values |
    |---|---|
    | PNG, JPEG, BMP, TIFF, 8 or 16 bit gray | divided by 255 or 65,535 |
    | a picture in color | red, green, blue with `channels=3`; else an error, or its luminance (`color="luminance"`) |
    | a gray picture with `channels=3` | the same in each |
    | NIfTI `[H, W]` or `[H, W, 1]` or TIFF within [0, 1], as `extract_slices` writes | as they are |
    | NIfTI of uint8 without scaling | divided by 255 |
    | any other | an error: give one `value_range` for all slices, or extract slices from the volumes |

    Args:
        value_range: (low, high) in the file's units that become 0 and 1, clipped.
        color: "error" or "luminance".
        channels: 1; 3 for pictures in color; any number for NIfTI of as many contrasts, `[H, W, 1, C]` or `[H, W, C]`.
        dimensions: 2; or 3 for volumes, NIfTI `[X, Y, Z]` or `[X, Y, Z, C]`, to `[C, X, Y, Z]` in the file's own axes.

    Shapes: a path to a MetaTensor. A picture's affine is the identity. meta: `filename_or_obj`, and `subject`, `plane`
    and `position_mm` where the file states them.

    MONAI's `SaveImage` writes such slices. It takes all images of two axes for axial ones, though: write coronal and
    sagittal slices with `squeeze_end_dims=False`.

    Raises:
        ScanError: missing, unreadable, truncated, damaged, not one slice, of other channels, transparent, larger than a
            file of that size may be, NaN, or values of an unknown range.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.fromarray(np.full((4, 6), 255, dtype=np.uint8)).save(f"{folder}/white.png")
        ...     image = LoadSlice()(f"{folder}/white.png")
        >>> tuple(image.shape), float(image.max())
        ((1, 4, 6), 1.0)
    """

    backend = [TransformBackends.NUMPY]  # noqa: RUF012 (MONAI's own convention)

    def __init__(
        self,
        *,
        value_range: Sequence[float] | None = None,
        color: str = "error",
        channels: int = 1,
        dimensions: int = 2,
    ) -> None:
        if value_range is not None and (len(value_range) != 2 or not value_range[1] > value_range[0]):
            raise InputError(f"value_range is {value_range}; give (low, high) with low < high")
        if color not in ("error", "luminance"):
            raise InputError(f"color is {color!r}; choose 'error' or 'luminance'")
        self.value_range = (float(value_range[0]), float(value_range[1])) if value_range is not None else None
        if channels < 1:
            raise InputError(f"channels is {channels}; give a whole number, at least 1")
        if dimensions not in (2, 3):
            raise InputError(f"dimensions is {dimensions!r}; give 2 for slices or 3 for volumes")
        self.color, self.channels, self.dimensions = color, channels, dimensions

    def __call__(self, filename: str | Path) -> MetaTensor:
        """Load one file."""
        path = Path(filename)
        if not os.path.isfile(path):  # which takes names of any length
            raise ScanError(f"{path}: no such file")
        if path.name.lower().endswith(PICTURE_SUFFIXES):
            pixels, affine, meta = self._picture(path), np.eye(4), dict[str, Any]()
        else:
            pixels, affine, meta = self._nifti(path)
        meta["filename_or_obj"] = str(path)
        pixels = pixels[None] if pixels.ndim == self.dimensions else np.moveaxis(pixels, -1, 0)
        image = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
        return as_slice(image, affine, meta)

    def _picture(self, path: Path) -> NDArray:
        if self.dimensions == 3:
            raise ScanError(f"{path}: a picture, where {self._wanted()} is asked for; give a model of slices")
        try:
            mode, pixels = _read_picture(path)
        except ScanError:
            raise
        except Exception as error:  # Pillow raises many kinds for damaged files
            raise ScanError(f"{path}: unreadable or truncated picture ({error}); download or copy it again") from error
        if self.channels not in (1, 3):
            raise ScanError(f"{path}: a picture has no {self.channels} channels; give NIfTI [H, W, 1, {self.channels}]")
        if pixels.ndim == 3:
            pixels = self._gray(pixels, path)
        if self.channels == 3 and pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=-1)
        if self.value_range is None and mode in FULL:
            return np.asarray(pixels, dtype=np.float32) / FULL[mode]
        return self._ranged(pixels, False, path)

    def _gray(self, pixels: NDArray, path: Path) -> NDArray:
        if pixels.shape[-1] in (2, 4) and (pixels[..., -1] != 255).any():
            raise ScanError(f"{path}: a picture with transparent pixels; save it without an alpha channel")
        color = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1]
        if (color == color[..., :1]).all():  # gray stored as color
            return color[..., 0]
        if self.channels == 3:
            return color
        if self.color == "error":
            raise ScanError(
                f"{path}: a color picture; convert it to gray, or load it in Python with LoadSlice(color='luminance'); "
                "to train on colors give --network_def::in_channels 3"
            )
        return color @ LUMA

    def _nifti(self, path: Path) -> tuple[NDArray, NDArray, dict[str, Any]]:
        stored = read_nifti(path, self._why_not)
        axes = [self.channels] if self.channels > 1 else []
        pixels = stored.voxels_s.reshape(*stored.voxels_s.shape[: self.dimensions], *axes)
        unscaled = stored.slope == 1 and stored.offset == 0
        is_byte = pixels.dtype == np.uint8 and unscaled
        scaled = pixels if unscaled else pixels * stored.slope + stored.offset
        return self._ranged(scaled, is_byte, path), stored.affine, _about(stored.comments)

    def _why_not(self, shape: tuple[int, ...]) -> str | None:
        """What is wrong with a shape, in words."""
        first, longer = shape[: self.dimensions], [size for size in shape[self.dimensions :] if size != 1]
        if longer == ([self.channels] if self.channels > 1 else []) and (self.dimensions == 2 or min(first) > 1):
            return None if len(first) == self.dimensions else f"is not {self._wanted()}"
        hint = ""
        if self.dimensions == 3 and len(first) == 3 and 1 in first:
            hint = "; for a model of volumes extract with --dimensions 3"
        elif self.dimensions == 2 and self.channels == 1 and len(shape) == 3:
            hint = "; volumes want a model of volumes (--network_def::spatial_dims 3)"
        return f"is not {self._wanted()}{hint}"

    def _wanted(self) -> str:
        what, axes = ("a slice", "H, W, 1") if self.dimensions == 2 else ("a volume", "X, Y, Z")
        return f"{what} [{axes}]" if self.channels == 1 else f"{what} of {self.channels} channels [{axes}, C]"

    def _ranged(self, pixels: NDArray, is_byte: bool, path: Path) -> NDArray:
        if not np.isfinite(pixels).all():
            raise ScanError(f"{path}: has NaN or infinite values; exclude or fix the slice")
        if self.value_range is not None:
            start, stop = self.value_range
            return np.clip((np.asarray(pixels, dtype=np.float32) - start) / (stop - start), 0, 1)
        if is_byte:
            return np.asarray(pixels, dtype=np.float32) / 255
        low, high = float(pixels.min()), float(pixels.max())
        if low < -RANGE_SLACK or high > 1 + RANGE_SLACK:
            raise ScanError(
                f"{path}: values from {low:g} to {high:g} are not in [0, 1]; extract the slices from the volumes "
                "with extract_slices.json, or load them in Python with LoadSlice(value_range=(low, high))"
            )
        return np.clip(pixels, 0, 1)


def _read_picture(path: Path) -> tuple[str, NDArray]:
    """Mode and pixels of a picture that holds one image, checked as far as its format allows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is our own
        with Image.open(path, formats=FORMATS) as picture:
            check_unfolding(path, picture.width * picture.height * len(picture.getbands()) * 4)
            if (frames := getattr(picture, "n_frames", 1)) > 1:
                raise ScanError(f"{path}: holds {frames} images; save each slice as a file of its own")
            if picture.format == "PNG":
                _check_png(path.read_bytes())
            negative = picture.format == "TIFF" and picture.tag_v2.get(TIFF_PHOTOMETRIC) == 0  # white is zero
            if picture.format in ("TIFF", "BMP"):
                _check_stored(path, picture)
            picture.load()
            upright = ImageOps.exif_transpose(picture)
    if upright.mode in ("P", "PA"):
        upright = upright.convert("RGBA" if upright.mode == "PA" or "transparency" in upright.info else "RGB")
    if upright.mode not in FULL and len(upright.getbands()) > 1:
        raise ScanError(f"{path}: a picture in {upright.mode} colors; convert it to gray")
    mode = "I;16" if upright.mode == "I" and upright.format == "PNG" else upright.mode  # Pillow before 11
    pixels = np.asarray(upright)
    if negative and mode not in ("1", "L"):  # those Pillow turns over
        if not mode.startswith("I;16"):
            raise ScanError(f"{path}: a negative (WhiteIsZero) whose white is unknown; save it as BlackIsZero")
        pixels = FULL[mode] - pixels
    return mode, pixels


def _check_stored(path: Path, picture: Any) -> None:
    """Raise ValueError where a file has a row of uncompressed pixels more than its header announces."""
    if picture.format == "BMP" and picture.tile[0][0] == "raw":
        _, _, offset, (_, row, *_) = picture.tile[0]
        found = path.stat().st_size - offset
    elif picture.format == "TIFF" and picture.tag_v2.get(TIFF_COMPRESSION, 1) == 1 and TIFF_STRIPS in picture.tag_v2:
        row = -(-picture.width * sum(picture.tag_v2.get(TIFF_BITS, (1,))) // 8)
        found = sum(picture.tag_v2[TIFF_STRIPS])
    else:
        return
    if found - row * picture.height >= row:
        raise ValueError(f"the header announces {row * picture.height} bytes of pixels, and there are {found}")


def _check_png(content: bytes) -> None:
    """Raise ValueError where the checksums or the number of the pixels are wrong: Pillow looks at neither."""
    at, packed, wanted = 8, [], 0
    while True:
        size, kind = struct.unpack_from(">I4s", content, at)
        body = content[at + 8 : at + 8 + size]
        if zlib.crc32(kind + body) != struct.unpack_from(">I", content, at + 8 + size)[0]:
            raise ValueError(f"wrong checksum of {kind!r}")
        at += size + 12
        if kind == b"IHDR":
            width, height, depth, color, _, _, interlaced = struct.unpack(">2I5B", body)
            for column, row, right, down in ADAM7 if interlaced else ((0, 0, 1, 1),):
                columns, rows = -(-(width - column) // right), -(-(height - row) // down)
                if columns > 0 and rows > 0:
                    wanted += rows * (1 + -(-columns * depth * PNG_CHANNELS[color] // 8))
        elif kind == b"IDAT":
            packed.append(body)
        elif kind == b"IEND":
            break
    unpacker = zlib.decompressobj()
    found = len(unpacker.decompress(b"".join(packed), wanted + 1))
    if found != wanted or not unpacker.eof:
        raise ValueError(f"the header announces {wanted} bytes of pixels, and there are others")


def _about(comments: Sequence[bytes]) -> dict[str, Any]:
    """Subject, plane and position where `extract_slices` wrote them into the header's comment."""
    for comment in comments:
        try:
            noted = json.loads(comment)
        except (ValueError, RecursionError):
            continue
        if isinstance(noted, dict):
            return {key: noted[key] for key in ("subject", "plane", "position_mm") if key in noted}
    return {}
