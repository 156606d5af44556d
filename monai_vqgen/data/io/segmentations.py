"""A mask as DICOM segmentation of the series that it was made of (extra `dicom`).

DICOM PS3.3, A.51 (Segmentation IOD), binary, written by highdicom: patient, study and frame of reference are the
source's, and every frame refers to the image that it lies over. Frames without a voxel are left out.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import monai_vqgen
from monai_vqgen.data.io.captures import (
    IDENTITY,
    MANUFACTURER,
    CaptureLabels,
    check_highdicom,
    content_uid,
    fallback_study_uid,
    source_headers,
)
from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.files import write_bytes

__all__ = ["write_segmentation"]

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's axes, of RAS+


def write_segmentation(path: str | Path, mask_s: NDArray, *, affine: NDArray, labels: CaptureLabels) -> None:
    """Write one `.dcm` file, complete or not at all; equal masks of a series get equal identifiers.

    Args:
        path: of the file.
        mask_s: `[X, Y, Z]`, as `read_volume` orders the voxels of the source; nonzero is marked. Empty is allowed.
        affine: 4x4, voxel centers to RAS+ millimeters.
        labels: name of the series and of the segment, how it was made, and the folder of the source series.

    Raises:
        InputError: highdicom is missing, or no source is named.
        ScanError: a source that holds no image, or cannot be referred to.
    """
    highdicom = check_highdicom()
    if labels.source is None:
        raise InputError("a DICOM segmentation needs the series that it lies over: give its folder as labels.source")
    marked_s = np.asarray(mask_s) != 0
    headers = source_headers(labels.source)
    if lacking := sum("SeriesInstanceUID" not in header for header in headers):
        raise ScanError(f"{labels.source}: {lacking} images name no series (SeriesInstanceUID); export it again")
    study = fallback_study_uid(highdicom, labels, headers)
    sources = [_completed(header, study) for header in headers]
    content = f"{sources[0].SeriesInstanceUID} {marked_s.shape}".encode() + np.packbits(marked_s).tobytes()
    content += np.asarray(affine, dtype=np.float64).tobytes()
    try:
        # highdicom's volumes run over planes, rows, columns; ours over columns, rows, planes
        volume = highdicom.Volume(
            np.ascontiguousarray(marked_s.transpose(2, 1, 0)).astype(np.uint8),
            affine=(LPS @ affine)[:, [2, 1, 0, 3]],
            coordinate_system="PATIENT",
            frame_of_reference_uid=sources[0].FrameOfReferenceUID,
        )
        segmentation = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=volume,
            segmentation_type="BINARY",
            segment_descriptions=[_segment(highdicom, labels)],
            series_instance_uid=content_uid(highdicom, "segmentation series", labels, content),
            series_number=1,
            sop_instance_uid=content_uid(highdicom, "segmentation", labels, content),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=MANUFACTURER,
            software_versions=monai_vqgen.__version__,
            device_serial_number="0",
            content_description=labels.series_description,
            series_description=labels.series_description,
        )
    except (AttributeError, ValueError, TypeError) as error:  # what highdicom raises at headers that lack something
        raise ScanError(f"{labels.source}: a segmentation cannot refer to this series ({error})") from error
    segmentation.ImageComments = labels.derivation
    written = io.BytesIO()
    segmentation.save_as(written)
    write_bytes(Path(path), written.getvalue())


def _segment(highdicom: Any, labels: CaptureLabels) -> Any:
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="monai_vqgen anomaly map", version=monai_vqgen.__version__, family=codes.DCM.ArtificialIntelligence
    )
    return highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label=labels.series_description,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
    )


def _completed(header: Any, study: str) -> Any:
    """The header with what highdicom asks for and older files lack."""
    for keyword in IDENTITY.values():
        if keyword not in header:
            setattr(header, keyword, None)
    header.StudyInstanceUID = header.StudyInstanceUID or study
    header.FrameOfReferenceUID = header.get("FrameOfReferenceUID") or header.SeriesInstanceUID
    return header
