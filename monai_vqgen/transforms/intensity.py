"""Intensities from [low, high] to [0, 1] by a window of the whole volume's foreground."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import NdarrayOrTensor
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import Transform
from monai.utils.enums import TransformBackends
from numpy.typing import NDArray

from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.transforms.foreground import Background, Window, find_foreground, foreground_window
from monai_vqgen.transforms.tensors import name_of, to_numpy, with_values

__all__ = ["ScaleForeground", "check_window", "scale_to_window"]

logger = logging.getLogger(__name__)

META_WINDOW = "foreground_window"
META_THRESHOLD = "foreground_threshold"


def scale_to_window(pixels: NDArray, window: Window) -> NDArray:
    """Map the window to [0, 1] and clip, in float32. A window without width gives zeros; NaN gives 0."""
    if not window.high > window.low:
        return np.zeros(pixels.shape, dtype=np.float32)
    scaled = np.asarray(pixels, dtype=np.float32) - np.float32(window.low)
    scaled *= np.float32(1 / (window.high - window.low))
    np.clip(scaled, 0, 1, out=scaled)  # clip keeps NaN
    return np.nan_to_num(scaled, copy=False, nan=0.0)


def check_window(window: Any) -> None:
    """Refuse what is no window; None is as good as one.

    Raises:
        InputError: not two finite numbers, the lower one first.
    """
    try:
        if window is None or (len(window) == 2 and -math.inf < float(window[0]) < float(window[1]) < math.inf):
            return
    except (TypeError, ValueError):
        pass
    raise InputError(f"window is {window!r}; expected (low, high) with low < high, such as (-100, 300) in CT")


class ScaleForeground(Transform):
    """Scale a volume, or a slice cut from one, to [0, 1] by robust percentiles of the volume's foreground.

    One hot voxel does not set the contrast, and all slices of a volume share one scale: a slice takes the window that
    `ExtractSlice` found on its volume (`meta["foreground_window"]`); percentiles of a single slice are never taken.

    | input | result |
    |---|---|
    | constant or empty foreground | zeros, with a logged warning |
    | NaN | 0 |
    | below, above the window | 0, 1 |

    Args:
        lower: percentile of the volume's foreground that becomes 0.
        upper: percentile that becomes 1.
        window: (low, high) in the image's units instead of percentiles.

    Shapes: `[C, X, Y, Z]` or `[C, H, W]` to the same, float32 in [0, 1]; affine and meta are kept. The window comes
    from the first channel.

    Raises:
        InputError: percentiles out of order; a slice without a window.

    Examples:
        >>> scaled = ScaleForeground()(torch.arange(1000.0).reshape(1, 10, 10, 10))
        >>> float(scaled.min()), float(scaled.max())
        (0.0, 1.0)
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]  # noqa: RUF012 (MONAI's own convention)

    def __init__(self, lower: float = 0.5, upper: float = 99.5, *, window: tuple[float, float] | None = None) -> None:
        if not 0 <= lower < upper <= 100:
            raise InputError(f"percentiles are {lower} and {upper}; expected 0 <= lower < upper <= 100")
        check_window(window)
        self.lower, self.upper = lower, upper
        self.window = Window(float(window[0]), float(window[1])) if window is not None else None

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        """Scale one image."""
        pixels = to_numpy(img)
        background, window = Background(), self.window or self._stored(img)
        if window is None:
            background, window = self._measured(pixels, img)
        if not window.high > window.low:
            logger.warning("%s: the foreground is empty or constant; the scaled image is all zero", name_of(img))
        channels = np.stack([background.hide(channel) for channel in pixels]) if background.inner else pixels
        result = with_values(scale_to_window(channels, window), img)
        if isinstance(result, MetaTensor):
            result.meta[META_WINDOW] = (0.0, 1.0)  # scaling twice changes nothing
            if META_THRESHOLD in result.meta and window.high > window.low:
                threshold = (float(result.meta[META_THRESHOLD]) - window.low) / (window.high - window.low)
                result.meta[META_THRESHOLD] = max(0.0, threshold)
        return result

    def _stored(self, img: NdarrayOrTensor) -> Window | None:
        stored: Any = img.meta.get(META_WINDOW) if isinstance(img, MetaTensor) else None
        return Window(float(stored[0]), float(stored[1])) if stored is not None else None

    def _measured(self, pixels: NDArray, img: NdarrayOrTensor) -> tuple[Background, Window]:
        if pixels.ndim != 4:
            raise InputError(
                f"{name_of(img)}: shape {tuple(pixels.shape)} is not a volume and carries no window of one; scale the "
                "volume [C, X, Y, Z] before slicing, extract the slice with ExtractSlice, or give window=(low, high)"
            )
        if 0 in pixels.shape:
            raise ScanError(f"{name_of(img)}: an axis has no voxels (shape {tuple(pixels.shape)})")
        finite = np.nan_to_num(pixels[0], nan=0.0, posinf=0.0, neginf=0.0) if pixels.dtype.kind == "f" else pixels[0]
        found = find_foreground(finite)
        return found.background, foreground_window(finite, foreground=found, lower=self.lower, upper=self.upper)
