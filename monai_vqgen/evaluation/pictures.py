"""The pictures of an evaluation, beside its `metrics.json`.

Shape legend: n training slices, m others, c channels, h w rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.data import Dataset
from torch import Tensor

from monai_vqgen.data.slices.datalists import evenly_spaced
from monai_vqgen.files import write_json
from monai_vqgen.metrics.memorization import AlignedNeighbors, Alignment
from monai_vqgen.models import Samples
from monai_vqgen.models.samples import asked_for, drawn_with
from monai_vqgen.plots.pictures import PictureRow, as_shown, save_grid, save_rows, save_usage

MOST_DRAWN = 64  # samples in their grid picture


def save_reconstruction_pictures(folder: Path, shown: Mapping[str, np.ndarray], counts: Sequence[np.ndarray]) -> None:
    """`reconstructions.png` and `usage.png`.

    `shown` has slices `(n, H, W)`, in color `(n, H, W, 3)`, by what they are, `counts` how often each code of a level
    was used, `(k,)`.
    """
    original, reconstruction = shown["original"], shown["reconstruction"]
    difference = reconstruction - original
    difference = difference.mean(-1) if difference.ndim == 4 else difference  # of colors
    save_rows(
        [
            PictureRow("original", original),
            PictureRow("reconstruction", reconstruction),
            PictureRow("difference\n(±0.25)", difference, signed=True),
            PictureRow("coarsest level\nalone", shown["top_only"]),
        ],
        folder / "reconstructions.png",
    )
    save_usage(counts, folder / "usage.png")


def save_sample_pictures(
    folder: Path, shown: Mapping[str, np.ndarray], samples: Samples, test: Dataset, *, split: str, mixed: int
) -> None:
    """`samples.png`, `overview.png`, and `real_and_sampled.png` with its key in JSON.

    The last is the unlabeled grid, in which `mixed` real slices of `test`, and as many samples, stand in random order.
    """
    drawn = np.stack([as_shown(image) for image in samples.images.numpy()])
    title, marks = drawn_with(samples.seed, samples.settings), [asked_for(row) for row in samples.conditions]
    width = min(len(shown["original"]), len(shown["reconstruction"]), len(drawn))
    rows = [
        PictureRow(f"{split} slices", shown["original"][:width]),
        PictureRow("reconstructed", shown["reconstruction"][:width]),
        PictureRow("synthetic\nsamples", drawn[:width], marks=marks),
    ]
    beside = drawn_with(samples.seed, samples.settings, what="Synthetic samples")
    save_rows(rows, folder / "overview.png", title=beside)
    save_grid(drawn[:MOST_DRAWN], folder / "samples.png", marks=marks, title=title)
    real = np.stack([as_shown(np.asarray(test[i]["image"])) for i in evenly_spaced(mixed, len(test))])
    order = np.random.default_rng(samples.seed).permutation(len(real) + len(drawn[:mixed]))
    numbers = [str(place) for place in range(1, len(order) + 1)]
    mixture = np.concatenate([real, drawn[:mixed]])[order]
    save_grid(mixture, folder / "real_and_sampled.png", marks=numbers, title="Real and synthetic slices", columns=8)
    sampled = [place for place, index in enumerate(order.tolist(), start=1) if index >= len(real)]
    write_json(folder / "real_and_sampled.json", {"sampled": sampled})


def save_closest_pairs(
    samples: Samples, training_nchw: Tensor, nearest: AlignedNeighbors, path: str | Path, *, count: int = 8
) -> None:
    """Write the samples that lie nearest to a training slice, mirrored and moved to meet it, each above that slice.

    `nearest` is of all samples to all training slices; `count` pairs are shown.
    """
    order = nearest.distances_m.argsort(stable=True)[:count].tolist()
    ways = [Alignment(bool(nearest.mirrored_m[i]), *nearest.shifts_m2[i].tolist()) for i in order]
    aligned_nhw = torch.cat([way.apply(samples.images[i]) for i, way in zip(order, ways, strict=True)])
    marks = [asked_for(samples.conditions[i]) for i in order]
    save_rows(
        [
            PictureRow("synthetic\nsample,\naligned", aligned_nhw.numpy(), marks=marks),
            PictureRow("nearest\ntraining slice", training_nchw[nearest.indices_m[order], 0].numpy()),
        ],
        path,
        title=drawn_with(samples.seed, samples.settings, what="Synthetic samples"),
    )


def save_positions(samples: Samples, path: str | Path, *, columns: int = 8, rows: int = 4) -> None:
    """Write samples by the position they were asked for: one column a position, of the samples nearest to it.

    The columns are spread evenly over the range of positions; there are fewer rows where samples are few.
    """
    asked = np.asarray([values["position_mm"] for values in samples.conditions], dtype=float)
    edges = np.linspace(asked.min(), asked.max(), columns + 1)
    rows = min(rows, max(len(asked) // columns, 1))
    centers = (edges[1:] + edges[:-1]) / 2
    chosen = np.stack([np.argsort(np.abs(asked - center), kind="stable")[:rows] for center in centers])
    pictures = [
        PictureRow("" if row else "samples\nby position", samples.images[which, 0].numpy(), marks=marks)
        for row, which in enumerate(chosen.T)
        for marks in [[asked_for(samples.conditions[i]) for i in which]]
    ]
    save_rows(pictures, path, title=drawn_with(samples.seed, samples.settings))
