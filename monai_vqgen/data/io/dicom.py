"""DICOM series: one folder, one series, one regular volume (extra `dicom`).

files --is_dicom--> images --planes_of--> planes --stack_planes--> checked, in order --highdicom--> voxels and affine
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_vqgen.data.io.planes import SPACING_TOLERANCE, Plane, planes_of, stack_planes
from monai_vqgen.errors import ScanError
from monai_vqgen.transforms.geometry import check_affine
from monai_vqgen.transforms.nifti import StoredVoxels, check_unfolding

__all__ = ["dicom_headers", "dicom_series_folders", "is_dicom", "patient_id", "read_dicom_series"]

logger = logging.getLogger(__name__)

FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # 0002 and 0008, the latter also with the high byte first
RESCALING = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence")


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: DICM after a preamble of 128 bytes, or without a preamble a header that names its class.

    The latter needs pydicom.
    """
    try:
        if not path.is_file():  # a pipe would wait for ever
            return False
        with path.open("rb") as file:
            head = file.read(132)
    except OSError:
        return False
    return head[128:] == b"DICM" or (head[:2] in FIRST_GROUPS and _tag(path, "SOPClassUID") is not None)


def _tag(path: Path, keyword: str) -> str | None:
    """A value of a file's header, as text; None where it is missing or the file cannot be read."""
    try:
        import pydicom

        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[keyword], force=True)
        return str(header.get(keyword) or "") if keyword in header else None
    except Exception:  # pydicom raises many kinds for what is not DICOM or damaged: reading the series reports it
        return None


def dicom_series_folders(files: Iterable[Path]) -> list[Path]:
    """The folders that hold a DICOM file, whatever else is in them."""
    found: dict[Path, None] = {}
    for path in files:
        if path.parent not in found and path.name != "DICOMDIR" and is_dicom(path):
            found[path.parent] = None
    return list(found)


def dicom_headers(folder: Path, **options: Any) -> list[tuple[Path, Any]]:
    """The DICOM images of a folder by name, read by pydicom with the options; reports and the like are left out.

    Raises:
        ScanError: a file that cannot be read, or has lost its image.
    """
    import pydicom

    images: list[tuple[Path, Any]] = []
    others: list[tuple[Path, Any]] = []
    for path in sorted(folder.iterdir()):
        if not is_dicom(path):
            continue
        try:
            image = pydicom.dcmread(path, force=True, **options)
            (images if "Rows" in image else others).append((path, image))
        except Exception as error:  # pydicom raises many kinds for damaged files
            raise ScanError(f"{path}: unreadable DICOM file ({error}); export it again") from error
    classes = {_class(image) for _, image in images} | {""}
    for path, other in others:
        if images and _class(other) in classes:
            raise ScanError(f"{path}: has no image, though its class is that of the others: damaged; export it again")
    if others:
        logger.info("%s: %d DICOM files without an image are left out (%s)", folder, len(others), others[0][0].name)
    return images


def _class(image: Any) -> str:
    return str(image.get("SOPClassUID") or image.file_meta.get("MediaStorageSOPClassUID") or "")


def patient_id(folder: Path) -> str | None:
    """PatientID of the first DICOM file in a folder; None where it is empty, missing or cannot be read."""
    first = next((path for path in sorted(folder.iterdir()) if is_dicom(path)), None)
    return ((first and _tag(first, "PatientID")) or "").strip() or None


def read_dicom_series(folder: Path, *, max_bytes: int | None = None) -> StoredVoxels:
    """Read the DICOM series in a folder: images of one frame each, or one enhanced image of many frames.

    Planes are sorted by their position. Values are as stored, or rescaled where the header says so (float64).
    MONOCHROME1, where large values are dark, is inverted: the series' largest value becomes 0.

    Args:
        folder: what in it is not DICOM, or holds no image, is left out.
        max_bytes: of voxels, in memory; see `check_unfolding`.

    Raises:
        ScanError: highdicom is missing, files that cannot be read, several series, color, too large, or not one
            regular volume (see `stack_planes`).
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise ScanError(f"{folder}: reading DICOM needs highdicom; pip install 'monai-vqgen[dicom]'") from error
    found = dicom_headers(folder)
    images = [image for _, image in found]
    planes = [plane for path, image in found for plane in planes_of(path.name, image)]
    _check_series(folder, images, planes)
    stack = stack_planes(folder, planes)
    inverted = _check_gray(folder, planes)
    first = planes[0]
    count = len(planes) * first.get("Rows") * first.get("Columns") * 8  # rescaled values are float64
    check_unfolding(folder, count, max_bytes, file_bytes=sum(path.stat().st_size for path, _ in found))
    try:
        voxels = _pixels(images, planes, first=stack.positions[0])
    except Exception as error:  # pydicom and highdicom raise many kinds for damaged files
        raise ScanError(f"{folder}: unreadable DICOM series ({error}); export it again") from error
    if inverted:
        voxels = voxels.max() - voxels.astype(np.float64)  # a difference of int16 may not fit in int16
    return StoredVoxels(np.ascontiguousarray(voxels), check_affine(stack.affine, str(folder)))


def _check_series(folder: Path, images: Sequence[Any], planes: Sequence[Plane]) -> None:
    series = {str(image.get("SeriesInstanceUID")) for image in images}
    if len(series) > 1:
        raise ScanError(f"{folder}: holds {len(series)} DICOM series; give each a folder of its own")
    if len(planes) > len(images) > 1:
        raise ScanError(f"{folder}: holds {len(images)} images of many frames; give each a folder of its own")
    if len(planes) < 2:
        raise ScanError(f"{folder}: {len(planes)} DICOM slices; expected a series of at least two")


def _check_gray(folder: Path, planes: Sequence[Plane]) -> bool:
    """Whether large values are dark; raises for color or a mixture."""
    kinds = {str(plane.get("PresentationLUTShape") or plane.get("PhotometricInterpretation")) for plane in planes}
    colors = {str(plane.get("PhotometricInterpretation")) for plane in planes}
    if not colors <= {"MONOCHROME1", "MONOCHROME2"} or len(kinds) > 1:
        raise ScanError(f"{folder}: the pixels are {', '.join(sorted(colors))}; expected one kind of gray values")
    return kinds <= {"INVERSE", "MONOCHROME1"}


def _pixels(images: Sequence[Any], planes: Sequence[Plane], *, first: NDArray) -> NDArray:
    """Voxels `[columns, rows, planes]`, the planes sorted by position from the first on."""
    import highdicom
    from pydicom.pixels.utils import pixel_dtype

    for image in images:
        _complete(image)
    rescaled = any(plane.get(keyword) is not None for plane in planes for keyword in RESCALING)
    options: dict[str, Any] = {
        "dtype": np.float64 if rescaled else pixel_dtype(images[0], as_float="PixelData" not in images[0]),
        "apply_real_world_transform": False,
        "apply_voi_transform": False,
        "apply_presentation_lut": False,
        "apply_icc_profile": False,
        "rtol": SPACING_TOLERANCE,
    }
    if len(planes) > len(images):
        volume = highdicom.Image.from_dataset(images[0], copy=False).get_volume(**options)
    else:
        volume = highdicom.get_volume_from_series(images, orientation_tol=SPACING_TOLERANCE, **options)
    assert np.allclose(volume.position, first), "highdicom sorts the pixels as it sorts the positions"
    return volume.array.transpose(2, 1, 0)


def _complete(image: Any) -> None:
    """What highdicom asks for and older files lack: how the pixels are encoded, and a name of their common space."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if "TransferSyntaxUID" not in image.file_meta:  # a file without preamble
        implicit, little = image.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    if not image.get("FrameOfReferenceUID"):
        image.FrameOfReferenceUID = image.SeriesInstanceUID
