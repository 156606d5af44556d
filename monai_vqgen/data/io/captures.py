"""Volumes and slices as DICOM secondary captures labeled as derived and for research (extra `dicom`).

DICOM PS3.3, A.8.1 (Secondary Capture Image IOD), written by highdicom. A secondary capture has no position in the
scanner's space, only pixel spacing and patient orientation. The NIfTI files carry the affine.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import monai_vqgen
from monai_vqgen.data.io.dicom import is_dicom
from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.files import write_bytes
from monai_vqgen.transforms.geometry import PLANES, view_plane

__all__ = ["CaptureLabels", "check_highdicom", "write_secondary_captures"]

MANUFACTURER = "monai_vqgen"
LARGEST = 2**16 - 1  # gray values are stored as unsigned 16 bit
FOOT_AND_HEAD = {"I": "F", "S": "H"}  # DICOM's letters for what NIfTI calls inferior and superior
LONGEST_TEXT, LONGEST_LABEL = 1024, 64  # characters of DICOM's value representations ST and LO


class CaptureLabels(NamedTuple):
    """How the captures are labeled.

    Attributes:
        series_description: the name of the series in a viewer, at most 64 characters.
        derivation: how the images were made, at most 1,024 characters.
        patient: PatientID where there is no source.
        source: a file of the DICOM series they were derived from, or the folder of that series: patient and study
            are taken from it.
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
    Equal images get equal identifiers, so an archive recognizes those it already has.

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
        ScanError: not a finite volume, or a source that is not DICOM.
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
    series = _identifier(highdicom, plane, labels, stored_s.tobytes())
    identity = _identity(labels, study=_identifier(highdicom, "study", labels))
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
            sop_instance_uid=_identifier(highdicom, f"{series} {number}", labels),
            instance_number=number,
            manufacturer=MANUFACTURER,
            pixel_spacing=view.spacing[:2],
            patient_orientation=(right, down),
            **identity,
        )
        _label(image, labels, slope=slope, intercept=low)
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


def _identifier(highdicom: Any, what: str, labels: CaptureLabels, content: bytes = b"") -> str:
    """A UID that depends only on the labels and the content."""
    words = [what, labels.series_description, labels.derivation, labels.patient, hashlib.sha256(content).hexdigest()]
    number = int.from_bytes(hashlib.sha256("\n".join(words).encode()).digest()[:16], "big")
    return str(highdicom.UID.from_uuid(f"{number:032x}"))


def _identity(labels: CaptureLabels, *, study: str) -> dict[str, Any]:
    """The patient and study of the images."""
    if labels.source is None:
        return {"study_instance_uid": study, "patient_id": labels.patient or None}
    import pydicom

    path = labels.source
    if path.is_dir():
        path = next((file for file in sorted(path.iterdir()) if file.is_file() and is_dicom(file)), path)
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
    except Exception as error:  # pydicom raises many kinds for files that are not DICOM
        raise ScanError(f"{path}: not a DICOM file ({error}); give a file of the source series") from error
    taken = {
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
    found = {ours: header.get(theirs) or None for ours, theirs in taken.items()}
    return {**found, "study_instance_uid": found["study_instance_uid"] or study}


def _label(image: Any, labels: CaptureLabels, *, slope: float, intercept: float) -> None:
    image.SeriesDescription = labels.series_description
    image.DerivationDescription = labels.derivation
    image.ImageComments = "Made by a generative model; for research, not for diagnosis."
    image.BurnedInAnnotation = "NO"
    image.SoftwareVersions = f"monai_vqgen {monai_vqgen.__version__}"
    image.RescaleSlope, image.RescaleIntercept, image.RescaleType = f"{slope:.9g}", f"{intercept:.9g}", "US"
    middle, width = intercept + slope * LARGEST / 2, slope * LARGEST
    image.WindowCenter, image.WindowWidth = f"{middle:.9g}", f"{width:.9g}"
