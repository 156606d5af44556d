"""DICOM series: one folder, one series, one regular volume (extra `dicom`).

files --is_dicom--> images --planes_of--> planes --stack_planes--> checked, in order --highdicom--> voxels and affine
"""

from __future__ import annotations

import io
import logging
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_vqgen.data.io.planes import SPACING_TOLERANCE, Plane, planes_of, stack_planes
from monai_vqgen.errors import ScanError
from monai_vqgen.transforms.geometry import check_affine
from monai_vqgen.transforms.nifti import MAX_RATIO, StoredVoxels, check_unfolding

__all__ = ["dicom_headers", "dicom_series_folders", "is_dicom", "patient_id", "read_dicom_file", "read_dicom_series"]

logger = logging.getLogger(__name__)

FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # 0002 and 0008, the latter also with the high byte first
INFLATED_BYTES = 2**20  # any deflated file may unpack to that much, else to MAX_RATIO times its size
RESCALING = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence")


class _Bounded(io.BufferedReader):
    """A file that is never asked for more than it has: Python sets aside what a lying length announces."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self.tell())
        if size is not None and size >= 0:
            return super().read(min(size, left))
        content = super().read(left)  # pydicom asks for the whole rest only to inflate it, to whatever that gives
        limit = max(INFLATED_BYTES, MAX_RATIO * left)
        if len(zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, limit + 1)) > limit:
            raise ScanError(f"{self.name}: unpacks to more than {limit >> 20} MiB; export it without deflate")
        return content


def read_dicom_file(path: Path, **options: Any) -> Any:
    """One file by pydicom, with the options of its `dcmread`; raises whatever that does."""
    import pydicom

    with _Bounded(path) as file:
        return pydicom.dcmread(file, **{"force": True, **options})


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
    return head[128:] == b"DICM" or (head[:2] in FIRST_GROUPS and _names_its_class(path))


def _names_its_class(path: Path) -> bool:
    try:
        return "SOPClassUID" in read_dicom_file(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    except Exception:  # pydicom raises many kinds for what is not DICOM; without pydicom nothing is read anyway
        return False


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
    images: list[tuple[Path, Any]] = []
    others: list[tuple[Path, Any]] = []
    for path in sorted(folder.iterdir()):
        if not is_dicom(path):
            continue
        try:
            image = read_dicom_file(path, **options)
            _class(image)  # values are decoded when they are first looked at
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
    if first is None:
        return None
    try:
        header = read_dicom_file(first, stop_before_pixels=True, specific_tags=["PatientID"])
        return str(header.get("PatientID") or "").strip() or None
    except Exception:  # pydicom raises many kinds for damaged files; reading the series reports the fault
        return None


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
    try:
        return _series(folder, max_bytes)
    except ScanError:
        raise
    except Exception as error:  # pydicom and highdicom raise many kinds for damaged files, and wherever a value is read
        raise ScanError(f"{folder}: unreadable DICOM series ({error}); export it again") from error


def _series(folder: Path, max_bytes: int | None) -> StoredVoxels:
    found = dicom_headers(folder)
    images = [image for _, image in found]
    planes = [plane for path, image in found for plane in planes_of(path.name, image)]
    _check_series(folder, images, planes)
    stack = stack_planes(folder, planes)
    inverted = _check_gray(folder, planes)
    first = planes[0]
    count = len(planes) * first.get("Rows") * first.get("Columns") * 8  # rescaled values are float64
    check_unfolding(folder, count, max_bytes, file_bytes=sum(path.stat().st_size for path, _ in found))
    voxels = _pixels(images, planes, first=stack.positions[0])
    voxels = _without_padding(voxels, [planes[k] for k in stack.order], bright=not inverted)
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
    if colors == {"MONOCHROME1"} and kinds == {"IDENTITY"}:
        raise ScanError(
            f"{folder}: MONOCHROME1 and PresentationLUTShape IDENTITY contradict each other; export it again"
        )
    for plane in planes:
        if (plane.get("BitsStored") or 0) - 1 != plane.get("HighBit") and plane.get("HighBit") is not None:
            raise ScanError(
                f"{folder}: {plane.name} stores {plane.get('BitsStored')} bits up to bit {plane.get('HighBit')}; "
                "expected the lowest bits of each pixel; export the series again"
            )
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


def _without_padding(voxels: NDArray, planes: Sequence[Plane], *, bright: bool) -> NDArray:
    """Voxels `[columns, rows, planes]` whose padding, where it is not dark, is as dark as the darkest other voxel.

    Padding (PS3.3, C.7.5.1.1.2) is what no scanner has measured; `bright` says whether large values are.
    """
    padded = np.zeros(voxels.shape, dtype=bool)
    for k, plane in enumerate(planes):
        if (value := plane.get("PixelPaddingValue")) is None or plane.get("ModalityLUTSequence"):
            continue
        limit = plane.get("PixelPaddingRangeLimit")
        slope, intercept = plane.get("RescaleSlope"), plane.get("RescaleIntercept")
        ends = np.array([value, value if limit is None else limit], dtype=np.float64)
        low, high = np.sort(ends * (1 if slope is None else float(slope)) + float(intercept or 0))
        padded[..., k] = (voxels[..., k] >= low) & (voxels[..., k] <= high)
    if not padded.any() or padded.all():
        return voxels
    measured = voxels[~padded]
    darkest = measured.min() if bright else measured.max()
    lighter = voxels > darkest if bright else voxels < darkest
    return np.where(padded & lighter, darkest, voxels)


def _complete(image: Any) -> None:
    """What highdicom asks for and older files lack: how the pixels are encoded, and a name of their common space."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if "TransferSyntaxUID" not in image.file_meta:  # a file without preamble
        implicit, little = image.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    if not image.get("FrameOfReferenceUID"):
        image.FrameOfReferenceUID = image.SeriesInstanceUID
