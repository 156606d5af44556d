"""The pictures of an evaluation, beside its `metrics.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from monai_vqgen.evaluation.scores import SHOWN, ReconstructionPass, SliceSet
from monai_vqgen.files import write_json
from monai_vqgen.models.sampling import SampleBatch
from monai_vqgen.plots.pictures import (
    PictureRow,
    grid_picture,
    save_numbered_grid,
    save_png,
    save_rows,
    save_usage,
)

__all__ = ["save_reconstruction_pictures", "save_sample_pictures"]

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
    samples: SampleBatch,
    test: SliceSet,
    *,
    split: str = "test",
    mixed: int = SHOWN,
    seed: int = 0,
) -> None:
    """`samples.png`, `overview.png`, and `real_and_sampled.png` with its key in JSON.

    Args:
        folder: where they go.
        result: the reconstructed test slices.
        samples: the sampled ones.
        test: the real ones.
        split: which split they are of.
        mixed: how many real slices, and as many samples, stand in random order in the unlabelled grid.
        seed: of that order.
    """
    drawn = samples.images_ncs[:, 0].numpy()
    rows = [(f"{split} slices", result.shown["original"]), ("reconstructed", result.shown["reconstruction"])]
    rows.append(("samples", drawn))
    width = min(len(images) for _, images in rows)
    save_rows([PictureRow(name, images[:width]) for name, images in rows], folder / "overview.png")
    save_png(grid_picture(drawn[:MOST_DRAWN]), folder / "samples.png")
    some = np.linspace(0, len(test) - 1, min(mixed, len(test))).round().astype(int).tolist()
    real = np.stack([np.asarray(test[i]["image"])[0] for i in some])
    _save_mixed(folder, real, drawn[:mixed], seed)


def _save_mixed(folder: Path, real_nhw: np.ndarray, drawn_nhw: np.ndarray, seed: int) -> None:
    """Real and sampled slices in random order, numbered, and a file that says which were sampled."""
    order = np.random.default_rng(seed).permutation(len(real_nhw) + len(drawn_nhw))
    save_numbered_grid(np.concatenate([real_nhw, drawn_nhw])[order], folder / "real_and_sampled.png")
    sampled = [place + 1 for place, index in enumerate(order.tolist()) if index >= len(real_nhw)]
    write_json(folder / "real_and_sampled.json", {"sampled": sampled})
