"""The networks without MONAI's engines: python examples/plain_pytorch.py SLICES OUTPUT_FOLDER [--steps 300]

A training loop of one's own on slices that extract_slices.json has cut: codebooks learn in `train_pass`, everything
else is an ordinary module. Reconstructions are drawn below the slices.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from monai_vqgen.apps.pictures import PictureRow, save_rows
from monai_vqgen.data import load_datalist
from monai_vqgen.networks import EMACodebook, HierarchicalVQVAE
from monai_vqgen.transforms import LoadSlice


def read(folder: str, split: str) -> torch.Tensor:
    """All slices of a split, `(n, 1, H, W)` in [0, 1]."""
    load = LoadSlice()
    return torch.stack([load(record["image"]).as_tensor() for record in load_datalist(folder, split)])


def main() -> None:
    """Train, and draw reconstructions of slices of other subjects."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slices")
    parser.add_argument("output_dir")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    torch.manual_seed(0)
    training, test = read(options.slices, "training"), read(options.slices, "test")
    network = HierarchicalVQVAE(strides=(8, 4), channels=32, quantizers=[EMACodebook(128, 8), EMACodebook(128, 8)])
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for step in range(options.steps):
        images = training[torch.randint(len(training), (8,))]
        reconstruction, levels = network.train_pass(images)
        loss = F.mse_loss(reconstruction, images) + sum(level.loss for level in levels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == options.steps - 1:
            print(f"step {step}: loss {float(loss):.5f}")
    network.eval()
    shown = test[:: max(1, len(test) // 8)][:8]
    with torch.no_grad():
        again = network(shown).clamp(0, 1)
    print(f"PSNR on other subjects: {-10 * float(F.mse_loss(again, shown).log10()):.1f} dB")
    rows = [PictureRow("test slices", shown[:, 0].numpy()), PictureRow("reconstructed", again[:, 0].numpy())]
    Path(options.output_dir).mkdir(parents=True, exist_ok=True)
    save_rows(rows, Path(options.output_dir) / "reconstructions.png")


if __name__ == "__main__":
    main()
