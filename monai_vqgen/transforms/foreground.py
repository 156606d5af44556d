"""Box and intensity window of the brain in a volume, from a strided subset of its voxels.

The foreground is the largest connected component above 2 % of the 99.5th percentile. Percentiles come from a strided
subset (their error is far below the noise), components from a block-wise maximum of the mask, and the faces of the box
from the full resolution. Only one comparison touches all voxels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["Box", "Foreground", "Window", "find_foreground", "foreground_window"]

THRESHOLD_FRACTION = 0.02  # of the 99.5th percentile
THRESHOLD_PERCENTILE = 99.5
SAMPLES_PER_AXIS = 56  # a strided subset keeps at least this many voxels of an axis: about 200,000 in all
BLOCKS_PER_AXIS = 72


class Box(NamedTuple):
    """First (inclusive) and last (exclusive) voxel along each axis."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as an index."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))


class Window(NamedTuple):
    """The intensities that become 0 and 1."""

    low: float
    high: float


class Foreground(NamedTuple):
    """Threshold and box of the foreground; `box` is None where nothing lies above the threshold."""

    threshold: float
    box: Box | None


def _strided(volume_s: NDArray) -> NDArray:
    return volume_s[tuple(slice(None, None, max(1, n // SAMPLES_PER_AXIS)) for n in volume_s.shape)]


def foreground_threshold(volume_s: NDArray) -> float:
    """2 % of the 99.5th percentile of the finite voxels, never below 0."""
    sample = _strided(volume_s)
    sample = sample[np.isfinite(sample)] if sample.dtype.kind == "f" else sample.ravel()
    if sample.size == 0:
        return 0.0
    return max(0.0, THRESHOLD_FRACTION * float(np.percentile(sample, THRESHOLD_PERCENTILE)))


def _pool(mask_s: NDArray, edges: tuple[int, ...]) -> NDArray:
    """Block-wise any, slowest axis first so that most of the work is contiguous."""
    for axis, edge in enumerate(edges):
        if edge == 1:
            continue
        head = [slice(None)] * mask_s.ndim
        head[axis] = slice(0, None, edge)
        pooled = mask_s[tuple(head)].copy()
        for k in range(1, edge):
            head[axis] = slice(k, None, edge)
            part = mask_s[tuple(head)]
            target = [slice(None)] * mask_s.ndim
            target[axis] = slice(0, part.shape[axis])
            pooled[tuple(target)] |= part
        mask_s = pooled
    return mask_s


def _largest(blocks_s: NDArray) -> NDArray:
    """The largest 6-connected component of a mask."""
    labels, count = ndimage.label(blocks_s)
    if count <= 1:
        return blocks_s
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == int(sizes.argmax())


def _face(mask_s: NDArray, component_s: NDArray, edges: tuple[int, ...], axis: int, block: int) -> NDArray:
    """Which voxel planes of one slab of blocks hold voxels of the component."""
    lines = np.moveaxis(mask_s, axis, 0)[block * edges[axis] : (block + 1) * edges[axis]]
    keep = np.take(component_s, block, axis=axis)
    for other, edge in enumerate(edge for i, edge in enumerate(edges) if i != axis):
        keep = np.repeat(keep, edge, axis=other)
    return (lines & keep[None, : lines.shape[1], : lines.shape[2]]).any(axis=(1, 2))


def mask_box(mask_s: NDArray, *, largest: bool = True) -> Box | None:
    """The box of a mask's largest component (of all of it with `largest=False`), or None for an empty mask.

    Components closer than a block (a 72nd of an axis, at most a few voxels) count as one.
    """
    order = sorted(range(3), key=lambda i: -abs(mask_s.strides[i]))  # memory order, so that blocks are contiguous
    mask_s = mask_s.transpose(order)
    edges = tuple(max(1, n // BLOCKS_PER_AXIS) for n in mask_s.shape)
    component_s = _pool(mask_s, edges)
    if not component_s.any():
        return None
    if largest:
        component_s = _largest(component_s)
    start, stop = [0, 0, 0], [0, 0, 0]
    for axis in range(3):
        hit = np.flatnonzero(component_s.any(axis=tuple(i for i in range(3) if i != axis)))
        first, last = int(hit[0]), int(hit[-1])
        low = np.flatnonzero(_face(mask_s, component_s, edges, axis, first))
        high = np.flatnonzero(_face(mask_s, component_s, edges, axis, last))
        start[order[axis]] = first * edges[axis] + int(low[0])
        stop[order[axis]] = last * edges[axis] + int(high[-1]) + 1
    return Box(tuple(start), tuple(stop))


def find_foreground(volume_s: NDArray, *, mask_s: NDArray | None = None) -> Foreground:
    """Threshold and box of a volume's foreground.

    Args:
        volume_s: three axes, any real type; NaN counts as background, infinity must be gone before.
        mask_s: a brain mask of the same shape, whose box (all of it) is used instead.

    Example:
        >>> volume = np.zeros((8, 8, 8))
        >>> volume[2:5, 3:6, 1:7] = 1
        >>> find_foreground(volume).box
        Box(start=(2, 3, 1), stop=(5, 6, 7))
    """
    threshold = foreground_threshold(volume_s)
    if mask_s is not None:
        return Foreground(threshold, mask_box(mask_s.astype(bool, copy=False), largest=False))
    with np.errstate(invalid="ignore"):
        # compared in the volume's own type: a Python float would be cast once, an array never
        return Foreground(threshold, mask_box(volume_s > threshold))


def foreground_window(
    volume_s: NDArray,
    *,
    foreground: Foreground | None = None,
    mask_s: NDArray | None = None,
    lower: float = 0.5,
    upper: float = 99.5,
) -> Window:
    """Robust percentiles of the voxels inside the box and above the threshold (inside the mask where one is given).

    Returns:
        The window in the volume's units. Its ends are equal for a constant foreground, and both 0 for an empty one.
    """
    if foreground is None:
        foreground = find_foreground(volume_s, mask_s=mask_s)
    if foreground.box is None:
        return Window(0.0, 0.0)
    inside = volume_s[foreground.box.slices]
    if mask_s is not None:
        values = inside[mask_s[foreground.box.slices].astype(bool, copy=False)]
        values = values[np.isfinite(values)]
    else:
        values = _strided(inside)
        values = values[(values > foreground.threshold) & np.isfinite(values)]
        if values.size == 0:  # a foreground so thin that the strided subset misses it
            values = inside[(inside > foreground.threshold) & np.isfinite(inside)]
    if values.size == 0:
        return Window(0.0, 0.0)
    low, high = np.percentile(values, [lower, upper])
    return Window(float(low), float(high))
