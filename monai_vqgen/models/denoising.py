"""Denoising: the mean of reconstructions of an image that was shifted against the grid of codes.

Shape legend: b batch, c channels, s spatial axes (2 or 3).
"""

from __future__ import annotations

from itertools import islice, product
from typing import Any

import torch.nn.functional as F
from scipy.stats.qmc import Halton
from torch import Tensor, nn

from monai_vqgen.errors import InputError

__all__ = ["CycleSpinning", "spread_shifts"]


class CycleSpinning(nn.Module):
    """An autoencoder that reconstructs an image at several places of its grid, and returns the mean.

    ::

              ┌─ shift by s1 ─ autoencoder ─ shift back ─┐
        image ┼─ ...                                     ┼─ mean ──> image
              └─ shift by sn ─ autoencoder ─ shift back ─┘

    Codes keep what images have in common, and noise is not among it. What they add, edges of the grid's cells above
    all, changes with the shift, so the mean has less of it (Coifman and Donoho 1995: cycle spinning). There images are
    shifted in a circle; here they are extended by their edge, so that one border never shows at the opposite one.

    Args:
        autoencoder: keeps the contract of `HierarchicalVQVAE`: its `forward` takes images of any size.
        shifts: how many reconstructions, from 1 to all that differ, the coarsest stride to the power of the axes. Time
            grows with it; 1 is the plain reconstruction.

    Images are float `(b, c, *s)` in [0, 1], a little more where noise added to them; results are in [0, 1].

    Raises:
        InputError: a number of shifts that is no whole number, or out of range.

    Examples:
        >>> import torch
        >>> from monai_vqgen.networks import HierarchicalVQVAE
        >>> spinning = CycleSpinning(HierarchicalVQVAE(channels=8, residual_channels=4), 4)
        >>> spinning(torch.rand(2, 1, 33, 47)).shape
        torch.Size([2, 1, 33, 47])
    """

    def __init__(self, autoencoder: Any, shifts: int = 4) -> None:
        super().__init__()
        self.shifts = spread_shifts(shifts, autoencoder.strides[0], autoencoder.spatial_dims)
        self.autoencoder = autoencoder

    def forward(self, images_bcs: Tensor) -> Tensor:
        """Return the mean of the shifted images' reconstructions, each clamped to [0, 1]; shaped like the images."""
        total_bcs: Any = 0
        for shift in self.shifts:  # one after another: memory is that of one
            before = [amount for pixels in reversed(shift) for amount in (pixels, 0)]  # F.pad begins with the last axis
            shifted_bcs = F.pad(images_bcs, before, mode="replicate") if any(shift) else images_bcs
            window = (..., *(slice(pixels, None) for pixels in shift))
            total_bcs = total_bcs + self.autoencoder(shifted_bcs).clamp(0, 1)[window]
        mean_bcs: Tensor = total_bcs / len(self.shifts)
        return mean_bcs


def spread_shifts(count: int, stride: int, dims: int) -> tuple[tuple[int, ...], ...]:
    """Shifts in pixels that lie evenly in a cell of `stride` pixels along each of `dims` axes; the first is none.

    They follow the Halton sequence (Halton 1960), so fewer are the first of more.

    Raises:
        InputError: no whole number from 1 to stride ** dims.

    Examples:
        >>> spread_shifts(4, 8, 2)
        ((0, 0), (4, 2), (2, 5), (6, 0))
    """
    most = stride**dims
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= most:
        raise InputError(f"shifts is {count!r}; give a whole number from 1 to {most}, as many as a cell has pixels")
    points = (Halton(dims, scramble=False).random(4 * count) * stride).astype(int).tolist()
    rest = product(range(stride), repeat=dims)  # where points fall into one pixel
    distinct = dict.fromkeys(tuple(point) for point in (*points, *rest))
    return tuple(islice(distinct, count))
