"""The networks without MONAI's engines: python examples/plain_pytorch.py SLICES OUTPUT_FOLDER [--steps 300]

A training loop of one's own on slices that extract_slices.json has cut: codebooks learn in `train_pass`, everything
else is an ordinary module. Reconstructions are drawn below the slices.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from monai_vqgen.data import load_datalist
from monai_vqgen.metrics import mean_image
from monai_vqgen.networks import EMACodebook, HierarchicalVQVAE
from monai_vqgen.plots.pictures import PictureRow, save_rows
from monai_vqgen.transforms import LoadSlice


class Slices(NamedTuple):
    """Attributes: `images`: `(n, 1, H, W)` in [0, 1]; `names`: whose and where, one a slice."""

    images: torch.Tensor
    names: list[str]


def read(folder: str, split: str) -> Slices:
    """All slices of a split."""
    load, records = LoadSlice(), load_datalist(folder, split)
    names = [f"{record['subject']}, {record['position_mm']:.0f} mm" for record in records]
    return Slices(torch.stack([load(record["image"]).as_tensor() for record in records]), names)


def decibels(images: torch.Tensor, originals: torch.Tensor) -> float:
    """Peak signal-to-noise ratio over all pixels."""
    return -10 * float(F.mse_loss(images, originals).log10())


def main() -> None:
    """Train, and draw reconstructions of slices of other subjects."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slices")
    parser.add_argument("output_dir")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    torch.manual_seed(0)
    training, test = read(options.slices, "training"), read(options.slices, "test")
    network = HierarchicalVQVAE(strides=(4, 2), channels=32, quantizers=[EMACodebook(128, 8), EMACodebook(128, 8)])
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for step in range(options.steps):
        images = training.images[torch.randint(len(training.images), (8,))]
        reconstruction, levels = network.train_pass(images)
        loss = F.mse_loss(reconstruction, images) + sum(level.loss for level in levels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == options.steps - 1:
            print(f"step {step}: loss {loss.item():.5f}")
    network.eval()
    with torch.no_grad():
        again = network(test.images).clamp(0, 1)
    mean = mean_image([training.images]).expand_as(test.images)
    scores = decibels(again, test.images), decibels(mean, test.images)
    print(f"PSNR on other subjects: {scores[0]:.1f} dB (mean training image: {scores[1]:.1f} dB)")
    shown = torch.linspace(0, len(again) - 1, min(8, len(again))).long().tolist()
    drawn = {"test slices": test.images, "reconstructed": again}
    marks = [test.names[i] for i in shown]
    rows = [PictureRow(name, images[shown, 0].numpy(), marks=marks) for name, images in drawn.items()]
    Path(options.output_dir).mkdir(parents=True, exist_ok=True)
    save_rows(rows, Path(options.output_dir) / "reconstructions.png")


if __name__ == "__main__":
    main()
