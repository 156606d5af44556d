"""Slices through MONAI's caching data sets: python examples/cached_datasets.py SCANS OUTPUT_FOLDER

A volume is loaded, normalised and cut once, and its slices come from memory (CacheDataset) or from disk
(PersistentDataset) ever after; random transforms follow the cache. A volume gives several slices, which MONAI's
loader flattens into one batch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from monai.data import CacheDataset, Dataset, PersistentDataset, ThreadDataLoader
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, RandFlipd

from monai_vqgen.apps.pictures import grid_picture, save_png
from monai_vqgen.data import discover_volumes
from monai_vqgen.transforms import ExtractSlicesd, FitToSized, ScaleForegroundd

TRANSFORM = Compose(
    [
        LoadImaged("image"),
        EnsureChannelFirstd("image"),
        ScaleForegroundd("image"),
        ExtractSlicesd("image", plane="axial", positions=[50.0, 60.0, 70.0], pixel_mm=1.736),
        FitToSized("image", size=(128, 128), on_trim="warn"),
        RandFlipd("image", prob=0.5, spatial_axis=1),
    ]
)


def batches(dataset: Dataset) -> list[torch.Tensor]:
    """All images of a data set, in batches of two volumes."""
    loader = ThreadDataLoader(dataset, batch_size=2, num_workers=0)
    return [batch["image"].as_tensor() for batch in loader]


def main() -> None:
    """Compare what the caches give."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scans")
    parser.add_argument("output_dir")
    options = parser.parse_args()
    output = Path(options.output_dir)
    files = [{"image": str(scan.path)} for scan in discover_volumes(options.scans)[:4]]
    in_memory = CacheDataset(files, TRANSFORM, num_workers=2, progress=False)
    on_disk = PersistentDataset(files, TRANSFORM, cache_dir=output / "cache")
    for name, dataset in {"memory": in_memory, "disk": on_disk}.items():
        images = torch.cat(batches(dataset))
        print(f"{name}: {tuple(images.shape)}, from {images.min():.2f} to {images.max():.2f}")
    save_png(grid_picture(images[:, 0].numpy(), columns=3), output / "batch.png")


if __name__ == "__main__":
    main()
