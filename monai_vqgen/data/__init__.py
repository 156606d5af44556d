"""Where volumes, slices and codes come from: download, reading, splits, extraction, phantoms, the code store."""

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen.data.codes.store import (
        CodesDataset as CodesDataset,
        CodeStore as CodeStore,
        save_codes as save_codes,
    )
    from monai_vqgen.data.download import (
        OpenNeuroDownload as OpenNeuroDownload,
        download_openneuro as download_openneuro,
    )
    from monai_vqgen.data.io.captures import (
        CaptureLabels as CaptureLabels,
        write_secondary_captures as write_secondary_captures,
    )
    from monai_vqgen.data.io.nifti import CompleteNiftiWriter as CompleteNiftiWriter
    from monai_vqgen.data.io.volume import Volume as Volume, read_volume as read_volume
    from monai_vqgen.data.phantoms.volumes import make_phantom as make_phantom, make_phantoms as make_phantoms
    from monai_vqgen.data.slices.datalists import (
        load_datalist as load_datalist,
        read_slice_geometry as read_slice_geometry,
        records_digest as records_digest,
    )
    from monai_vqgen.data.slices.extraction import extract_slices as extract_slices
    from monai_vqgen.data.slices.scan import SliceOptions as SliceOptions
    from monai_vqgen.data.slices.sources import ScanOptions as ScanOptions, discover_volumes as discover_volumes
    from monai_vqgen.data.slices.splits import (
        SplitOptions as SplitOptions,
        SubjectSplit as SubjectSplit,
        read_split as read_split,
        split_subjects as split_subjects,
    )
else:
    __getattr__, __dir__, __all__ = attach(__name__)
