"""The weights that ship, in a program of one's own: python examples/pretrained_weights.py SCAN.nii.gz OUTPUT_FOLDER

Axial slices of a skull-stripped T1w scan become codes, and the codes become images again; below them slices of nobody,
drawn at the same positions. Research only, not for diagnosis.

Shape legend: b batch, c channels, s spatial axes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from torch import Tensor

from monai_vqgen import TrainedModel
from monai_vqgen.metrics import mean_scores, reconstruction_scores
from monai_vqgen.plots.pictures import PictureRow, save_rows
from monai_vqgen.transforms import ExtractSlicesd, FitToSized, ScaleForegroundd

POSITIONS = (45.0, 55.0, 65.0, 75.0, 85.0, 95.0)  # mm below the top of the brain; the priors know 40 to 99
SEED = 7


class Cut(NamedTuple):
    """Attributes: `images_bcs`: `(n, 1, H, W)` in [0, 1]; `positions_mm`: of their very planes, below the top."""

    images_bcs: Tensor
    positions_mm: list[float]


def read_slices(scan: str, model: TrainedModel) -> Cut:
    """Slices of a scan, cut as the weights' training slices were."""
    record = model.record
    cut = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            ScaleForegroundd("image"),
            ExtractSlicesd("image", plane=record.plane, positions=POSITIONS, pixel_mm=record.pixel_mm),
            FitToSized("image", size=record.image_size, on_trim="warn"),
        ]
    )
    images = [item["image"] for item in cut({"image": scan})]
    return Cut(torch.stack([image.as_tensor() for image in images]), [float(i.meta["position_mm"]) for i in images])


def main() -> None:
    """Reconstruct, score, sample, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan")
    parser.add_argument("output_dir")
    options = parser.parse_args()
    model = TrainedModel.from_bundle()
    slices, positions = read_slices(options.scan, model)
    codes = model.encode(slices)  # integers, coarsest level first
    again = {"reconstruction": model.decode(codes), "coarsest level\nalone": model.decode(codes[:1])}
    for name, images in {**again, "all black": torch.zeros_like(slices)}.items():
        scores = mean_scores([reconstruction_scores(images, slices)])
        print(f"{' '.join(name.split())}: PSNR {scores['psnr']:.1f} dB, SSIM {scores['ssim']:.3f}")
    drawn = [model.sample(position_mm=position, seed=SEED).images for position in POSITIONS]  # settings as recorded
    marks = [f"{position:.0f} mm" for position in positions]
    rows = [PictureRow(name, images[:, 0].numpy(), marks=marks) for name, images in {"scan": slices, **again}.items()]
    difference = (again["reconstruction"] - slices)[:, 0].numpy()
    rows.append(PictureRow("reconstruction\nminus scan", difference, signed=True))
    rows.append(PictureRow("drawn anew,\nsynthetic", torch.cat(drawn)[:, 0].numpy()))
    Path(options.output_dir).mkdir(parents=True, exist_ok=True)
    save_rows(rows, Path(options.output_dir) / "slices.png")


if __name__ == "__main__":
    main()
