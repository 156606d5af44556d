"""Slices through MONAI's caching data sets: python examples/cached_datasets.py SCANS OUTPUT_FOLDER

A volume is loaded, normalized and cut once, and its slices come from memory (CacheDataset) or from disk
(PersistentDataset) ever after; random transforms follow the cache, so every epoch mirrors anew. A volume gives several
slices, which MONAI's loader flattens into one batch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from monai.data import CacheDataset, Dataset, PersistentDataset, ThreadDataLoader
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, RandFlipd

from monai_vqgen.data import discover_volumes
from monai_vqgen.plots.pictures import PictureRow, save_rows
from monai_vqgen.transforms import ExtractSlicesd, FitToSized, ScaleForegroundd

POSITIONS = [50.0, 60.0, 70.0]  # mm below the top of the brain
EPOCHS = 2
TRANSFORM = Compose(
    [
        LoadImaged("image"),
        EnsureChannelFirstd("image"),
        ScaleForegroundd("image"),
        ExtractSlicesd("image", plane="axial", positions=POSITIONS, pixel_mm=1.736),
        FitToSized("image", size=(128, 128), on_trim="warn"),
        RandFlipd("image", prob=0.5, spatial_axis=1),
    ]
)


def epochs(dataset: Dataset) -> torch.Tensor:
    """All images of a data set, `(epoch, n, 1, H, W)`, read in batches of two volumes."""
    torch.manual_seed(0)  # the loader seeds the random transforms from it: both caches mirror alike
    loader = ThreadDataLoader(dataset, batch_size=2, num_workers=0)
    return torch.stack([torch.cat([batch["image"].as_tensor() for batch in loader]) for _ in range(EPOCHS)])


def main() -> None:
    """Compare what the caches give."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scans")
    parser.add_argument("output_dir")
    options = parser.parse_args()
    output = Path(options.output_dir)
    scans = discover_volumes(options.scans)[:4]
    files = [{"image": str(scan.path)} for scan in scans]
    in_memory = CacheDataset(files, TRANSFORM, num_workers=2, progress=False)
    on_disk = PersistentDataset(files, TRANSFORM, cache_dir=output / "cache")
    images = {"memory": epochs(in_memory), "disk": epochs(on_disk)}
    for name, slices in images.items():
        print(f"{name}: {tuple(slices[0].shape)}, from {slices.min():.2f} to {slices.max():.2f}")
    print(f"equal: {torch.equal(images['memory'], images['disk'])}")
    volumes = images["memory"][:, :, 0].unflatten(1, (len(scans), len(POSITIONS)))
    marks = [f"epoch {epoch}, {position:.0f} mm" for epoch in range(1, EPOCHS + 1) for position in POSITIONS]
    rows = [PictureRow(scan.subject, volumes[:, i].flatten(0, 1).numpy(), marks=marks) for i, scan in enumerate(scans)]
    save_rows(rows, output / "epochs.png", pixels=160)


if __name__ == "__main__":
    main()
