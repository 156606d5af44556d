"""What is looked at to find lesions: bits of the priors, the residual, intensities, detail, restorations.

Shape legend: b batch, h w rows and columns, n signals.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from monai_vqgen.anomaly.maps import check_images, nll_maps, restore, unlikely_codes
from monai_vqgen.errors import InputError
from monai_vqgen.transforms.intensity import BRAIN_LEVEL

__all__ = ["Signals", "anomaly_signals"]

SMOOTHING = 2.5  # pixels, sigma; of 1.5 and 2.5 the better on validation subjects
DETAIL_SIGMA = 1.5  # pixels; what a Gaussian of this size takes away is detail
LEAST_DIFFERENCE = 0.01  # of the range, below which differences are noise; keeps logarithms finite


class Signals(NamedTuple):
    """Maps of one batch.

    Attributes:
        names: of the signals.
        values_bnhw: float32, smoothed within the brain, 0 far from it.
        brain_bhw: where the slice is brain.
    """

    names: tuple[str, ...]
    values_bnhw: NDArray
    brain_bhw: NDArray


def smooth_within(maps_bhw: NDArray, brain_bhw: NDArray, sigma: float = SMOOTHING) -> NDArray:
    """Mean of the brain's pixels around each, by a Gaussian; 0 where none is near."""
    widths = (0, sigma, sigma)
    weight_bhw = ndimage.gaussian_filter(brain_bhw.astype(np.float32), widths)
    total_bhw = ndimage.gaussian_filter((maps_bhw * brain_bhw).astype(np.float32), widths)
    smooth: NDArray = total_bhw / np.maximum(weight_bhw, 1e-3)
    return smooth


def image_signals(images_bhw: NDArray) -> dict[str, NDArray]:
    """What needs no model: intensity, and the logarithm of the detail that a Gaussian takes away."""
    widths = (0, DETAIL_SIGMA, DETAIL_SIGMA)
    detail_bhw = np.abs(images_bhw - ndimage.gaussian_filter(images_bhw, widths))
    return {"intensity": images_bhw, "detail": np.log(detail_bhw + LEAST_DIFFERENCE)}


def anomaly_signals(
    model: Any,
    images: Tensor,
    *,
    condition: Tensor | None = None,
    draws: int = 0,
    seed: int = 0,
    first_slice: int = 0,
) -> Signals:
    """All signals of slices, smoothed.

    | signal | what |
    |---|---|
    | `bits_0`, `bits_1` ... | bits of each level, mean with the mirrored slice's (`nll_maps`) |
    | `residual` | logarithm of the distance to the reconstruction |
    | `intensity`, `detail` | the slice itself, and the logarithm of what a Gaussian of 1.5 pixels takes from it |
    | `restoration` | mean distance of the reconstruction to restorations of its unlikely codes; with `draws` |

    Args:
        model: a `TrainedModel` of slices of one channel, with priors.
        images: `(b, 1, h, w)` in [0, 1].
        condition: features `(b, f)` or None.
        draws: restorations a slice; 0 leaves the signal out, and saves most of the time.
        seed: of the restorations.
        first_slice: number of the first slice, which decides the draws with the seed.

    Raises:
        InputError: images of another size or of several channels.
        CheckpointError: the model has no priors.
    """
    if model.autoencoder.spatial_dims != 2 or model.autoencoder.in_channels != 1:
        raise InputError("anomaly maps are for models of slices of one channel: use nll_maps and restore")
    bits = nll_maps(model, images, condition=condition)
    images_bcs = check_images(model, images)
    codes, plain_bhw = model.encode(images_bcs), np.asarray(images_bcs[:, 0].cpu(), dtype=np.float32)
    size = tuple(images_bcs.shape[2:])
    read_bhw = model.decode(codes, size)[:, 0].cpu()
    maps = {f"bits_{level}": map_bhw.numpy() for level, map_bhw in enumerate(bits)}
    maps["residual"] = np.log(np.abs(plain_bhw - read_bhw.numpy()) + LEAST_DIFFERENCE)
    maps |= image_signals(plain_bhw)
    if draws:
        masks = unlikely_codes(model, codes, condition=condition)
        random: dict[str, int] = {"draws": draws, "seed": seed, "first_slice": first_slice}
        drawn_bdchw = restore(model, codes, masks, image_size=size, condition=condition, **random)
        maps["restoration"] = torch.abs(drawn_bdchw[:, :, 0] - read_bhw[:, None]).mean(1).numpy()
    return smoothed(maps, plain_bhw)


def smoothed(maps: dict[str, NDArray], images_bhw: NDArray) -> Signals:
    """The maps, smoothed within the brain of their slices."""
    brain_bhw = images_bhw > BRAIN_LEVEL
    return Signals(
        tuple(maps), np.stack([smooth_within(map_bhw, brain_bhw) for map_bhw in maps.values()], 1), brain_bhw
    )
