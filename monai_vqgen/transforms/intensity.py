"""Intensities from [low, high] to [0, 1] by a window of the whole volume's foreground."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import NdarrayOrTensor
from monai.data.meta_tensor import MetaTensor
from monai.transforms.inverse import InvertibleTransform
from monai.transforms.transform import Transform
from monai.utils.enums import TransformBackends
from numpy.typing import NDArray

from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.transforms.foreground import Background, Window, find_foreground, foreground_window
from monai_vqgen.transforms.tensors import name_of, to_numpy, with_values

__all__ = ["MatchQuantiles", "ScaleForeground", "brain_quantiles", "check_window", "scale_to_window"]

logger = logging.getLogger(__name__)

BRAIN_LEVEL = 0.02  # of the range, below which a pixel is background, as in the metrics

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
    | outside a brain mask, where one is given | 0 |

    Args:
        lower: percentile of the volume's foreground that becomes 0.
        upper: percentile that becomes 1.
        window: (low, high) in the image's units instead of percentiles.

    Shapes: `[C, X, Y, Z]` or `[C, H, W]` to the same, float32 in [0, 1]; affine and meta are kept. The window comes
    from the first channel.

    Raises:
        InputError: percentiles out of order; a slice without a window; a mask of another shape, or of no voxel.

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

    def __call__(self, img: NdarrayOrTensor, mask: NdarrayOrTensor | None = None) -> torch.Tensor:
        """Scale one image; of a volume with a brain mask `[1, X, Y, Z]` the mask's voxels are the foreground."""
        pixels, mask_s = to_numpy(img), None if mask is None else self._checked_mask(mask, img)
        background, window = Background(), self.window or self._stored(img)
        if window is None:
            background, window = self._measured(pixels, img, mask_s)
        if not window.high > window.low:
            logger.warning("%s: the foreground is empty or constant; the scaled image is all zero", name_of(img))
        channels = np.stack([background.hide(channel) for channel in pixels]) if background.inner else pixels
        scaled = scale_to_window(channels, window)
        result = with_values(scaled if mask_s is None else scaled * mask_s, img)
        if isinstance(result, MetaTensor):
            result.meta[META_WINDOW] = (0.0, 1.0)  # scaling twice changes nothing
            if META_THRESHOLD in result.meta and window.high > window.low:
                threshold = (float(result.meta[META_THRESHOLD]) - window.low) / (window.high - window.low)
                result.meta[META_THRESHOLD] = max(0.0, threshold)
        return result

    def _stored(self, img: NdarrayOrTensor) -> Window | None:
        stored: Any = img.meta.get(META_WINDOW) if isinstance(img, MetaTensor) else None
        return Window(float(stored[0]), float(stored[1])) if stored is not None else None

    def _checked_mask(self, mask: NdarrayOrTensor, img: NdarrayOrTensor) -> NDArray:
        shape, wanted = tuple(mask.shape), (1, *img.shape[1:])
        if shape != wanted:
            raise InputError(f"{name_of(img)}: the mask has shape {shape}, and {wanted} is expected; resample it")
        mask_s = to_numpy(mask)[0] > 0
        if not mask_s.any():
            raise InputError(f"{name_of(img)}: the mask marks no voxel; leave it out, or fix it")
        return mask_s

    def _measured(self, pixels: NDArray, img: NdarrayOrTensor, mask_s: NDArray | None) -> tuple[Background, Window]:
        if pixels.ndim != 4:
            raise InputError(
                f"{name_of(img)}: shape {tuple(pixels.shape)} is not a volume and carries no window of one; scale the "
                "volume [C, X, Y, Z] before slicing, extract the slice with ExtractSlice, or give window=(low, high)"
            )
        if 0 in pixels.shape:
            raise ScanError(f"{name_of(img)}: an axis has no voxels (shape {tuple(pixels.shape)})")
        finite = np.nan_to_num(pixels[0], nan=0.0, posinf=0.0, neginf=0.0) if pixels.dtype.kind == "f" else pixels[0]
        found = find_foreground(finite, mask_s=mask_s)
        window = foreground_window(finite, foreground=found, mask_s=mask_s, lower=self.lower, upper=self.upper)
        return found.background, window


def brain_quantiles(pixels: NDArray, count: int = 65) -> NDArray:
    """Intensities that equal shares of the brain (above 2 % of the range) lie below, from the lowest to the highest.

    Raises:
        ScanError: there is no brain.
    """
    brain = np.asarray(pixels)[np.asarray(pixels) > BRAIN_LEVEL]
    if not brain.size:
        raise ScanError("no pixel lies above the background: there are no intensities to match")
    return np.quantile(brain, np.linspace(0, 1, count))


class MatchQuantiles(InvertibleTransform):
    """Map the intensities of a scan in [0, 1] so that its brain has the quantiles of the training data.

    Landmark matching (Nyul et al., IEEE TMI 2000) with all quantiles as landmarks, linear in between: monotonic, and
    undone by `inverse` (but where the scan has one intensity for several of the reference's). Give whole volumes: the
    quantiles of a slice are those of its anatomy.

    Args:
        quantiles: of the training data, ascending, as `brain_quantiles` gives them, at least two.

    Shapes: any; float32 in [0, 1] to the same. Background (below 2 % of the range) stays as it is.

    Raises:
        InputError: quantiles that do not ascend.
        ScanError: an image without brain.

    Examples:
        >>> image = torch.linspace(0.1, 0.5, 101).reshape(1, 101, 1)
        >>> matched = MatchQuantiles([0.2, 0.6, 1.0])(image)
        >>> round(float(matched.min()), 3), round(float(matched.median()), 3), round(float(matched.max()), 3)
        (0.2, 0.6, 1.0)
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]  # noqa: RUF012 (MONAI's own convention)

    def __init__(self, quantiles: Sequence[float] | NDArray) -> None:
        self.quantiles = np.asarray(quantiles, dtype=np.float64)
        if self.quantiles.ndim != 1 or len(self.quantiles) < 2 or not (np.diff(self.quantiles) >= 0).all():
            raise InputError(f"quantiles are {quantiles!r}; give at least two ascending intensities in [0, 1]")

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        """Match one image."""
        pixels = to_numpy(img).astype(np.float64)
        own = brain_quantiles(pixels, len(self.quantiles))
        result = with_values(_mapped(pixels, own, self.quantiles), img)
        if isinstance(result, MetaTensor):
            self.push_transform(result, extra_info={"own": own.tolist()})
        return result

    def inverse(self, data: MetaTensor) -> torch.Tensor:
        """The image in its own intensities."""
        own = np.asarray(self.pop_transform(data)["extra_info"]["own"])
        return with_values(_mapped(to_numpy(data).astype(np.float64), self.quantiles, own), data)


def _mapped(pixels: NDArray, old: NDArray, new: NDArray) -> NDArray:
    """Piecewise linear from old to new landmarks; the background stays."""
    old = np.maximum.accumulate(old + np.arange(len(old)) * 1e-9)  # np.interp wants them to ascend
    return np.where(pixels > BRAIN_LEVEL, np.interp(pixels, old, new), pixels).astype(np.float32)
