"""How near a reconstruction is to its original: SSIM, MS-SSIM, PSNR and MAE, over the image and over the brain.

Shape legend: b batch, c channels, s spatial axes (2 or 3), k scales.

One protocol, stated once and used everywhere: images in [0, 1] (data range 1); SSIM with an 11-wide Gaussian window of
sigma 1.5 and biased (co)variances; the brain is the original's foreground, the pixels above 2 % of the range. Beside a
model's scores belong those of an all-black image and of the mean training image: brain slices are half black, and black
alone reaches an SSIM above 0.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from monai.metrics.regression import RegressionMetric, compute_ms_ssim, compute_ssim_and_cs
from torch import Tensor

from monai_vqgen.errors import InputError

DATA_RANGE = 1.0  # of a normalized slice
WINDOW = 11  # pixels; Wang et al. 2004, section III.C
WINDOW_SIGMA = 1.5  # pixels; same source
FOREGROUND_LEVEL = 0.02  # share of the data range above which a pixel of the original counts as brain
PSNR_CEILING = 100.0  # dB reported for identical images, where the definition gives infinity
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Simoncelli and Bovik 2003, finest scale first


class ReconstructionScores(NamedTuple):
    """Scores of a batch, one value an image: tensors of shape (b,). `brain` is NaN where an original has no foreground.

    Units: psnr in dB (100 at most), mae in the image's range [0, 1]; SSIM and MS-SSIM at most 1, 1 for an exact copy.
    """

    ssim: Tensor
    ssim_brain: Tensor
    ms_ssim: Tensor
    ms_ssim_brain: Tensor
    psnr: Tensor
    psnr_brain: Tensor
    mae: Tensor
    mae_brain: Tensor


def foreground_mask(original_bcs: Tensor) -> Tensor:
    """True where a normalized original is brain: above 2 % of the data range."""
    return original_bcs > FOREGROUND_LEVEL * DATA_RANGE


def _checked(images_bcs: Tensor, original_bcs: Tensor) -> tuple[Tensor, Tensor]:
    if images_bcs.shape != original_bcs.shape or images_bcs.ndim not in (4, 5):
        raise InputError(
            f"images of shape {tuple(images_bcs.shape)} cannot be compared with originals of shape "
            f"{tuple(original_bcs.shape)}: give both as (batch, channels, H, W) or (batch, channels, H, W, D)"
        )
    if min(images_bcs.shape[2:]) < WINDOW:
        raise InputError(
            f"SSIM's window is {WINDOW} pixels wide, the images have {tuple(images_bcs.shape[2:])}: "
            f"use images of at least {WINDOW} pixels a side"
        )
    # as_tensor would keep a MetaTensor, whose bookkeeping costs more than the arithmetic
    plain = [x.as_tensor() if hasattr(x, "as_tensor") else x for x in (images_bcs, original_bcs)]
    return plain[0].detach().float(), plain[1].detach().float()


def _pad_symmetric(images_bcs: Tensor, width: int) -> Tensor:
    """Mirror the border, edge pixel included (scipy's and scikit-image's "reflect", which torch does not have)."""
    for axis in range(2, images_bcs.ndim):
        index = np.pad(np.arange(images_bcs.shape[axis]), width, mode="symmetric")
        images_bcs = images_bcs.index_select(axis, torch.as_tensor(index, device=images_bcs.device))
    return images_bcs


def _ssim_and_contrast_maps(images_bcs: Tensor, original_bcs: Tensor) -> tuple[Tensor, Tensor]:
    spatial_dims, half = images_bcs.ndim - 2, WINDOW // 2
    return compute_ssim_and_cs(
        _pad_symmetric(images_bcs, half),
        _pad_symmetric(original_bcs, half),
        spatial_dims=spatial_dims,
        kernel_size=(WINDOW,) * spatial_dims,
        kernel_sigma=(WINDOW_SIGMA,) * spatial_dims,
        data_range=DATA_RANGE,
    )


def ssim_map(images_bcs: Tensor, original_bcs: Tensor) -> Tensor:
    """The structural similarity at every pixel, same shape as the images (Wang et al. 2004, equation 13).

    Equal to scikit-image's `structural_similarity(..., full=True, gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=1)`; the mean over the image leaves out the 5 border pixels, as there.

    Args:
        images_bcs: images in [0, 1], (batch, channels, H, W) or (batch, channels, H, W, D).
        original_bcs: what they should be, same shape.

    Raises:
        InputError: the shapes differ, or a side is shorter than the window.

    Examples:
        >>> x = torch.rand(2, 1, 16, 16)
        >>> ssim_map(x, x).shape, ssim_map(x, x).mean().item()
        (torch.Size([2, 1, 16, 16]), 1.0)
    """
    return _ssim_and_contrast_maps(*_checked(images_bcs, original_bcs))[0]


def _masked_mean(map_bcs: Tensor, weight_bcs: Tensor) -> Tensor:
    """Weighted mean of each image; NaN where the weights are all zero."""
    return (map_bcs * weight_bcs).flatten(1).sum(1) / weight_bcs.flatten(1).sum(1)


def _psnr(mse_b: Tensor) -> Tensor:
    return (10 * torch.log10(DATA_RANGE**2 / mse_b)).clamp(max=PSNR_CEILING)


def ms_ssim_weights(image_size: Sequence[int]) -> tuple[float, ...]:
    """Weights of as many scales as the image has room for, finest first, adding to one.

    The published five need 176 pixels a side; 99 to 175 pixels carry four, 44 to 98 three, 22 to 43 two.
    """
    shortest = min(image_size)

    def fits(scales: int) -> bool:
        # the second is MONAI's own rule, the first keeps its window inside the coarsest image
        return shortest // 2 ** (scales - 1) >= WINDOW and shortest // (scales - 1) ** 2 >= WINDOW

    kept = MS_SSIM_WEIGHTS[: next((n for n in range(len(MS_SSIM_WEIGHTS), 1, -1) if fits(n)), 1)]
    return tuple(w / sum(kept) for w in kept)


def _ms_ssim_brain(images_bcs: Tensor, original_bcs: Tensor, weights: Sequence[float]) -> Tensor:
    """MS-SSIM with every scale's map averaged over the brain, which is halved along with the image."""
    pool = F.avg_pool2d if images_bcs.ndim == 4 else F.avg_pool3d
    mask_bcs = foreground_mask(original_bcs).float()
    product_b = torch.ones(len(images_bcs), device=images_bcs.device)
    for scale, weight in enumerate(weights):
        ssim_bcs, contrast_bcs = _ssim_and_contrast_maps(images_bcs, original_bcs)
        last = scale == len(weights) - 1
        product_b = product_b * _masked_mean(ssim_bcs if last else contrast_bcs, mask_bcs).relu() ** weight
        images_bcs, original_bcs, mask_bcs = pool(images_bcs, 2), pool(original_bcs, 2), pool(mask_bcs, 2)
    return product_b


def reconstruction_scores(images_bcs: Tensor, original_bcs: Tensor) -> ReconstructionScores:
    """All scores of a batch of images against their originals, one value an image.

    Args:
        images_bcs: reconstructions in [0, 1], (batch, channels, H, W) or with a third axis; values outside are not
            clipped. Channels count alike.
        original_bcs: the originals, same shape; their foreground is what `brain` means.

    Raises:
        InputError: the shapes differ, or a side is shorter than SSIM's window.

    Examples:
        >>> x = torch.rand(2, 1, 64, 64)
        >>> reconstruction_scores(torch.zeros_like(x), x).ssim.mean().item() < 0.1
        True
    """
    images_bcs, original_bcs = _checked(images_bcs, original_bcs)
    mask_bcs = foreground_mask(original_bcs).float()
    error_bcs = images_bcs - original_bcs
    map_bcs = _ssim_and_contrast_maps(images_bcs, original_bcs)[0]
    weights = ms_ssim_weights(images_bcs.shape[2:])
    border = (-(WINDOW // 2),) * (2 * images_bcs.ndim - 4)
    return ReconstructionScores(
        ssim=F.pad(map_bcs, border).flatten(1).mean(1),
        ssim_brain=_masked_mean(map_bcs, mask_bcs),
        ms_ssim=compute_ms_ssim(images_bcs, original_bcs, images_bcs.ndim - 2, weights=weights)[:, 0],
        ms_ssim_brain=_ms_ssim_brain(images_bcs, original_bcs, weights),
        psnr=_psnr((error_bcs**2).flatten(1).mean(1)),
        psnr_brain=_psnr(_masked_mean(error_bcs**2, mask_bcs)),
        mae=error_bcs.abs().flatten(1).mean(1),
        mae_brain=_masked_mean(error_bcs.abs(), mask_bcs),
    )


def mean_scores(batches: Sequence[ReconstructionScores]) -> dict[str, float]:
    """Mean of every score over all images of all batches; images without foreground do not count for the brain.

    Raises:
        InputError: no batch was given.
    """
    if not batches:
        raise InputError("no images to average over: the data set is empty")
    joined = (torch.cat([getattr(batch, name) for batch in batches]) for name in ReconstructionScores._fields)
    return {name: float(scores.nanmean()) for name, scores in zip(ReconstructionScores._fields, joined, strict=True)}


class BaselineScores(NamedTuple):
    """Mean scores, by name, of the two images that know nothing of the original."""

    all_black: dict[str, float]
    mean_image: dict[str, float]


def mean_image(batches_bcs: Iterable[Tensor]) -> Tensor:
    """Mean over all images of all batches, (1, ...), summed in float64 so that the order does not matter.

    Raises:
        InputError: there is no image.
    """
    total, count = None, 0
    for images_bcs in batches_bcs:
        batch_sum = torch.as_tensor(images_bcs).double().sum(0)
        total = batch_sum if total is None else total + batch_sum
        count += len(images_bcs)
    if total is None or count == 0:
        raise InputError("no training images to take the mean of: the training split is empty")
    return (total / count).float()


def baseline_scores(originals: Iterable[Tensor], mean_cs: Tensor) -> BaselineScores:
    """Scores of the two baselines against batches of originals.

    Args:
        originals: batches (batch, 1, ...) in [0, 1].
        mean_cs: the mean *training* image, (1, ...), of the same size.

    Raises:
        InputError: there is no original, or the sizes differ.
    """
    black: list[ReconstructionScores] = []
    mean: list[ReconstructionScores] = []
    for original_bcs in originals:
        if original_bcs.shape[1:] != mean_cs.shape:
            raise InputError(
                f"originals of shape {tuple(original_bcs.shape[1:])} cannot be compared with a mean image of shape "
                f"{tuple(mean_cs.shape)}: extract training and test slices at one size"
            )
        black.append(reconstruction_scores(torch.zeros_like(original_bcs), original_bcs))
        mean.append(reconstruction_scores(mean_cs.to(original_bcs).expand_as(original_bcs), original_bcs))
    return BaselineScores(mean_scores(black), mean_scores(mean))


class ForegroundSSIMMetric(RegressionMetric):
    """SSIM averaged over the original's foreground, as one of MONAI's cumulative metrics.

    Call it with (images, originals), both (batch, 1, ...) in [0, 1], then `aggregate()`.
    """

    def _compute_metric(self, y_pred: Tensor, y: Tensor) -> Tensor:
        images_bcs, original_bcs = _checked(y_pred, y)
        return _masked_mean(ssim_map(images_bcs, original_bcs), foreground_mask(original_bcs).float())[:, None]


class ForegroundPSNRMetric(RegressionMetric):
    """PSNR in dB over the original's foreground, as one of MONAI's cumulative metrics. Used like the SSIM above."""

    def _compute_metric(self, y_pred: Tensor, y: Tensor) -> Tensor:
        images_bcs, original_bcs = _checked(y_pred, y)
        squared = (images_bcs - original_bcs) ** 2
        return _psnr(_masked_mean(squared, foreground_mask(original_bcs).float()))[:, None]
