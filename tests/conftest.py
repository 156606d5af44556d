"""What all tests share: strict MONAI, one thread, and where the real scans are."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["MONAI_FAIL_ON_DUPLICATE_CONFIG"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine

torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans: MONAI_VQGEN_REAL_DATA, else ../shared/data; skips where there is none (CI fails)."""
    named = os.environ.get("MONAI_VQGEN_REAL_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not (folder / "volumes").is_dir():
        message = f"no real scans at {folder}; set MONAI_VQGEN_REAL_DATA to the folder that holds volumes/"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def write_series():
    """How to write a DICOM series: `write_series(folder, voxels, affine, series="1", patient=None, edit=None)`."""
    pytest.importorskip("pydicom")
    return _write_series


def _write_series(folder, voxels, affine, series="1", patient=None, edit=None):
    """A series of `voxels[:, :, k]`: DICOM is LPS, columns run along the first axis; `edit(data, k)` changes it."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    for k in np.random.default_rng(0).permutation(voxels.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MRImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[series, str(k)])
        data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        if patient is not None:
            data.PatientID = patient
        data.Modality, data.SeriesInstanceUID, data.InstanceNumber = "MR", f"1.2.3.{series}", int(k) + 1
        data.Rows, data.Columns = voxels.shape[1], voxels.shape[0]
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 1
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        # DS holds 16 characters
        text = lambda numbers: [f"{n:.10g}"[:16] for n in numbers]  # noqa: E731
        data.PixelSpacing = text([spacing[1], spacing[0]])
        data.SliceThickness = text([spacing[2]])[0]
        data.ImageOrientationPatient = text([*(lps[:3, 0] / spacing[0]), *(lps[:3, 1] / spacing[1])])
        data.ImagePositionPatient = text(apply_affine(lps, [0, 0, int(k)]))
        data.PixelData = np.ascontiguousarray(voxels[:, :, k].T).astype("<i2").tobytes()
        if edit is not None:
            edit(data, int(k))
        data.save_as(folder / f"{k:03d}.dcm", enforce_file_format=True)
