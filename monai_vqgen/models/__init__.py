"""Trained models and what people do with them: reconstruct, sample, complete, score, export."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen.models.export import export_autoencoder, export_names
    from monai_vqgen.models.loading import recorded_autoencoder
    from monai_vqgen.models.reconstruction_files import (
        ReconstructionLayout,
        SaveSecondaryCapturesd,
        reconstruction_names,
    )
    from monai_vqgen.models.record import (
        ModelRecord,
        SamplingSettings,
        autoencoder_record,
        prior_record,
        trained_prior_record,
    )
    from monai_vqgen.models.sample_files import SAMPLE_FILES, SampleFiles, SampleInferer
    from monai_vqgen.models.samples import Samples, draw_conditions, join_conditions
    from monai_vqgen.models.scans import LoadScand, UsableScans, model_pixel_mm, reconstruction_records
    from monai_vqgen.models.trained_model import TrainedModel
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "export": ["export_autoencoder", "export_names"],
            "loading": ["recorded_autoencoder"],
            "reconstruction_files": ["ReconstructionLayout", "SaveSecondaryCapturesd", "reconstruction_names"],
            "record": ["ModelRecord", "SamplingSettings", "autoencoder_record", "prior_record", "trained_prior_record"],
            "sample_files": ["SAMPLE_FILES", "SampleFiles", "SampleInferer"],
            "samples": ["Samples", "draw_conditions", "join_conditions"],
            "scans": ["LoadScand", "UsableScans", "model_pixel_mm", "reconstruction_records"],
            "trained_model": ["TrainedModel"],
        },
    )

__all__ = [
    "SAMPLE_FILES",
    "LoadScand",
    "ModelRecord",
    "ReconstructionLayout",
    "SampleFiles",
    "SampleInferer",
    "Samples",
    "SamplingSettings",
    "SaveSecondaryCapturesd",
    "TrainedModel",
    "UsableScans",
    "autoencoder_record",
    "draw_conditions",
    "export_autoencoder",
    "export_names",
    "join_conditions",
    "model_pixel_mm",
    "prior_record",
    "reconstruction_names",
    "reconstruction_records",
    "recorded_autoencoder",
    "trained_prior_record",
]
