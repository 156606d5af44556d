"""The pictures of an evaluation, beside its `metrics.json`.

Shape legend: n training slices, m others, c channels, h w rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from monai_vqgen.data.slices.datalists import evenly_spaced
from monai_vqgen.evaluation.scores import SHOWN, ReconstructionPass, SliceSet
from monai_vqgen.files import write_json
from monai_vqgen.metrics import AlignedNeighbors
from monai_vqgen.models import Samples
from monai_vqgen.plots.pictures import (
    PictureRow,
    grid_picture,
    save_numbered_grid,
    save_png,
    save_rows,
    save_usage,
)

__all__ = ["save_closest_pairs", "save_positions", "save_reconstruction_pictures", "save_sample_pictures"]

MOST_DRAWN = 64
"""Samples in their grid picture."""


def save_reconstruction_pictures(folder: Path, shown: Mapping[str, np.ndarray], counts: Sequence[np.ndarray]) -> None:
    """`reconstructions.png` and `usage.png`.

    Args:
        folder: where they go.
        shown: slices `(n, H, W)` by what they are: `original`, `reconstruction`, `top_only`.
        counts: how often each code was used, `(k,)`, one a level.
    """
    original, reconstruction = shown["original"], shown["reconstruction"]
    save_rows(
        [
            PictureRow("original", original),
            PictureRow("reconstruction", reconstruction),
            PictureRow("difference\n(±0.25)", reconstruction - original, signed=True),
            PictureRow("coarsest level\nalone", shown["top_only"]),
        ],
        folder / "reconstructions.png",
    )
    save_usage(counts, folder / "usage.png")


def save_sample_pictures(
    folder: Path,
    result: ReconstructionPass,
    samples: Samples,
    test: SliceSet,
    *,
    split: str = "test",
    mixed: int = SHOWN,
) -> None:
    """`samples.png`, `overview.png`, and `real_and_sampled.png` with its key in JSON.

    Args:
        folder: where they go.
        result: the reconstructed test slices.
        samples: the sampled ones.
        test: the real ones.
        split: which split they are of.
        mixed: how many real slices, and as many samples, stand in random order in the unlabeled grid.
    """
    drawn = samples.images[:, 0].numpy()
    rows = [(f"{split} slices", result.shown["original"]), ("reconstructed", result.shown["reconstruction"])]
    rows.append(("samples", drawn))
    width = min(len(images) for _, images in rows)
    save_rows([PictureRow(name, images[:width]) for name, images in rows], folder / "overview.png")
    save_png(grid_picture(drawn[:MOST_DRAWN]), folder / "samples.png")
    real = np.stack([np.asarray(test[i]["image"])[0] for i in evenly_spaced(mixed, len(test))])
    _save_mixed(folder, real, drawn[:mixed], samples.seed)


def _save_mixed(folder: Path, real_nhw: np.ndarray, drawn_nhw: np.ndarray, seed: int) -> None:
    """Real and sampled slices in random order, numbered, and a file that says which were sampled."""
    order = np.random.default_rng(seed).permutation(len(real_nhw) + len(drawn_nhw))
    save_numbered_grid(np.concatenate([real_nhw, drawn_nhw])[order], folder / "real_and_sampled.png")
    sampled = [place + 1 for place, index in enumerate(order.tolist()) if index >= len(real_nhw)]
    write_json(folder / "real_and_sampled.json", {"sampled": sampled})


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
