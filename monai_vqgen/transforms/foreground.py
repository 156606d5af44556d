"""Background, box and intensity window of the brain in a volume, from a strided subset of its voxels.

The foreground is the largest connected component above the background by 2 % of the way to the 99.5th percentile; or,
where the background lies among the brain's values (0 in a z-scored brain), what differs from it. Percentiles come from
a strided subset (their error is far below the noise), components from a block-wise maximum of the mask, and the faces
of the box from the full resolution. Only one comparison touches all voxels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["Background", "Box", "Foreground", "Window", "find_background", "find_foreground", "foreground_window"]

THRESHOLD_FRACTION = 0.02  # of the way from the background to the 99.5th percentile
INNER_SHARE = 0.05  # of the other voxels; with as many below it the background lies within the brain's range
AIR_HU = (-1200.0, -800.0)  # with its noise; scanners pad CT with less, such as -3024
DARK_SHARE = 0.1  # of the range of values: the background and its noise, where no border tells it
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


class Background(NamedTuple):
    """What surrounds the brain: its value, and what it takes to be foreground.

    `inner`: the value lies within the brain's range. The threshold is then the volume's smallest value, to which
    `hide` moves the background, so that it is as dark as in any other volume.
    """

    value: float = 0.0
    threshold: float = 0.0
    inner: bool = False

    def foreground(self, values_s: NDArray) -> NDArray:
        """The mask of the foreground; NaN is background."""
        with np.errstate(invalid="ignore"):  # compared in the values' own type: an array would be cast
            return (values_s != self.value) & ~np.isnan(values_s) if self.inner else values_s > self.threshold

    def hide(self, pixels: NDArray) -> NDArray:
        """A slice or volume with an inner background at the threshold; of the brain, single voxels of that value stay.

        Background is what reaches the border, or has a voxel whose neighbors have that value too.
        """
        if not self.inner:
            return pixels
        same = np.pad(pixels == pixels.dtype.type(self.value), 2, constant_values=True)
        connected = ndimage.binary_propagation(ndimage.binary_erosion(same, border_value=1), mask=same)
        return np.where(connected[(slice(2, -2),) * pixels.ndim], pixels.dtype.type(self.threshold), pixels)


class Foreground(NamedTuple):
    """Background and box of the foreground; `box` is None where there is none."""

    background: Background
    box: Box | None

    @property
    def threshold(self) -> float:
        """Of the background; brain lies above it."""
        return self.background.threshold


def _strided(volume_s: NDArray) -> NDArray:
    return volume_s[tuple(slice(None, None, max(1, n // SAMPLES_PER_AXIS)) for n in volume_s.shape)]


def find_background(volume_s: NDArray, *, axes: int = 3) -> Background:
    """The background of a volume or slice: 0, or what its border says, or its darkest values where many are negative.

    A value that half of the border has is the background, unless it pads a CT whose air is inside. Without one it is
    the median of the darkest tenth of the range where more than 5 % of the values are negative, else 0. Up to 2 % of
    the 99.5th percentile is as good as 0.

    Args:
        volume_s: any real type; NaN and infinity are ignored, and 0 on the border.
        axes: how many of the last axes are spatial.
    """
    sample, border = _finite(_strided(volume_s)), np.nan_to_num(_border(volume_s, axes), posinf=0, neginf=0)
    if sample.size == 0:
        return Background()
    low, high = (float(value) for value in np.percentile(sample, [100 - THRESHOLD_PERCENTILE, THRESHOLD_PERCENTILE]))
    usual = Background(0.0, max(0.0, THRESHOLD_FRACTION * high))
    if sample.min() == sample.max():
        return usual
    values, counts = np.unique(border, return_counts=True)
    constant, value = 2 * counts.max() >= border.size, float(values[counts.argmax()])
    if constant and value < AIR_HU[0]:
        inside = sample[sample > value]
        if np.mean((inside >= AIR_HU[0]) & (inside <= AIR_HU[1])) > INNER_SHARE:  # padding of CT, air within it
            constant, sample, low = False, inside, float(np.percentile(inside, 100 - THRESHOLD_PERCENTILE))
    if not constant:
        if np.mean(sample < -usual.threshold) <= INNER_SHARE:
            return usual
        value = float(np.median(sample[sample <= low + DARK_SHARE * (high - low)]))
    band = THRESHOLD_FRACTION * max(high - value, value - low)
    below, above = float(np.mean(sample < value - band)), float(np.mean(sample > value + band))
    if constant and below > INNER_SHARE * (below + above):
        return Background(value, float(np.min(volume_s, where=np.isfinite(volume_s), initial=value)), True)
    return usual if abs(value) <= usual.threshold else Background(value, value + THRESHOLD_FRACTION * (high - value))


def _finite(values: NDArray) -> NDArray:
    return values[np.isfinite(values)] if values.dtype.kind == "f" else values.ravel()


def _border(volume_s: NDArray, axes: int) -> NDArray:
    """The voxels of the outermost planes, thinned as the sample is."""
    ends = [volume_s.take(end, axis) for axis in range(-axes, 0) if volume_s.shape[axis] > 1 for end in (0, -1)]
    return np.concatenate([_strided(end).ravel() for end in ends] or [volume_s.ravel()])


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
    """Background and box of a volume's foreground.

    Args:
        volume_s: three axes, any real type; NaN counts as background, infinity must be gone before.
        mask_s: a brain mask of the same shape, whose box (all of it) is used instead.

    Example:
        >>> volume = np.zeros((8, 8, 8))
        >>> volume[2:5, 3:6, 1:7] = 1
        >>> find_foreground(volume).box
        Box(start=(2, 3, 1), stop=(5, 6, 7))
    """
    background = find_background(volume_s)
    if mask_s is not None:
        return Foreground(background, mask_box(mask_s.astype(bool, copy=False), largest=False))
    return Foreground(background, mask_box(background.foreground(volume_s)))


def foreground_window(
    volume_s: NDArray,
    *,
    foreground: Foreground | None = None,
    mask_s: NDArray | None = None,
    lower: float = 0.5,
    upper: float = 99.5,
) -> Window:
    """Robust percentiles of the foreground's voxels inside the box (of the mask's where one is given).

    Returns:
        The window in the volume's units. Its ends are equal for a constant foreground, and both 0 for an empty one.
    """
    if foreground is None:
        foreground = find_foreground(volume_s, mask_s=mask_s)
    if foreground.box is None:
        return Window(0.0, 0.0)
    inside = volume_s[foreground.box.slices]
    if mask_s is not None:
        values = _finite(inside[mask_s[foreground.box.slices].astype(bool, copy=False)])
    else:
        sample, chosen = _strided(inside), foreground.background.foreground
        values = _finite(sample[chosen(sample)])
        if values.size == 0:  # a foreground so thin that the strided subset misses it
            values = _finite(inside[chosen(inside)])
    if values.size == 0:
        return Window(0.0, 0.0)
    low, high = np.percentile(values, [lower, upper])
    return Window(float(low), float(high))
