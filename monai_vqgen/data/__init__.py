"""Where volumes, slices and codes come from: download, reading, splits, extraction, phantoms, the code store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen.data.codes.dataset import CodesDataset
    from monai_vqgen.data.codes.store import CodeStore, save_codes
    from monai_vqgen.data.download import OpenNeuroDownload, download_openneuro
    from monai_vqgen.data.io.captures import CaptureLabels, write_secondary_captures
    from monai_vqgen.data.io.nifti import CompleteNiftiWriter
    from monai_vqgen.data.io.volume import Volume, read_volume
    from monai_vqgen.data.phantoms.volumes import make_phantom, make_phantoms
    from monai_vqgen.data.slices.datalists import load_datalist, read_slice_geometry, records_digest
    from monai_vqgen.data.slices.extraction import extract_slices
    from monai_vqgen.data.slices.scan import SliceOptions
    from monai_vqgen.data.slices.sources import ScanOptions, discover_volumes
    from monai_vqgen.data.slices.splits import SplitOptions, SubjectSplit, read_split, split_subjects
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "codes.dataset": ["CodesDataset"],
            "codes.store": ["CodeStore", "save_codes"],
            "download": ["OpenNeuroDownload", "download_openneuro"],
            "io.captures": ["CaptureLabels", "write_secondary_captures"],
            "io.nifti": ["CompleteNiftiWriter"],
            "io.volume": ["Volume", "read_volume"],
            "phantoms.volumes": ["make_phantom", "make_phantoms"],
            "slices.datalists": ["load_datalist", "read_slice_geometry", "records_digest"],
            "slices.extraction": ["extract_slices"],
            "slices.scan": ["SliceOptions"],
            "slices.sources": ["ScanOptions", "discover_volumes"],
            "slices.splits": ["SplitOptions", "SubjectSplit", "read_split", "split_subjects"],
        },
    )

__all__ = [
    "CaptureLabels",
    "CodeStore",
    "CodesDataset",
    "CompleteNiftiWriter",
    "OpenNeuroDownload",
    "ScanOptions",
    "SliceOptions",
    "SplitOptions",
    "SubjectSplit",
    "Volume",
    "discover_volumes",
    "download_openneuro",
    "extract_slices",
    "load_datalist",
    "make_phantom",
    "make_phantoms",
    "read_slice_geometry",
    "read_split",
    "read_volume",
    "records_digest",
    "save_codes",
    "split_subjects",
    "write_secondary_captures",
]
