"""Our transforms among MONAI's: python examples/clinical_pipeline.py SCAN.nii.gz OUTPUT_FOLDER

One scan of any orientation in; three central slices out, one an anatomical plane, denoised by a transform of MONAI's,
written as NIfTI in their place in the scanner's space, and drawn side by side.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from monai.transforms import Compose, CopyItemsd, EnsureChannelFirstd, LoadImaged, MedianSmoothd, SaveImaged

from monai_vqgen.data import CompleteNiftiWriter
from monai_vqgen.plots.pictures import PictureRow, save_rows
from monai_vqgen.transforms import ExtractSliced, FitToSized, ScaleForegroundd


def pipeline(plane: str, output: Path) -> Compose:
    """From a scan's file to a normalized central slice of 128x128 pixels of 1.736 mm, and to a file of it."""
    return Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            ScaleForegroundd("image"),
            ExtractSliced("image", plane=plane, pixel_mm=1.736),
            FitToSized("image", size=(128, 128), on_trim="warn"),
            CopyItemsd("image", names="before"),
            MedianSmoothd("image", radius=1),
            SaveImaged(  # MONAI's own writer takes every slice for an axial one
                "image",
                output_dir=output / plane,
                output_postfix=plane,
                writer=CompleteNiftiWriter,
                resample=False,
                separate_folder=False,
                print_log=False,
            ),
        ]
    )


def main() -> None:
    """Run the pipeline for each plane."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan")
    parser.add_argument("output_dir")
    options = parser.parse_args()
    planes = ("axial", "coronal", "sagittal")
    output = Path(options.output_dir)
    items = [pipeline(plane, output)({"image": options.scan}) for plane in planes]
    for plane, image in zip(planes, [item["image"] for item in items], strict=True):
        print(f"{plane}: {image.meta['position_mm']:+.1f} mm from the brain's middle, affine\n{image.affine.numpy()}")
    rows = [
        PictureRow(label, np.stack([item[key][0].numpy() for item in items]), marks=planes)
        for label, key in {"cut": "before", "denoised,\nas written": "image"}.items()
    ]
    save_rows(rows, output / "planes.png", pixels=256)


if __name__ == "__main__":
    main()
