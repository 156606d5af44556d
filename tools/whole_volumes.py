"""How well whole scans come back, beside what resampling alone costs.

`python -m tools whole_volumes --data SCANS` reconstructs the scans of a split, and compares them with the originals
after both are averaged over 2 x 2 pixels of the model's plane, which brings voxels of 0.87 mm to the size of the slices
that the models were trained on. An identity in the network's place shows the loss by resampling to slices and back.

Shape suffixes: s the scan's three axes as stored, n slices, h w rows and columns.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from monai_vqgen.data import discover_volumes
from monai_vqgen.data.slices.splits import SubjectSplit, read_split
from monai_vqgen.errors import InputError
from monai_vqgen.files import write_json
from monai_vqgen.metrics.reconstruction import foreground_mask, reconstruction_scores
from monai_vqgen.models import TrainedModel
from monai_vqgen.models.scans import as_volume
from monai_vqgen.transforms.foreground import Window, foreground_window
from monai_vqgen.transforms.geometry import view_plane
from monai_vqgen.transforms.intensity import scale_to_window

__all__ = ["measure_whole_volumes", "table"]

IDENTITY = "identity"
FEWEST = 50  # pixels of brain in a slice that counts, after averaging


def measure_whole_volumes(
    data: str | Path,
    output: str | Path,
    *,
    split_file: str | Path,
    split: str = "test",
    model: str = "faithful",
    shifts: Sequence[int] = (1, 4),
) -> dict[str, Any]:
    """Write `whole_volumes.json` and return what it holds: by method, PSNR (dB) and brain SSIM, means over slices.

    Args:
        data: a folder of scans, those of all splits.
        output: a folder.
        split_file: the subjects of each split, as `extract_slices.json` takes them.
        split: "training", "validation" or "test": whose scans.
        model: of slices, as `TrainedModel.from_bundle` takes it.
        shifts: of `TrainedModel.reconstruct`, a method each.

    Raises:
        InputError: no such split, or it has no scans there.
        DatalistError: a split that these scans do not have.
        ScanError: a scan that cannot be read, or has no contrast.
    """
    if split not in SubjectSplit._fields:
        raise InputError(f"split is {split!r}; give one of {', '.join(SubjectSplit._fields)}")
    trained = TrainedModel.from_bundle(model, with_priors=False)
    records = discover_volumes(data)
    subjects = set(getattr(read_split(split_file, [record.subject for record in records]), split))
    paths = [record.path for record in records if record.subject in subjects]
    if not paths:
        raise InputError(f"{data} holds no scan of the {split} subjects of {split_file}")
    Path(output).mkdir(parents=True, exist_ok=True)  # an output that cannot be is told before the work
    inferer = trained.reconstruction_inferer()
    methods: dict[str, Callable[[Any], Any]] = {IDENTITY: lambda scan: inferer(scan[None], torch.nn.Identity())[0]}
    for count in shifts:
        name = f"{model} weights" + (f", mean of {count} shifted reconstructions" if count > 1 else "")
        methods[name] = functools.partial(trained.reconstruct, shifts=count)
    scores: dict[str, list[Any]] = {name: [] for name in methods}
    for path in tqdm(paths, desc="scans", unit="scan"):
        scan: Any = as_volume(path)
        scan = scan if scan.ndim == 4 else scan[None]
        values_s, affine = np.asarray(scan[0], dtype=np.float32), np.asarray(scan.affine, dtype=float)
        window = _window(values_s, trained)
        original = _slices(scale_to_window(values_s, window), affine, trained)
        kept = foreground_mask(original).flatten(1).sum(1) >= FEWEST
        for name, method in methods.items():
            again = _slices(scale_to_window(np.asarray(method(scan)[0]), window), affine, trained)
            scores[name].append(reconstruction_scores(again[kept], original[kept]))
    means = {
        name: {
            "psnr": float(torch.cat([found.psnr for found in parts]).mean()),
            "ssim_brain": float(torch.cat([found.ssim_brain for found in parts]).nanmean()),
        }
        for name, parts in scores.items()
    }
    slices = sum(len(found.psnr) for found in scores[IDENTITY])
    figures = {"split": split, "scans": len(paths), "slices": slices, "methods": means}
    write_json(Path(output) / "whole_volumes.json", figures)
    return figures


def _window(values_s: NDArray, trained: TrainedModel) -> Window:
    """What the model takes as 0 and 1."""
    if trained.record.window is not None:
        return Window(*trained.record.window)
    lower, upper = trained.record.percentiles
    return foreground_window(values_s, lower=lower, upper=upper)


def _slices(values_s: NDArray, affine: NDArray, trained: TrainedModel) -> Tensor:
    """Of values in [0, 1], `(n, 1, h, w)`: slices of the model's plane, averaged over 2 x 2 pixels, on its frame."""
    view = view_plane(values_s, affine, trained.plane)
    images = torch.from_numpy(np.moveaxis(view.volume_s, 2, 0).copy())[:, None]
    images = F.avg_pool2d(images, 2)
    missing = [max(0, side - have) for side, have in zip(trained.record.image_size, images.shape[2:], strict=True)]
    (top, left), (bottom, right) = ([n // 2 for n in missing], [n - n // 2 for n in missing])
    return F.pad(images, (left, right, top, bottom))


def table(figures: Mapping[str, Any]) -> str:
    """The figures as a table in Markdown."""
    lines = ["| scans through | PSNR, dB | brain SSIM |", "|---|---|---|"]
    lines += [f"| {name} | {row['psnr']:.2f} | {row['ssim_brain']:.3f} |" for name, row in figures["methods"].items()]
    return "\n".join(lines)
