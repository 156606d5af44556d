"""Resample a slice or volume to another pixel size and back: a matrix product an axis, antialiased when shrinking.

Arrays have their two or three spatial axes last; the affine's first columns belong to these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import ceil, prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline

from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.transforms.nifti import FREE_BYTES, MAX_BYTES

__all__ = ["ResampledPlane", "resample_plane", "restore_plane"]

_WEAKEST = 0.1  # singular values below this share of the largest are not inverted: they would amplify noise


class ResampledPlane(NamedTuple):
    """Pixels `[..., H, W]` or `[..., X, Y, Z]` on the new grid, their affine, and new pixels per old one, by axis."""

    pixels: NDArray
    affine: NDArray
    scale: tuple[float, ...]


def check_pixel_mm(pixel_mm: float | Sequence[float], *, axes: int = 2) -> tuple[float, ...]:
    """Return the pixel size along each axis, or raise InputError."""
    sizes = (pixel_mm,) * axes if isinstance(pixel_mm, (int, float)) else tuple(pixel_mm)
    if len(sizes) != axes or not all(np.isfinite(size) and size > 0 for size in sizes):
        each = "(rows, columns)" if axes == 2 else "one an axis"
        raise InputError(f"pixel_mm is {pixel_mm}; give a positive size in millimeters, one or {each}")
    return tuple(map(float, sizes))


def check_mode(mode: str) -> str:
    """Return the interpolation's name here, or raise InputError; "bilinear" is MONAI's word for "linear"."""
    if mode not in ("linear", "bilinear", "nearest"):
        raise InputError(f"mode is {mode!r}; choose 'linear' (or 'bilinear', the same) or 'nearest'")
    return "nearest" if mode == "nearest" else "linear"


def _source_centers(size: int, spacing: float, pixel_mm: float) -> NDArray:
    """Where the new pixels' centers lie in old pixel indices. Old and new grid share their middle."""
    # 1e-6 of a pixel: 256 pixels of 0.868 mm on 1.736 mm are 128, whatever rounding the affine suffered
    new_size = max(1, ceil(size * spacing / pixel_mm - 1e-6 * size))
    return (size - 1) / 2 + (np.arange(new_size) - (new_size - 1) / 2) * (pixel_mm / spacing)


def resampled_size(size: Sequence[int], affine: NDArray, pixel_mm: float) -> tuple[int, ...]:
    """The size that `resample_plane` makes of a slice or a volume of a size and an affine."""
    spacing = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, : len(size)], axis=0)
    pairs = [(int(n), float(old)) for n, old in zip(size, spacing, strict=True)]
    return tuple(n if _is_alike(old, pixel_mm) else len(_source_centers(n, old, pixel_mm)) for n, old in pairs)


def _is_alike(old: float, new: float) -> bool:
    return abs(new - old) <= 1e-5 * old


@lru_cache(maxsize=64)
def _weights(size: int, spacing: float, pixel_mm: float, mode: str) -> NDArray:
    """The `(new, old)` matrix of one axis: linear, the triangle widened to the new pixel when shrinking."""
    centers = _source_centers(size, spacing, pixel_mm)
    if mode == "nearest":
        matrix = np.zeros((len(centers), size), dtype=np.float32)
        nearest = np.clip(np.floor(centers + 0.5).astype(int), 0, size - 1)
        matrix[np.arange(len(centers)), nearest] = 1
        return matrix
    reach = max(1.0, pixel_mm / spacing)
    offset = np.arange(size)[None, :] - np.clip(centers, 0, size - 1)[:, None]
    matrix = np.clip(1 - np.abs(offset) / reach, 0, None)
    matrix /= matrix.sum(axis=1, keepdims=True)
    # sampled at voxels, a widened triangle's middle is off by up to 0.05 of a voxel: tilt it back, so that a ramp
    # keeps its place. At the border, where the triangle is cut, the tilt could make weights negative: left alone
    first = (matrix * offset).sum(axis=1)
    second = np.maximum((matrix * offset**2).sum(axis=1), 1e-12)
    tilt = np.where((centers >= reach) & (centers <= size - 1 - reach), first / second, 0)
    matrix *= 1 - tilt[:, None] * offset
    return (matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32)


def _along(matrix: NDArray, values: NDArray, axis: int) -> NDArray:
    """The matrix applied to one of the last three axes."""
    if axis == -1:
        return values @ matrix.T
    if axis == -2:
        return matrix @ values
    lines = values.reshape(*values.shape[:-2], -1)
    return (matrix @ lines).reshape(*values.shape[:-3], len(matrix), *values.shape[-2:])


def resample_plane(
    pixels: NDArray, affine: NDArray, pixel_mm: float | Sequence[float], *, mode: str = "linear", axes: int = 2
) -> ResampledPlane:
    """Resample a slice in its own plane, or a volume, to a pixel size.

    Values stay within the input's range (weights are positive and sum to one). The middle of the grid stays where
    it was, and the affine gives the position of every new pixel's center.

    Args:
        pixels: `[..., H, W]`, or `[..., X, Y, Z]` with three axes.
        affine: 4x4; its first columns belong to these axes.
        pixel_mm: new distance between pixel centers, one number or one an axis.
        mode: "linear" or "bilinear" (the same, antialiased when shrinking), or "nearest" (labels).
        axes: how many of the last axes are resampled, 2 or 3.

    Raises:
        InputError: for a pixel size that is not positive, or an unknown mode.
        ScanError: the grid would be too large, or no pixel be left, as with a spacing in other units.
    """
    targets = check_pixel_mm(pixel_mm, axes=axes)
    mode = check_mode(mode)
    new_affine = np.array(affine, dtype=np.float64)
    spacing = np.linalg.norm(new_affine[:3, :axes], axis=0)
    first, scale = np.zeros(axes), np.ones(axes)
    result = np.asarray(pixels, dtype=np.float32)
    grid = np.array(result.shape[-axes:]) * spacing / targets
    size, weights = 4 * float(grid.prod()), 4 * float((grid * result.shape[-axes:]).max())  # bytes
    most = FREE_BYTES if axes == 2 else MAX_BYTES // 4
    if max(size, 8 * weights) > most or size * prod(result.shape[:-axes]) > MAX_BYTES:
        raise ScanError(
            f"pixels of {_by(f'{mm:g}' for mm in spacing)} mm would become {_by(f'{n:.0f}' for n in grid)} of "
            f"{targets[0]:g} mm; fix the spacing (or its unit) in the header, or give another pixel_mm"
        )
    if ((grid < 0.5) & (np.array(result.shape[-axes:]) > 1)).any():
        raise ScanError(
            f"{_by(map(str, result.shape[-axes:]))} pixels of {_by(f'{mm:g}' for mm in spacing)} mm are together less "
            f"than half of one of {targets[0]:g} mm; fix the spacing (or its unit) in the header"
        )
    for axis in range(axes):
        size, old, new = result.shape[axis - axes], float(spacing[axis]), float(targets[axis])
        if _is_alike(old, new):
            continue
        result = _along(_weights(size, old, new, mode), result, axis - axes)
        first[axis], scale[axis] = _source_centers(size, old, new)[0], old / new
    new_affine[:3, 3] += new_affine[:3, :axes] @ first
    new_affine[:3, :axes] /= scale
    return ResampledPlane(result, new_affine, tuple(scale.tolist()))


def _by(sizes: Iterable[str]) -> str:
    return " x ".join(sizes)


@lru_cache(maxsize=64)
def _inverse_weights(size: int, spacing: float, pixel_mm: float, mode: str) -> NDArray:
    """The `(old, new)` matrix of one axis that undoes `_weights`: cubic splines that average to the given pixels, or
    the nearest of them."""
    if mode == "nearest":
        places = np.arange(len(_source_centers(size, spacing, pixel_mm)))
        distances = np.abs(_source_centers(size, spacing, pixel_mm)[None, :] - np.arange(size)[:, None])
        return (distances.argmin(1)[:, None] == places).astype(np.float32)
    forward = _weights(size, spacing, pixel_mm, "linear").astype(np.float64)
    count = len(forward)
    centers = (count - 1) / 2 + (np.arange(size) - (size - 1) / 2) * (spacing / pixel_mm)
    spline = make_interp_spline(np.arange(count), np.eye(count), k=min(3, count - 1))
    curves = spline(np.clip(centers, -0.5, count - 0.5))
    return (curves @ np.linalg.pinv(forward @ curves, rcond=_WEAKEST)).astype(np.float32)


def restore_plane(
    pixels: NDArray,
    size: Sequence[int],
    affine: NDArray,
    pixel_mm: float | Sequence[float],
    *,
    mode: str = "linear",
) -> NDArray:
    """Bring what `resample_plane` made back to the slice's own grid.

    With mode "nearest" each pixel takes the value of the nearest one. Otherwise, of all cubic splines on the coarser
    grid, the one that `resample_plane` maps to `pixels` again: interpolation alone would blur what antialiasing has
    averaged a second time. A slice that was enlarged comes back as it was. Values may overshoot the input's range a
    little at sharp edges.

    Args:
        pixels: `[..., h, w]` or `[..., x, y, z]` on the resampled grid.
        size: of the own grid of the slice or volume, which says how many axes there are.
        affine: 4x4 of that grid.
        pixel_mm: as given to `resample_plane`.
        mode: likewise.

    Raises:
        InputError: for a pixel size that is not positive, or an unknown mode.
    """
    mode = check_mode(mode)
    axes = len(size)
    spacing = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :axes], axis=0)
    result = np.asarray(pixels, dtype=np.float32)
    for axis, new in enumerate(check_pixel_mm(pixel_mm, axes=axes)):
        old = float(spacing[axis])
        if _is_alike(old, float(new)):
            continue
        result = _along(_inverse_weights(int(size[axis]), old, float(new), mode), result, axis - axes)
    return result
