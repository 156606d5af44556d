"""What the weights that come with the package do, shown before a demo's own have learned anything."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import ResizeWithPadOrCrop

from monai_vqgen.data.slices.sources import discover_volumes
from monai_vqgen.errors import ScanError
from monai_vqgen.models import TrainedModel
from monai_vqgen.models.samples import asked_for, drawn_with
from monai_vqgen.models.scans import as_volume
from monai_vqgen.plots.pictures import PictureRow, save_rows
from monai_vqgen.transforms import ExtractSlices

__all__ = ["SHOWCASE", "save_showcase"]

logger = logging.getLogger(__name__)

SHOWCASE = "package_weights.png"
SHOWN = 8  # images in a row
FRACTIONS = tuple(np.linspace(0.3, 0.65, SHOWN).tolist())  # of the brain's height, from its top: cortex to ventricles


def save_showcase(scans: Path, folder: Path, *, seed: int = 0) -> Path:
    """Write a picture of slices that the package's weights draw, and of slices of a scan before and after its codes.

    The scan is the first that can be read.

    Args:
        scans: a folder of scans.
        folder: of the picture.
        seed: of the drawn slices.
    """
    drawing, coding = TrainedModel.from_bundle("generative"), TrainedModel.from_bundle("faithful")
    samples = drawing.sample(SHOWN, seed=seed)
    rows = [
        PictureRow("drawn\n(synthetic)", _fitted(samples.images, coding), marks=[*map(asked_for, samples.conditions)])
    ]
    for record in discover_volumes(scans):
        try:
            rows += _coded(record.path, coding)
            break
        except ScanError as error:  # the stage of slices says what is left out; here another scan will do
            logger.debug("not shown: %s", error)
    path = folder / SHOWCASE
    save_rows(rows, path, title=f"Weights that come with the package. {drawn_with(seed, samples.settings)}")
    logger.info("What the weights of the package draw and reconstruct: %s", path)
    return path


def _coded(scan: Path, model: TrainedModel) -> list[PictureRow]:
    """Slices of a scan, and below them what the model makes of their codes."""
    cut = ExtractSlices("axial", FRACTIONS, unit="fraction", pixel_mm=model.record.pixel_mm)
    volume = as_volume(scan)
    prepared = cut.prepare(volume)
    planes, (low, high) = cut.locate(prepared), prepared.window
    rows = []
    for label, image in (("a scan", volume), ("the same\nfrom its codes", model.reconstruct(scan))):
        slices = [(slice_chw - low) / (high - low) for slice_chw in cut.cut(image, prepared, planes)]
        rows.append(PictureRow(label, _fitted(slices, model)))
    return rows


def _fitted(images: Iterable[Any], model: TrainedModel) -> np.ndarray:
    """Images ``(1, h, w)`` as ``(n, *image_size)``, black around those that are smaller."""
    fit = ResizeWithPadOrCrop(model.record.image_size)
    return np.stack([np.asarray(fit(torch.as_tensor(image)))[0] for image in images])
