"""Pad or crop a slice to a size, centred on the brain's box: where the new frame lies, and what it would lose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_vqgen.errors import InputError
from monai_vqgen.transforms.cutting import Extent

__all__ = ["Frame", "apply_frame", "place_frame"]


class Frame(NamedTuple):
    """A new frame over an old one: the first row and column (may be negative) and its size."""

    start: tuple[int, int]
    size: tuple[int, int]


def check_size(size: int | Sequence[int]) -> tuple[int, int]:
    """Return (rows, columns), or raise InputError."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or any(isinstance(n, bool) or int(n) != n or n < 1 for n in pair):
        raise InputError(f"the image size is {size}; give one or two whole numbers of at least 1.")
    return int(pair[0]), int(pair[1])


def place_frame(box: Extent, size: tuple[int, int]) -> Frame:
    """The frame of `size` pixels whose middle is the box's, to the pixel."""
    starts = []
    for (first, last), length in zip(box, size, strict=True):
        # 1e-6: a box half a pixel off must not jump with the last bit of an affine
        starts.append(int(np.floor((first + last) / 2 - (length - 1) / 2 + 0.5 - 1e-6)))
    return Frame((starts[0], starts[1]), size)


def frame_loses(frame: Frame, box: Extent) -> bool:
    """Whether part of the box lies outside the frame (half a pixel of a box between pixels does not count)."""
    return any(
        round(first) < start or round(last) > start + length - 1
        for (first, last), start, length in zip(box, frame.start, frame.size, strict=True)
    )


def trimmed(pixels: NDArray, frame: Frame, threshold: float) -> bool:
    """Whether any pixel outside the frame lies above a threshold: brain that would be lost."""
    outside = np.ones(pixels.shape[-2:], dtype=bool)
    rows, columns = (
        slice(max(0, start), max(0, start + length)) for start, length in zip(frame.start, frame.size, strict=True)
    )
    outside[rows, columns] = False
    return bool((pixels[..., outside] > threshold).any())


def apply_frame(pixels: NDArray, frame: Frame, *, fill: float = 0.0) -> NDArray:
    """The pixels `[..., H, W]` seen through the frame; what lies outside the old image is `fill`."""
    height, width = pixels.shape[-2:]
    (r0, c0), (rows, columns) = frame
    result = np.full((*pixels.shape[:-2], rows, columns), fill, dtype=pixels.dtype)
    top, left = max(0, r0), max(0, c0)
    bottom, right = min(height, r0 + rows), min(width, c0 + columns)
    if bottom > top and right > left:
        result[..., top - r0 : bottom - r0, left - c0 : right - c0] = pixels[..., top:bottom, left:right]
    return result


def inverse_frame(frame: Frame, old_size: tuple[int, int]) -> Frame:
    """The frame that leads back: padding is cropped, what was cropped comes back as fill."""
    return Frame((-frame.start[0], -frame.start[1]), old_size)


def frame_affine(affine: NDArray, frame: Frame) -> NDArray:
    """The affine of the framed image."""
    moved = np.array(affine, dtype=np.float64)
    moved[:3, 3] += moved[:3, :2] @ np.array(frame.start, dtype=np.float64)
    return moved
