"""Pictures of how close samples come to real slices: beside the nearest training slices, and by position.

Shape legend: n training slices, m others, c channels, h w rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from monai_vqgen.metrics import AlignedNeighbors
from monai_vqgen.plots.pictures import PictureRow, save_rows

__all__ = ["save_closest_pairs", "save_positions"]


def save_closest_pairs(
    samples_mchw: Tensor, training_nchw: Tensor, nearest: AlignedNeighbors, path: str | Path, *, count: int = 8
) -> None:
    """Write the samples that lie nearest to a training slice, mirrored and moved to meet it, each above that slice.

    Args:
        samples_mchw: all samples.
        training_nchw: all training slices.
        nearest: of the samples.
        path: the PNG.
        count: how many pairs.
    """
    order = nearest.distances_m.argsort(stable=True)[:count].tolist()
    aligned = [
        _aligned(samples_mchw[i, 0].numpy(), nearest.shifts_m2[i].tolist(), mirrored=bool(nearest.mirrored_m[i]))
        for i in order
    ]
    save_rows(
        [
            PictureRow("sample,\naligned", np.stack(aligned)),
            PictureRow("nearest\ntraining slice", training_nchw[nearest.indices_m[order], 0].numpy()),
        ],
        path,
    )


def _aligned(image_hw: np.ndarray, shift: Sequence[int], *, mirrored: bool) -> np.ndarray:
    """The image mirrored left to right, then moved down and right; black where it no longer covers the plane."""
    (height, width), (down, right) = image_hw.shape, shift
    margins = ((max(down, 0), max(-down, 0)), (max(right, 0), max(-right, 0)))
    padded_hw = np.pad(image_hw[:, ::-1] if mirrored else image_hw, margins)
    return padded_hw[max(-down, 0) :, max(-right, 0) :][:height, :width]


def save_positions(
    samples_mhw: np.ndarray, positions_mm: Sequence[float], path: str | Path, *, columns: int = 8, rows: int = 4
) -> None:
    """Write samples by the position they were asked for: one column a position, of the samples nearest to it.

    Args:
        samples_mhw: images in [0, 1].
        positions_mm: of each.
        path: the PNG.
        columns: how many positions, evenly over their range.
        rows: samples a position, at most.
    """
    asked = np.asarray(positions_mm, dtype=float)
    centers = np.linspace(asked.min(), asked.max(), columns + 1)
    centers = (centers[1:] + centers[:-1]) / 2
    rows = min(rows, max(len(asked) // columns, 1))
    chosen = np.stack([np.argsort(np.abs(asked - center), kind="stable")[:rows] for center in centers])
    labels = ["samples\nby position"] + [""] * (rows - 1)
    pictures = [PictureRow(label, samples_mhw[chosen[:, row]]) for row, label in enumerate(labels)]
    save_rows(pictures, path, titles=[f"{center:.0f} mm" for center in centers])
