"""The weights that ship, in a program of one's own: python examples/pretrained_weights.py SCAN.nii.gz OUTPUT_FOLDER

Axial slices of a skull-stripped T1w scan become codes, and the codes become images again; below them slices of nobody,
drawn at the same positions. Research only, not for diagnosis.

Shape legend: b batch, c channels, s spatial axes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from torch import Tensor

from monai_vqgen.bundles import bundle_root
from monai_vqgen.inferers import crop
from monai_vqgen.metrics import mean_scores, reconstruction_scores
from monai_vqgen.models import TrainedPriors, draw_samples
from monai_vqgen.networks import HierarchicalVQVAE
from monai_vqgen.plots.pictures import PictureRow, save_rows
from monai_vqgen.transforms import ExtractSlicesd, FitToSized, ScaleForegroundd

SAMPLING: dict[str, Any] = {"num_samples": 1, "seed": 7, "temperature": (0.8, 1.0), "progress": False}
POSITIONS = (45.0, 55.0, 65.0, 75.0, 85.0, 95.0)  # mm below the top of the brain; the priors know 40 to 99


class Bundle(NamedTuple):
    """An autoencoder and the priors of its codes, in evaluation mode."""

    autoencoder: HierarchicalVQVAE
    priors: TrainedPriors


def load_bundle() -> Bundle:
    """The networks that `sample.json` describes, with the weights of `bundle/models`."""
    parser = ConfigParser()
    parser.read_config(bundle_root() / "configs" / "sample.json")
    parser["bundle_root"] = str(bundle_root())
    return Bundle(parser.get_parsed_content("network"), parser.get_parsed_content("priors"))


class Cut(NamedTuple):
    """Attributes: `images_bcs`: `(n, 1, H, W)` in [0, 1]; `positions_mm`: of their very planes, below the top."""

    images_bcs: Tensor
    positions_mm: list[float]


def read_slices(scan: str, priors: TrainedPriors) -> Cut:
    """Slices of a scan, cut as the weights' training slices were."""
    cut = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            ScaleForegroundd("image"),
            ExtractSlicesd("image", plane=priors.plane, positions=POSITIONS, pixel_mm=priors.pixel_mm),
            FitToSized("image", size=priors.image_size, on_trim="warn"),
        ]
    )
    images = [item["image"] for item in cut({"image": scan})]
    return Cut(torch.stack([image.as_tensor() for image in images]), [float(i.meta["position_mm"]) for i in images])


def reconstructions(autoencoder: HierarchicalVQVAE, images_bcs: Tensor) -> dict[str, Tensor]:
    """Slices by way of their codes, from all levels and from the coarsest alone."""
    with torch.no_grad():
        codes = autoencoder.encode(images_bcs.to(next(autoencoder.parameters()).device))  # integers, coarsest first
        decoded = {"reconstruction": autoencoder.decode(codes), "coarsest level\nalone": autoencoder.decode(codes[:1])}
    return {name: crop(images, images_bcs.shape[2:]).clamp(0, 1).cpu() for name, images in decoded.items()}


def main() -> None:
    """Reconstruct, score, sample, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan")
    parser.add_argument("output_dir")
    options = parser.parse_args()
    autoencoder, priors = load_bundle()
    slices, positions = read_slices(options.scan, priors)
    again = reconstructions(autoencoder, slices)
    for name, images in {**again, "all black": torch.zeros_like(slices)}.items():
        scores = mean_scores([reconstruction_scores(images, slices)])
        print(f"{' '.join(name.split())}: PSNR {scores['psnr']:.1f} dB, SSIM {scores['ssim']:.3f}")
    drawn = [
        draw_samples(autoencoder, priors, condition={"position_mm": position}, **SAMPLING) for position in POSITIONS
    ]
    rows = [PictureRow(name, images[:, 0].numpy()) for name, images in {"scan": slices, **again}.items()]
    difference = (again["reconstruction"] - slices)[:, 0].numpy()
    rows.append(PictureRow("reconstruction\nminus scan", difference, signed=True))
    rows.append(PictureRow("drawn anew,\nsynthetic", torch.cat([sample.images_ncs for sample in drawn])[:, 0].numpy()))
    Path(options.output_dir).mkdir(parents=True, exist_ok=True)
    titles = [f"{position:.0f} mm" for position in positions]
    save_rows(rows, Path(options.output_dir) / "slices.png", titles=titles)


if __name__ == "__main__":
    main()
