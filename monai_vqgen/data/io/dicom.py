"""DICOM series through MONAI's reader: one folder, one series (extra `dicom`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from monai_vqgen.data.io.nifti import StoredVoxels
from monai_vqgen.errors import ScanError
from monai_vqgen.transforms.geometry import check_affine

__all__ = ["dicom_series_folders", "is_dicom", "patient_id", "read_dicom_series"]


def is_dicom(path: Path) -> bool:
    """Whether a file carries DICOM's mark (DICM after a preamble of 128 bytes)."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def dicom_series_folders(files: Iterable[Path]) -> list[Path]:
    """The folders whose files are DICOM (the first three files of each folder are checked)."""
    checked: dict[Path, int] = {}
    found: dict[Path, None] = {}
    for path in files:
        if path.parent in found or checked.get(path.parent, 0) >= 3 or path.name == "DICOMDIR":
            continue
        checked[path.parent] = checked.get(path.parent, 0) + 1
        if is_dicom(path):
            found[path.parent] = None
    return list(found)


def patient_id(folder: Path) -> str | None:
    """PatientID of the first DICOM file in a folder; None where it is empty, missing or cannot be read."""
    first = next((path for path in sorted(folder.iterdir()) if path.is_file() and is_dicom(path)), None)
    if first is None:
        return None
    try:
        import pydicom

        header = pydicom.dcmread(first, stop_before_pixels=True, specific_tags=["PatientID"])
        return str(header.get("PatientID") or "").strip() or None
    except Exception:  # pydicom raises many kinds for damaged files; reading the series reports the fault
        return None


def read_dicom_series(folder: Path) -> StoredVoxels:
    """Read the DICOM series in a folder.

    Raises:
        ScanError: pydicom is missing, several series in one folder, fewer than two slices, or unreadable files.
    """
    try:
        import pydicom
    except ImportError as error:
        raise ScanError(f"{folder}: reading DICOM needs pydicom; pip install 'monai-vqgen[dicom]'") from error
    from monai.data import PydicomReader

    files = sorted(path for path in folder.iterdir() if path.is_file() and is_dicom(path))
    if len(files) < 2:
        raise ScanError(f"{folder}: {len(files)} DICOM slices; expected a series of at least two")
    try:
        series = {str(pydicom.dcmread(path, stop_before_pixels=True).SeriesInstanceUID) for path in files}
        if len(series) > 1:
            raise ScanError(f"{folder}: holds {len(series)} DICOM series; give each a folder of its own")
        reader = PydicomReader(fname_regex=None)  # type: ignore[arg-type]  # documented: None reads every file
        voxels, meta = reader.get_data(reader.read(str(folder)))
    except ScanError:
        raise
    except Exception as error:  # pydicom and MONAI raise many kinds for damaged files
        raise ScanError(f"{folder}: unreadable DICOM series ({error}); export it again") from error
    voxels = np.asarray(voxels)
    if voxels.ndim != 3 or min(voxels.shape) < 2:
        raise ScanError(f"{folder}: the series has shape {voxels.shape}; expected a 3-D volume")
    return StoredVoxels(voxels, check_affine(np.asarray(meta["affine"]), str(folder)))
