"""Volumes and slices as DICOM secondary captures labeled as derived and for research (extra `dicom`).

DICOM PS3.3, A.8.1 (Secondary Capture Image IOD), written by highdicom, with the attributes of the modules Frame of
Reference (C.7.4.1), Image Plane (C.7.6.2) and General Reference (C.12.4): a capture lies over its source in a viewer,
and read back it has the affine it was written with.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import monai_vqgen
from monai_vqgen.data.io.dicom import dicom_headers, is_dicom, read_dicom_file
from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.files import write_bytes
from monai_vqgen.transforms.geometry import PLANES, PlaneView, view_plane

__all__ = [
    "IDENTITY",
    "MANUFACTURER",
    "CaptureLabels",
    "check_highdicom",
    "content_uid",
    "fallback_study_uid",
    "source_headers",
    "write_secondary_captures",
]

logger = logging.getLogger(__name__)

MANUFACTURER = "monai_vqgen"
LARGEST = 2**16 - 1  # gray values are stored as unsigned 16 bit
FOOT_AND_HEAD = {"I": "F", "S": "H"}  # DICOM's letters for what NIfTI calls inferior and superior
LONGEST_TEXT, LONGEST_LABEL = 1024, 64  # characters of DICOM's value representations ST and LO
SHEAR = 1e-3  # cosine between rows and columns; DICOM's axes are at right angles
IDENTITY = {
    "study_instance_uid": "StudyInstanceUID",
    "patient_id": "PatientID",
    "patient_name": "PatientName",
    "patient_birth_date": "PatientBirthDate",
    "patient_sex": "PatientSex",
    "accession_number": "AccessionNumber",
    "study_id": "StudyID",
    "study_date": "StudyDate",
    "study_time": "StudyTime",
    "referring_physician_name": "ReferringPhysicianName",
}


class CaptureLabels(NamedTuple):
    """How the captures are labeled.

    Attributes:
        series_description: the name of the series in a viewer, at most 64 characters.
        derivation: how the images were made, at most 1,024 characters.
        patient: PatientID where there is no source.
        source: a file of the DICOM series they were derived from, or the folder of that series: patient, study and
            frame of reference are taken from it, and each capture refers to its images.
    """

    series_description: str
    derivation: str
    patient: str = ""
    source: Path | None = None


def write_secondary_captures(
    folder: str | Path, volume_s: NDArray, *, affine: NDArray, plane: str, labels: CaptureLabels
) -> list[Path]:
    """Write one capture per plane: `0001.dcm`, `0002.dcm` and so on, in the order of increasing position.

    Gray values are stored in 16 bits between the volume's smallest and largest; slope and intercept recover them.
    Equal images in the same place get equal identifiers, so an archive recognizes those it already has. DICOM cannot
    place a sheared volume: its captures carry no position, which is logged.

    Args:
        folder: created if missing; each file is complete or absent.
        volume_s: `[X, Y, Z]`, or a slice `[H, W, 1]`; finite.
        affine: 4x4, voxel centers to RAS+ millimeters.
        plane: "axial", "coronal" or "sagittal": how the planes are cut and drawn.
        labels: names and origin of the images.

    Returns:
        The files.

    Raises:
        InputError: highdicom is missing, labels that are too long, or an unknown plane.
        ScanError: not a finite volume, or a source that is not DICOM or holds no image.
    """
    highdicom = check_highdicom()
    _check_labels(labels)
    name = labels.series_description
    if not np.isfinite(volume_s).all():
        raise ScanError(f"{name}: gray values are NaN or infinite; nothing was written")
    view = view_plane(np.asarray(volume_s, dtype=np.float64), affine, plane, name=name)
    low, high = float(view.volume_s.min()), float(view.volume_s.max())
    slope = (high - low) / LARGEST or 1.0
    stored_s = np.rint((view.volume_s - low) / slope).astype(np.uint16)
    series = content_uid(highdicom, plane, labels, stored_s.tobytes() + np.append(view.affine, [slope, low]).tobytes())
    sources = source_headers(labels.source)
    identity = _identity(labels, sources, study=fallback_study_uid(highdicom, labels, sources))
    frame = next((h.FrameOfReferenceUID for h in sources if h.get("FrameOfReferenceUID")), None)
    frame = frame or content_uid(highdicom, f"{series} frame of reference", labels)
    references = _references(sources)
    down, right = (FOOT_AND_HEAD.get(code, code) for code in PLANES[plane][:2])
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(1, stored_s.shape[2] + 1):
        image = highdicom.sc.SCImage(
            pixel_array=np.ascontiguousarray(stored_s[:, :, number - 1]),
            photometric_interpretation="MONOCHROME2",
            bits_allocated=16,
            coordinate_system="PATIENT",
            series_instance_uid=series,
            series_number=1,
            sop_instance_uid=content_uid(highdicom, f"{series} {number}", labels),
            instance_number=number,
            manufacturer=MANUFACTURER,
            pixel_spacing=view.spacing[:2],
            patient_orientation=(right, down),
            **identity,
        )
        _label(image, labels, slope=slope, intercept=low)
        _place(image, view, number - 1, frame, name=name)
        if references:
            image.SourceImageSequence = references
        paths.append(Path(folder) / f"{number:04d}.dcm")
        content = io.BytesIO()
        image.save_as(content)
        write_bytes(paths[-1], content.getvalue(), durable=False)
    return paths


def check_highdicom() -> Any:
    """The package that writes DICOM objects.

    Raises:
        InputError: it is not installed.
    """
    try:
        import highdicom
    except ImportError as error:
        raise InputError("DICOM output needs highdicom; pip install 'monai-vqgen[dicom]'") from error
    return highdicom


def _check_labels(labels: CaptureLabels) -> None:
    for name, text, longest in (
        ("series_description", labels.series_description, LONGEST_LABEL),
        ("derivation", labels.derivation, LONGEST_TEXT),
        ("patient", labels.patient, LONGEST_LABEL),
    ):
        if len(text) > longest:
            raise InputError(f"{name} has {len(text)} characters; DICOM allows {longest}: shorten it")


def content_uid(highdicom: Any, what: str, labels: CaptureLabels, content: bytes = b"") -> str:
    """A UID that depends only on the labels and the content."""
    words = [what, labels.series_description, labels.derivation, labels.patient, hashlib.sha256(content).hexdigest()]
    number = int.from_bytes(hashlib.sha256("\n".join(words).encode()).digest()[:16], "big")
    return str(highdicom.UID.from_uuid(f"{number:032x}"))


def fallback_study_uid(highdicom: Any, labels: CaptureLabels, sources: Sequence[Any]) -> str:
    """The UID of a study for what is made of a series that names none; the same whatever is made of it.

    Args:
        highdicom: the library.
        labels: of what is made; they count where no source has a series.
        sources: headers of the series.
    """
    series = sources[0].get("SeriesInstanceUID") if sources else None
    if not series:
        return content_uid(highdicom, "study", labels)
    return content_uid(highdicom, "study", CaptureLabels("", ""), str(series).encode())


def source_headers(source: Path | None) -> Sequence[Any]:
    """The headers of the source's images."""
    if source is None:
        return ()
    if source.is_dir():
        headers = [header for _, header in dicom_headers(source, stop_before_pixels=True)]
        if not headers:
            raise ScanError(f"{source}: holds no DICOM image; give the folder of the source series")
        return headers
    try:
        return [read_dicom_file(source, stop_before_pixels=True, force=is_dicom(source))]
    except Exception as error:  # pydicom raises many kinds for files that are not DICOM
        raise ScanError(f"{source}: not a DICOM file ({error}); give a file of the source series") from error


def _identity(labels: CaptureLabels, sources: Sequence[Any], *, study: str) -> dict[str, Any]:
    """The patient and study of the images."""
    if not sources:
        return {"study_instance_uid": study, "patient_id": labels.patient or None}
    found = {ours: sources[0].get(theirs) or None for ours, theirs in IDENTITY.items()}
    return {**found, "study_instance_uid": found["study_instance_uid"] or study}


def _place(image: Any, view: PlaneView, index: int, frame: str, *, name: str) -> None:
    """The frame of reference, and the plane's place in it."""
    from pydicom.valuerep import DS

    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ view.affine
    down, right, _ = (lps[:3, :3] / view.spacing).T
    if abs(down @ right) > SHEAR:
        if index == 0:
            logger.warning("%s: rows and columns are not at right angles; the captures carry no position", name)
        return
    image.FrameOfReferenceUID, image.PositionReferenceIndicator = frame, None
    image.ImagePositionPatient = [DS(float(x), auto_format=True) for x in (lps @ [0, 0, index, 1])[:3]]
    image.ImageOrientationPatient = [DS(float(x), auto_format=True) for x in (*right, *down)]
    image.SliceThickness = image.SpacingBetweenSlices = DS(view.spacing[2], auto_format=True)


def _references(sources: Sequence[Any]) -> list[Any]:
    """The images that the captures were derived from: each plane depends on a volume to which all of them belong."""
    from highdicom.sr import CodedConcept
    from pydicom import Dataset
    from pydicom.sr.codedict import codes

    purpose = CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)
    items = []
    for header in sources:
        if header.get("SOPClassUID") and header.get("SOPInstanceUID"):
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
            item.PurposeOfReferenceCodeSequence = [purpose]
            items.append(item)
    return items


def _label(image: Any, labels: CaptureLabels, *, slope: float, intercept: float) -> None:
    image.SeriesDescription = labels.series_description
    image.DerivationDescription = labels.derivation
    image.ImageComments = "Made by a generative model; for research, not for diagnosis."
    image.BurnedInAnnotation = "NO"
    image.SoftwareVersions = f"monai_vqgen {monai_vqgen.__version__}"
    image.RescaleSlope, image.RescaleIntercept, image.RescaleType = f"{slope:.9g}", f"{intercept:.9g}", "US"
    middle, width = intercept + slope * LARGEST / 2, slope * LARGEST
    image.WindowCenter, image.WindowWidth = f"{middle:.9g}", f"{width:.9g}"
