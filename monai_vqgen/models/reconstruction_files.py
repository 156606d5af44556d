"""Where `inference.json` writes: names that mirror the input's, known before the run; NIfTI, PNG, DICOM captures."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection, PathLike
from monai.data.folder_layout import FolderLayoutBase
from monai.data.meta_tensor import MetaTensor
from monai.transforms import MapTransform
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from monai_vqgen.data import CaptureLabels, CompleteNiftiWriter, write_secondary_captures
from monai_vqgen.data.io.captures import check_highdicom
from monai_vqgen.errors import DatalistError, ScanError
from monai_vqgen.files import place_of
from monai_vqgen.plots.pictures import as_shown, save_png
from monai_vqgen.transforms.geometry import PLANES, middle_slice, three_planes, view_plane
from monai_vqgen.transforms.loading import PICTURE_SUFFIXES

__all__ = [
    "ReconstructionLayout",
    "ReconstructionWriter",
    "SaveSecondaryCapturesd",
    "capture_folder",
    "plain_stem",
    "plane_through",
    "reconstruction_names",
]

NIFTI = ".nii.gz"
SHOWN_SHARE, MIN_RANGE = 0.999, 1e-6  # of a picture: voxels up to white, and the least that counts as white

INPUT_SUFFIXES = (".nii.gz", ".nii", *PICTURE_SUFFIXES)


def reconstruction_names(
    records: Sequence[Mapping[str, Any]], dataset_dir: str | Path, postfix: str, *, dicom: bool = False
) -> list[str]:
    """Where each reconstruction goes, relative to the output folder: the input's own path, with the postfix.

    Beside each NIfTI file goes a picture of it, `NAME_planes.png`.

    Args:
        records: with the path of each input.
        dataset_dir: what the inputs' paths are taken relative to.
        postfix: follows the input's name.
        dicom: also name the folders with secondary captures.

    Raises:
        DatalistError: two inputs would be written to one file.
    """
    folder = Path(dataset_dir).resolve()
    paths: dict[str, Path] = {}
    for record in records:
        path = Path(record["image"])
        name = _name(path, folder, postfix)
        if paths.setdefault(name, path) != path:
            raise DatalistError(f"{paths[name]} and {path} would both be written as {name}; rename or move one")
    captures = [capture_folder(path, folder, postfix) for path in paths.values()] if dicom else []
    pictures = {_picture_of(name): name for name in paths if name.endswith(NIFTI)}
    if twice := sorted(pictures.keys() & paths.keys()):
        raise DatalistError(
            f"{paths[twice[0]]} and the picture of {pictures[twice[0]]} would both be {twice[0]}: rename"
        )
    return [*paths, *pictures, *captures]


def _picture_of(name: str) -> str:
    return f"{name.removesuffix(NIFTI)}_planes.png"


def capture_folder(path: Path, dataset_dir: Path, postfix: str) -> str:
    """Where an input's secondary captures go, relative to the output folder."""
    return _name(path, dataset_dir, postfix, suffix="_dicom")


def _name(path: Path, folder: Path, postfix: str, *, suffix: str = "") -> str:
    suffix = suffix or (".png" if path.suffix.lower() in PICTURE_SUFFIXES else NIFTI)
    path = Path(os.path.normpath(path))  # not resolved: a link's own name counts
    parent = path.parent.relative_to(folder) if folder in path.parents else Path()
    return (parent / f"{plain_stem(path)}_{postfix}{suffix}").as_posix()


def plain_stem(path: Path) -> str:
    """The file name without .nii, .nii.gz, .png and so on; the name of a DICOM folder as it is, with all its dots."""
    suffix = next((suffix for suffix in INPUT_SUFFIXES if path.name.lower().endswith(suffix)), "")
    return path.name[: len(path.name) - len(suffix)]


class ReconstructionLayout(FolderLayoutBase):
    """The names of `reconstruction_names` for MONAI's `SaveImage`, whose own cut a folder 1.2.3.4 down to 1.2.3.

    Args:
        output_dir: where reconstructions go.
        dataset_dir: what the inputs' paths are taken relative to.
        postfix: follows the input's name.
    """

    def __init__(self, output_dir: PathLike, dataset_dir: PathLike, postfix: str) -> None:
        self.output_dir, self.dataset_dir, self.postfix = Path(output_dir), Path(dataset_dir).resolve(), postfix

    def filename(self, **kwargs: Any) -> Path:
        """The file for an input's path, which MONAI gives as `subject`; its folder is made."""
        name = _name(Path(kwargs["subject"]), self.dataset_dir, self.postfix)
        path = place_of(self.output_dir, name) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class ReconstructionWriter(CompleteNiftiWriter):
    """MONAI's image writer for these names: a picture comes back as PNG of 8 bits, anything else as NIfTI.

    Beside a NIfTI file goes a picture: of a volume its middle axial, coronal and sagittal slice, from 0 (black) to the
    value that 99.9 % of its voxels lie below (white).
    """

    def write(self, filename: PathLike, verbose: bool = False, **obj_kwargs: Any) -> None:
        """Write beside the file, then rename."""
        if not str(filename).endswith(".png"):
            picture_hw = self._middle_planes()  # first: MONAI puts its own object in the place of the array
            super().write(filename, verbose=verbose, **obj_kwargs)
            return save_png(picture_hw, _picture_of(str(filename)))
        pixels = np.asarray(self.data_obj, dtype=np.float32)
        return save_png(as_shown(np.moveaxis(pixels.reshape(*pixels.shape[:2], -1), -1, 0)), Path(filename))

    def _middle_planes(self) -> NDArray:
        voxels = np.asarray(self.data_obj, dtype=np.float32)
        channels = np.moveaxis(voxels.reshape(*voxels.shape[:3], -1), -1, 0)
        if voxels.shape[2] == 1:
            plane = plane_through(self.affine)
            slices = [middle_slice(view_plane(channel_s, self.affine, plane)) for channel_s in channels]
        else:
            slices = [three_planes(channel_s, self.affine) for channel_s in channels]
        return as_shown(np.stack(slices) / max(float(np.quantile(voxels, SHOWN_SHARE)), MIN_RANGE))


DERIVATION = "Reconstruction from the discrete codes of a vector-quantized autoencoder; details are lost."


def plane_through(affine: np.ndarray) -> str:
    """The plane in which a slice `[H, W, 1]` lies: that of its third axis.

    Examples:
        >>> plane_through(np.diag([1.0, 1.0, -3.0, 1.0]))
        'axial'
    """
    normal = aff2axcodes(affine)[2]
    ends = ("RL", "AP", "SI")
    return next(plane for plane, codes in PLANES.items() for pair in ends if normal in pair and codes[2] in pair)


class SaveSecondaryCapturesd(MapTransform):
    """Write `[1, X, Y, Z]` or `[1, H, W, 1]` as a folder of secondary captures named after the input's file.

    Args:
        keys: entries of the dictionary, MetaTensors with `filename_or_obj`: of a folder with a DICOM series patient,
            study, frame of reference and images go into the captures, of a file its name goes there as the patient.
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
        if len(image) > 1:
            raise ScanError(f"{path}: DICOM takes one channel, and there are {len(image)}; leave --dicom out")
        voxels = np.asarray(image.as_tensor()[0].cpu())
        if voxels.ndim not in (2, 3):
            raise ScanError(f"{path}: shape {tuple(image.shape)} is neither a volume nor a slice")
        affine = np.asarray(image.affine.cpu(), dtype=np.float64)
        name = capture_folder(path, self.dataset_dir, self.postfix)
        volume_s = voxels if voxels.ndim == 3 else voxels[..., None]
        write_secondary_captures(
            place_of(self.output_dir, name) / name,
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
