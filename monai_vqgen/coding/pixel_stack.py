"""Pixels of a stack of images: what is known of each before it is coded, and which can be coded together.

Legend of suffixes: f features, m pixels, n images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEATURES", "PixelStack", "Whole", "local_activity", "wave_count", "working_bytes"]

Whole = NDArray[np.float64]
"""Whole numbers below 2^53, of which float64 sums and products are exact in any order."""

BEFORE = ((0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0), (-2, 1), (-1, -2), (-2, -1))
AROUND = tuple(product((-1, 0, 1), repeat=2))  # in the image before
EDGE = 2  # zeros around an image
AHEAD = 4  # steps that an image waits for the one before it, so that all around a pixel is known there
CONSTANT = 64.0  # the last feature
FEATURES = len(BEFORE) + len(AROUND) + 1


def wave_count(shape_nhw: Sequence[int]) -> int:
    """How many waves, some of them empty, a stack takes."""
    count, height, width = shape_nhw
    return AHEAD * (count - 1) + 2 * (height - 1) + width


def working_bytes(shape_nhw: Sequence[int]) -> int:
    """Two float32 arrays with what is around each image, and what `waves` counts a row."""
    count, height, width = shape_nhw
    return 8 * (count + 1) * (height + 2 * EDGE) * (width + 2 * EDGE) + 40 * count * height


class PixelStack:
    """Ranks and sizes of errors of images `(n, h, w)` with zeros around each, flat, and the order of the pixels."""

    def __init__(self, shape_nhw: Sequence[int]) -> None:
        count, height, width = self.shape = tuple(shape_nhw)
        self._padded = (count + 1, height + 2 * EDGE, width + 2 * EDGE)
        self._row = width + 2 * EDGE
        self._image = (height + 2 * EDGE) * self._row
        self.ranks = np.zeros(int(np.prod(self._padded)), np.float32)  # whole numbers, too, and below 2^24
        self.errors = np.zeros_like(self.ranks)
        steps = [down * self._row + right for down, right in BEFORE]
        steps += [down * self._row + right - self._image for down, right in AROUND]
        self._steps = np.array(steps)
        self._first = self._image + EDGE * self._row + EDGE

    def fill(self, ranks_nhw: NDArray[Any]) -> None:
        """Take all ranks."""
        self._framed()[:] = ranks_nhw

    def inside(self) -> NDArray[np.int64]:
        """All ranks, `(n, h, w)`."""
        return self._framed().astype(np.int64)

    def _framed(self) -> NDArray[np.float32]:
        return self.ranks.reshape(self._padded)[1:, EDGE:-EDGE, EDGE:-EDGE]

    def images(self) -> Iterator[NDArray[np.int64]]:
        """The places of each image's pixels."""
        _, height, width = self.shape
        one = (np.arange(height)[:, None] * self._row + np.arange(width)).ravel() + self._first
        for image in range(self.shape[0]):
            yield one + image * self._image

    def waves(self) -> Iterator[NDArray[np.int64]]:
        """The places of pixels that can be known together: all their neighbors are in earlier waves."""
        count, height, width = self.shape
        images, rows = np.divmod(np.arange(count * height), height)
        starts = AHEAD * images + 2 * rows
        places = images * self._image + rows * self._row + self._first - starts
        order = np.argsort(starts, kind="stable")
        starts, places = starts[order], places[order]
        every = np.arange(wave_count(self.shape))
        firsts, ends = (np.searchsorted(starts, every - late, side="right").tolist() for late in (width, 0))
        for wave, (first, end) in enumerate(zip(firsts, ends, strict=True)):
            if first < end:
                yield places[first:end] + wave

    def features(self, places_m: NDArray[np.int64]) -> Whole:
        """Neighbors and a constant, `(m, f)`."""
        known_mf = np.empty((len(places_m), FEATURES))
        known_mf[:, :-1] = self.ranks[places_m[:, None] + self._steps]
        known_mf[:, -1] = CONSTANT
        return known_mf

    def spread(self, places_m: NDArray[np.int64], activity_m: Whole) -> Whole:
        """How much varies nearby: gradients, and errors of the predictions before."""
        row, errors = self._row, self.errors
        near_m = 2 * (errors[places_m - 1] + errors[places_m - row]) + errors[places_m - row - 1]
        return activity_m + 2.0 * (near_m + errors[places_m - row + 1] + errors[places_m - self._image])


def local_activity(known_mf: Whole) -> Whole:
    """Sums of gradients above and to the left, `(m)`, of what `PixelStack.features` gives."""
    west, north, northwest, northeast, west2, north2 = known_mf.T[:6]
    within: Whole = abs(west - northwest) + abs(north - northwest) + abs(north - northeast)
    return within + abs(west - west2) + abs(north - north2)
