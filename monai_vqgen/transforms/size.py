"""Slices of one size: padded or cropped around the brain, never trimming it silently, and back again.

    box --place_frame--> Frame --frame_loses, trimmed--> error or warning --apply_frame, frame_affine--> slice

Frames work on any number of spatial axes (the last ones of an array).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config.type_definitions import NdarrayOrTensor
from monai.data.meta_tensor import MetaTensor
from monai.transforms.inverse import InvertibleTransform
from monai.utils.enums import TraceKeys, TransformBackends
from numpy.typing import NDArray

from monai_vqgen.errors import InputError
from monai_vqgen.transforms.foreground import Background, find_background
from monai_vqgen.transforms.tensors import name_of, to_numpy
from monai_vqgen.transforms.volume_slicing import Extent

__all__ = ["FitToSize", "Frame", "apply_frame", "check_size", "frame_affine", "frame_loses", "place_frame", "trimmed"]

logger = logging.getLogger(__name__)

META_BOX = "foreground_box"


class Frame(NamedTuple):
    """A new frame over an old image: its first pixel along each axis (may be negative) and its size."""

    start: tuple[int, ...]
    size: tuple[int, ...]


def check_size(size: int | Sequence[int], *, axes: int = 2) -> tuple[int, ...]:
    """Return (rows, columns), or the size of a volume's three axes, or raise InputError."""
    sizes = (size,) * axes if isinstance(size, int) else tuple(size)
    if len(sizes) != axes or any(isinstance(n, bool) or int(n) != n or n < 1 for n in sizes):
        count = "two" if axes == 2 else "three"
        raise InputError(f"the image size is {size}; give one or {count} whole numbers of at least 1")
    return tuple(map(int, sizes))


def place_frame(box: Extent, size: Sequence[int]) -> Frame:
    """The frame of `size` pixels with the box's center, to the pixel."""
    # 1e-6: a box half a pixel off must not jump with the last bit of an affine
    starts = [
        int(np.floor((first + last) / 2 - (length - 1) / 2 + 0.5 - 1e-6))
        for (first, last), length in zip(box, size, strict=True)
    ]
    return Frame(tuple(starts), tuple(size))


def frame_loses(frame: Frame, box: Extent) -> bool:
    """Whether part of the box lies outside the frame (half a pixel of a box between pixels does not count)."""
    return any(
        round(first) < start or round(last) > start + length - 1
        for (first, last), start, length in zip(box, frame.start, frame.size, strict=True)
    )


def trimmed(pixels: NDArray, frame: Frame, threshold: float) -> bool:
    """Whether any pixel outside the frame lies above a threshold, so that brain would be lost."""
    outside = np.ones(pixels.shape[-len(frame.size) :], dtype=bool)
    outside[tuple(slice(max(0, a), max(0, a + n)) for a, n in zip(frame.start, frame.size, strict=True))] = False
    return bool((pixels[..., outside] > threshold).any())


def apply_frame(pixels: NDArray, frame: Frame, *, fill: float = 0.0) -> NDArray:
    """The pixels `[..., *s]` inside the frame, `[..., *frame.size]`; what lies outside the old image is `fill`."""
    axes = len(frame.size)
    result = np.full((*pixels.shape[:-axes], *frame.size), fill, dtype=pixels.dtype)
    spans = [
        (max(0, start), min(old, start + new))
        for start, new, old in zip(frame.start, frame.size, pixels.shape[-axes:], strict=True)
    ]
    if all(last > first for first, last in spans):
        target = tuple(slice(a - start, b - start) for (a, b), start in zip(spans, frame.start, strict=True))
        into: tuple[Any, ...] = (Ellipsis, *target)
        source: tuple[Any, ...] = (Ellipsis, *(slice(*span) for span in spans))
        result[into] = pixels[source]
    return result


def frame_affine(affine: NDArray, frame: Frame) -> NDArray:
    """The affine of the framed image."""
    moved = np.array(affine, dtype=np.float64)
    moved[:3, 3] += moved[:3, : len(frame.start)] @ np.array(frame.start, dtype=np.float64)
    return moved


class FitToSize(InvertibleTransform):
    """Pad or crop a slice, or a volume, to a size, centered on the brain's box.

    The box is the *volume's* where `ExtractSlice` left it in the meta (so the slices of one volume stay aligned), else
    the extent of the slice's own foreground (above 2 % of its 99.5th percentile). Without the volume's box, a slice
    that already has the size is not moved: a box of its own would shift it against its neighbors.

    Args:
        size: rows and columns, or one number for both; three numbers for volumes.
        on_trim: when brain would be cut away: "error" raises, "warn" crops and logs.
        fill: value of the padding.

    Shapes: `[C, H, W]` or `[C, X, Y, Z]` to `[C, *size]`; dtype, meta and trace are kept, the affine moves along.
    `inverse` restores the old size and affine: padding is removed, and what was cropped comes back as `fill`.

    Raises:
        InputError: the brain does not fit (with "error"), an invalid size, or an image of other axes.

    Examples:
        >>> fit = FitToSize(8)
        >>> image = MetaTensor(torch.ones(1, 5, 4))
        >>> tuple(fit(image).shape), tuple(fit.inverse(fit(image)).shape)
        ((1, 8, 8), (1, 5, 4))
    """

    backend = [TransformBackends.NUMPY]  # noqa: RUF012 (MONAI's own convention)

    def __init__(self, size: int | Sequence[int], *, on_trim: str = "error", fill: float = 0.0) -> None:
        check_on_trim(on_trim)
        axes = 3 if isinstance(size, Sequence) and len(size) == 3 else 2
        self.size, self.on_trim, self.fill = check_size(size, axes=axes), on_trim, fill

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        """Fit one slice."""
        pixels = to_numpy(img)
        if pixels.ndim != len(self.size) + 1 or 0 in pixels.shape:
            wanted = "a slice [C, H, W]" if len(self.size) == 2 else "a volume [C, X, Y, Z]"
            raise InputError(f"{name_of(img)}: shape {tuple(pixels.shape)}; expected {wanted}")
        meta = img.meta if isinstance(img, MetaTensor) else {}
        stored = meta.get("foreground_threshold")
        background = (
            Background(0.0, float(stored)) if stored is not None else find_background(pixels, axes=len(self.size))
        )
        volume_box = _as_extent(meta[META_BOX]) if meta.get(META_BOX) is not None else None
        box = volume_box or _own_box(background.foreground(pixels))
        stays = volume_box is None and pixels.shape[1:] == self.size
        frame = Frame((0,) * len(self.size), self.size) if stays else place_frame(box, self.size)
        if frame_loses(frame, box) and trimmed(background.hide(pixels), frame, background.threshold):
            self._report_trim(img, box)
        result = torch.from_numpy(apply_frame(pixels, frame, fill=self.fill))
        if not isinstance(img, MetaTensor):
            return result.to(img.device) if isinstance(img, torch.Tensor) else result
        framed = _moved(img, result, frame)
        self.push_transform(framed, orig_size=pixels.shape[1:], extra_info={"start": list(frame.start)})
        return framed

    def _report_trim(self, img: NdarrayOrTensor, box: Extent) -> None:
        extent = " x ".join(str(int(np.ceil(last - first)) + 1) for first, last in box)
        message = (
            f"{name_of(img)}: the brain takes {extent} pixels and does not fit into "
            f"{' x '.join(map(str, self.size))}; give a larger size or pixel size, or on_trim='warn' to crop it"
        )
        if self.on_trim == "error":
            raise InputError(message)
        logger.warning("cropped: %s", message)

    def inverse(self, data: MetaTensor) -> MetaTensor:
        """Undo one fit: restore the old size and affine."""
        record = self.pop_transform(data)
        start = [-int(n) for n in record[TraceKeys.EXTRA_INFO]["start"]]
        frame = Frame(tuple(start), tuple(int(n) for n in record[TraceKeys.ORIG_SIZE]))
        return _moved(data, torch.from_numpy(apply_frame(to_numpy(data), frame, fill=self.fill)), frame)


def check_on_trim(on_trim: str) -> None:
    """Raise InputError for an unknown way to treat a brain that does not fit."""
    if on_trim not in ("error", "warn"):
        raise InputError(f"on_trim is {on_trim!r}; choose 'error' or 'warn'")


def _as_extent(stored: Sequence[Sequence[float]]) -> Extent:
    return tuple((float(first), float(last)) for first, last in stored)


def _own_box(foreground: NDArray) -> Extent:
    """The extent of a slice's foreground along each axis; all of an empty slice."""
    above = foreground.any(axis=0)
    if not above.any():
        return tuple((0.0, size - 1.0) for size in above.shape)
    return tuple((float(places.min()), float(places.max())) for places in np.nonzero(above))


def _moved(img: MetaTensor, pixels: torch.Tensor, frame: Frame) -> MetaTensor:
    """The pixels with the image's meta; affine and box are those of the frame."""
    result = MetaTensor(pixels.to(img.device))
    result.copy_meta_from(img)
    if tuple(img.affine.shape) == (4, 4):
        result.affine = torch.as_tensor(frame_affine(np.asarray(img.affine.cpu()), frame))
    if img.meta.get(META_BOX) is not None:
        box = _as_extent(img.meta[META_BOX])
        result.meta[META_BOX] = tuple((a - n, b - n) for (a, b), n in zip(box, frame.start, strict=True))
    return result
