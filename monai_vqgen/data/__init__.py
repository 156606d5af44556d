"""Where volumes, slices and codes come from: sources, safe reading, splits, extraction, phantoms, the code store."""

from __future__ import annotations

from monai_vqgen.data.codes.dataset import CodesDataset
from monai_vqgen.data.codes.store import CodeStore, save_codes
from monai_vqgen.data.io.captures import CaptureLabels, write_secondary_captures
from monai_vqgen.data.io.nifti_writer import CompleteNiftiWriter
from monai_vqgen.data.io.volumes import Volume, read_nifti, read_volume
from monai_vqgen.data.openneuro import OpenNeuroDownload, download_openneuro
from monai_vqgen.data.phantoms.volumes import Phantom, make_phantom, make_phantoms
from monai_vqgen.data.slices.datalists import load_datalist
from monai_vqgen.data.slices.extraction import ExtractionReport, extract_slices, position_range
from monai_vqgen.data.slices.geometry import SliceGeometry, read_slice_geometry
from monai_vqgen.data.slices.sources import ScanRecord, discover_volumes
from monai_vqgen.data.slices.splits import SubjectSplit, read_split, split_subjects

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
