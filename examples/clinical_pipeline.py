"""Our transforms among MONAI's: python examples/clinical_pipeline.py SCAN.nii.gz OUTPUT_FOLDER

One scan of any orientation in; three central slices out, one an anatomical plane, denoised by a transform of MONAI's,
written as NIfTI in their place in the scanner's space, and drawn side by side.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, MedianSmoothd

from monai_vqgen.apps.pictures import PictureRow, save_rows
from monai_vqgen.data.writing import write_slice_nifti
from monai_vqgen.transforms import ExtractSliced, FitToSized, ScaleForegroundd


def pipeline(plane: str) -> Compose:
    """From a scan's file to a normalised central slice of 128x128 pixels of 1.736 mm."""
    return Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            ScaleForegroundd("image"),
            ExtractSliced("image", plane=plane, pixel_mm=1.736),
            FitToSized("image", size=(128, 128), on_trim="warn"),
            MedianSmoothd("image", radius=1),
        ]
    )


def main() -> None:
    """Run the pipeline for each plane."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan")
    parser.add_argument("output_dir")
    options = parser.parse_args()
    planes = ("axial", "coronal", "sagittal")
    slices = [pipeline(plane)({"image": options.scan})["image"] for plane in planes]
    output = Path(options.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    for plane, image in zip(planes, slices, strict=True):
        about = {"plane": plane, "position_mm": image.meta["position_mm"]}
        write_slice_nifti(output / f"{plane}.nii.gz", image[0].numpy(), image.affine.numpy(), about)
        print(f"{plane}: {image.meta['position_mm']:.1f} mm from the brain's edge, affine\n{image.affine.numpy()}")
    pictures = np.stack([image[0].numpy() for image in slices])
    save_rows([PictureRow("axial, coronal,\nsagittal", pictures)], output / "planes.png")


if __name__ == "__main__":
    main()
