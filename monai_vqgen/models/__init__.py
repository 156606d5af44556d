"""Trained models and what people do with them: reconstruct, sample, complete, score, export."""

from __future__ import annotations

from monai_vqgen.models.capture_files import SaveSecondaryCapturesd
from monai_vqgen.models.export import export_autoencoder, export_names
from monai_vqgen.models.priors import TrainedPriors, condition_dim, load_autoencoder, load_priors
from monai_vqgen.models.reconstruction_files import ReconstructionLayout, reconstruction_names
from monai_vqgen.models.requests import PrepareRequests, draw_conditions, join_conditions, sampling_requests
from monai_vqgen.models.sample_files import SampleFiles
from monai_vqgen.models.sampling import SamplingOptions, draw_samples
from monai_vqgen.models.scans import LoadScand, UsableScans, model_pixel_mm, reconstruction_records
from monai_vqgen.models.trained_model import TrainedModel

__all__ = [
    "LoadScand",
    "PrepareRequests",
    "ReconstructionLayout",
    "SampleFiles",
    "SamplingOptions",
    "SaveSecondaryCapturesd",
    "TrainedModel",
    "TrainedPriors",
    "UsableScans",
    "condition_dim",
    "draw_conditions",
    "draw_samples",
    "export_autoencoder",
    "export_names",
    "join_conditions",
    "load_autoencoder",
    "load_priors",
    "model_pixel_mm",
    "reconstruction_names",
    "reconstruction_records",
    "sampling_requests",
]
