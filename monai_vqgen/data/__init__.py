"""Where volumes, slices and codes come from: sources, safe reading, splits, extraction, phantoms, the code store."""

from __future__ import annotations

from monai_vqgen.data.code_store import CodeStore, save_codes
from monai_vqgen.data.codes_dataset import CodesDataset
from monai_vqgen.data.datalists import load_datalist
from monai_vqgen.data.extraction import ExtractionReport, extract_slices, position_range
from monai_vqgen.data.nifti_writer import CompleteNiftiWriter
from monai_vqgen.data.openneuro import OpenNeuroDownload, download_openneuro
from monai_vqgen.data.phantoms import Phantom, make_phantom, make_phantoms
from monai_vqgen.data.reading import Volume, read_nifti, read_volume
from monai_vqgen.data.secondary_capture import CaptureLabels, write_secondary_captures
from monai_vqgen.data.slice_geometry import SliceGeometry, read_slice_geometry
from monai_vqgen.data.sources import ScanRecord, discover_volumes
from monai_vqgen.data.splits import SubjectSplit, read_split, split_subjects

__all__ = [
    "CaptureLabels",
    "CodeStore",
    "CodesDataset",
    "CompleteNiftiWriter",
    "ExtractionReport",
    "OpenNeuroDownload",
    "Phantom",
    "ScanRecord",
    "SliceGeometry",
    "SubjectSplit",
    "Volume",
    "discover_volumes",
    "download_openneuro",
    "extract_slices",
    "load_datalist",
    "make_phantom",
    "make_phantoms",
    "position_range",
    "read_nifti",
    "read_slice_geometry",
    "read_split",
    "read_volume",
    "save_codes",
    "split_subjects",
    "write_secondary_captures",
]
