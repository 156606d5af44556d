"""What a model must beat to have said anything: an all-black image and the mean training image.

An SSIM without them means little: brain slices are half black, and an all-black image already scores above 0.5.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from monai_vqgen.errors import InputError
from monai_vqgen.metrics.reconstruction import ReconstructionScores, mean_scores, reconstruction_scores

__all__ = ["BaselineScores", "baseline_scores", "mean_image"]


class BaselineScores(NamedTuple):
    """Mean scores, by name, of the two images that know nothing of the original."""

    all_black: dict[str, float]
    mean_image: dict[str, float]


def mean_image(batches_bcs: Iterable[torch.Tensor]) -> torch.Tensor:
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


def baseline_scores(originals: Iterable[torch.Tensor], mean_cs: torch.Tensor) -> BaselineScores:
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
