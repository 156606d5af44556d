"""Reconstructions as DICOM secondary captures beside the NIfTI files of `inference.json`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms import MapTransform
from nibabel.orientations import aff2axcodes

from monai_vqgen.data import CaptureLabels, write_secondary_captures
from monai_vqgen.data.io.captures import check_highdicom
from monai_vqgen.errors import ScanError
from monai_vqgen.models.reconstruction_files import capture_folder
from monai_vqgen.transforms.geometry import PLANES

__all__ = ["SaveSecondaryCapturesd", "plane_through"]

DERIVATION = "Reconstruction from the discrete codes of a vector-quantised autoencoder; details are lost."


def plane_through(affine: np.ndarray) -> str:
    """The plane in which a slice `[H, W, 1]` lies: that of its third axis.

    Example:
        >>> plane_through(np.diag([1.0, 1.0, -3.0, 1.0]))
        'axial'
    """
    normal = aff2axcodes(affine)[2]
    ends = ("RL", "AP", "SI")
    return next(plane for plane, codes in PLANES.items() for pair in ends if normal in pair and codes[2] in pair)


class SaveSecondaryCapturesd(MapTransform):
    """Write `[1, X, Y, Z]` or `[1, H, W, 1]` as a folder of secondary captures named after the input's file.

    Args:
        keys: entries of the dictionary, MetaTensors with `filename_or_obj`: of a folder with a DICOM series patient
            and study go into the captures, of a file its name goes there as the patient.
        output_dir: where the folders go.
        dataset_dir: what the inputs' paths are taken relative to.
        postfix: follows the input's name.
        plane: how volumes are cut; slices lie in their own plane.

    Raises:
        ScanError: an image of another shape.
        InputError: highdicom is not installed.
    """

    def __init__(
        self, keys: KeysCollection, *, output_dir: str | Path, dataset_dir: str | Path, postfix: str, plane: str
    ) -> None:
        super().__init__(keys)
        check_highdicom()  # before hours of work, not after
        self.output_dir, self.dataset_dir = Path(output_dir), Path(dataset_dir).resolve()
        self.postfix, self.plane = postfix, plane

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write each entry; the dictionary comes back as it was."""
        for key in self.key_iterator(dict(data)):
            self._write(data[key])
        return dict(data)

    def _write(self, image: MetaTensor) -> None:
        path = Path(str(image.meta["filename_or_obj"]))
        voxels = np.asarray(image.as_tensor()[0].cpu())
        if voxels.ndim not in (2, 3):
            raise ScanError(f"{path}: shape {tuple(image.shape)} is neither a volume nor a slice.")
        affine = np.asarray(image.affine.cpu(), dtype=np.float64)
        volume_s = voxels if voxels.ndim == 3 else voxels[..., None]
        write_secondary_captures(
            self.output_dir / capture_folder(path, self.dataset_dir, self.postfix),
            volume_s,
            affine=affine,
            plane=plane_through(affine) if volume_s.shape[2] == 1 else self.plane,
            labels=CaptureLabels(
                series_description="Reconstruction (monai_vqgen)",
                derivation=DERIVATION,
                patient=path.name.split(".")[0][:64],
                source=path if path.is_dir() else None,
            ),
        )
