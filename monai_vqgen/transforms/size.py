"""Slices of one size: padded or cropped around the brain, never trimming it silently, and back again."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from monai.config.type_definitions import NdarrayOrTensor
from monai.data.meta_tensor import MetaTensor
from monai.transforms.inverse import InvertibleTransform
from monai.utils.enums import TraceKeys, TransformBackends
from numpy.typing import NDArray

from monai_vqgen.errors import InputError
from monai_vqgen.transforms.fitting import (
    Extent,
    Frame,
    apply_frame,
    check_size,
    frame_affine,
    frame_loses,
    inverse_frame,
    place_frame,
    trimmed,
)
from monai_vqgen.transforms.foreground import foreground_threshold
from monai_vqgen.transforms.tensors import name_of, to_numpy

__all__ = ["FitToSize"]

logger = logging.getLogger(__name__)

META_BOX = "foreground_box"


class FitToSize(InvertibleTransform):
    """Pad or crop a slice to a size, centred on the brain's box.

    The box is the *volume's* where `ExtractSlice` left it in the meta (so the slices of one volume stay aligned), else
    the extent of the slice's own foreground (above 2 % of its 99.5th percentile). Without the volume's box, a slice
    that has the size already stays where it is: moved by a box of its own, it would no longer lie as its neighbours.

    Args:
        size: rows and columns, or one number for both.
        on_trim: when brain would be cut away: "error" raises, "warn" crops and logs.
        fill: value of the padding.

    Shapes: `[C, H, W]` to `[C, *size]`; dtype, meta and trace are kept, the affine moves along. `inverse`
    gives back the old size and affine: padding goes, and what was cropped comes back as `fill`.

    Raises:
        InputError: the brain does not fit (with "error"), a size that is none, an image that is not `[C, H, W]`.

    Example:
        >>> fit = FitToSize(8)
        >>> image = MetaTensor(torch.ones(1, 5, 4))
        >>> tuple(fit(image).shape), tuple(fit.inverse(fit(image)).shape)
        ((1, 8, 8), (1, 5, 4))
    """

    backend = [TransformBackends.NUMPY]  # noqa: RUF012 (MONAI's own convention)

    def __init__(self, size: int | Sequence[int], *, on_trim: str = "error", fill: float = 0.0) -> None:
        if on_trim not in ("error", "warn"):
            raise InputError(f"on_trim is {on_trim!r}; choose 'error' or 'warn'.")
        self.size, self.on_trim, self.fill = check_size(size), on_trim, fill

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        """Fit one slice."""
        pixels = to_numpy(img)
        if pixels.ndim != 3 or 0 in pixels.shape:
            raise InputError(f"{name_of(img)}: shape {tuple(pixels.shape)}; a slice [C, H, W] is due.")
        threshold = self._threshold(pixels, img)
        box = self._box(pixels, img, threshold)
        frame = Frame((0, 0), self.size) if self._keeps(pixels, img) else place_frame(box, self.size)
        if frame_loses(frame, box) and trimmed(pixels, frame, threshold):
            self._report_trim(img, box)
        return self._framed(img, pixels, frame, box)

    def _keeps(self, pixels: NDArray, img: NdarrayOrTensor) -> bool:
        return pixels.shape[1:] == self.size and not (isinstance(img, MetaTensor) and META_BOX in img.meta)

    def _threshold(self, pixels: NDArray, img: NdarrayOrTensor) -> float:
        stored = img.meta.get("foreground_threshold") if isinstance(img, MetaTensor) else None
        return float(stored) if stored is not None else foreground_threshold(pixels)

    def _box(self, pixels: NDArray, img: NdarrayOrTensor, threshold: float) -> Extent:
        stored = img.meta.get(META_BOX) if isinstance(img, MetaTensor) else None
        if stored is not None:
            (r0, r1), (c0, c1) = np.asarray(stored, dtype=float).tolist()
            return (r0, r1), (c0, c1)
        above = np.any(np.greater(pixels, threshold), axis=0)
        if not above.any():
            return (0.0, pixels.shape[1] - 1.0), (0.0, pixels.shape[2] - 1.0)
        rows, columns = np.flatnonzero(above.any(axis=1)), np.flatnonzero(above.any(axis=0))
        return (float(rows[0]), float(rows[-1])), (float(columns[0]), float(columns[-1]))

    def _report_trim(self, img: NdarrayOrTensor, box: Extent) -> None:
        rows, columns = (int(np.ceil(last - first)) + 1 for first, last in box)
        message = (
            f"{name_of(img)}: the brain takes {rows} x {columns} pixels and does not fit into "
            f"{self.size[0]} x {self.size[1]}; take a larger size or pixel size, or on_trim='warn' to crop it."
        )
        if self.on_trim == "error":
            raise InputError(message)
        logger.warning("%s Cropped.", message)

    def _framed(self, img: NdarrayOrTensor, pixels: NDArray, frame: Frame, box: Extent) -> torch.Tensor:
        result = torch.from_numpy(apply_frame(pixels, frame, fill=self.fill))
        if not isinstance(img, MetaTensor):
            return result.to(img.device) if isinstance(img, torch.Tensor) else result
        framed = _moved(img, result, frame)
        if META_BOX in img.meta:
            (r0, r1), (c0, c1) = box
            framed.meta[META_BOX] = (
                (r0 - frame.start[0], r1 - frame.start[0]),
                (c0 - frame.start[1], c1 - frame.start[1]),
            )
        old_size = (int(pixels.shape[1]), int(pixels.shape[2]))
        self.push_transform(framed, orig_size=old_size, extra_info={"start": list(frame.start)})
        return framed

    def inverse(self, data: MetaTensor) -> MetaTensor:
        """Undo one fit: the old size, the old affine."""
        record = self.pop_transform(data)
        start = record[TraceKeys.EXTRA_INFO]["start"]
        old_size = tuple(int(n) for n in record[TraceKeys.ORIG_SIZE])
        frame = inverse_frame(Frame((int(start[0]), int(start[1])), self.size), (old_size[0], old_size[1]))
        restored = _moved(data, torch.from_numpy(apply_frame(to_numpy(data), frame, fill=self.fill)), frame)
        if META_BOX in data.meta:
            (r0, r1), (c0, c1) = np.asarray(data.meta[META_BOX], dtype=float).tolist()
            dr, dc = int(start[0]), int(start[1])
            restored.meta[META_BOX] = ((r0 + dr, r1 + dr), (c0 + dc, c1 + dc))
        return restored


def _moved(img: MetaTensor, pixels: torch.Tensor, frame: Frame) -> MetaTensor:
    result = MetaTensor(pixels.to(img.device))
    result.copy_meta_from(img)
    if tuple(img.affine.shape) == (4, 4):
        result.affine = torch.as_tensor(frame_affine(np.asarray(img.affine.cpu()), frame))
    return result
