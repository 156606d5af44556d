"""What runs on top of the parts: sampling to a folder, evaluation, the demo and its report."""

from __future__ import annotations

from monai_vqgen.apps.bundles import bundle_root, run_stage
from monai_vqgen.apps.capture_files import SaveSecondaryCapturesd
from monai_vqgen.apps.evaluation import ModelEvaluation, pick_split, split_records
from monai_vqgen.apps.export import export_autoencoder, export_names
from monai_vqgen.apps.priors import TrainedPriors, condition_dim, load_autoencoder, load_priors
from monai_vqgen.apps.reconstruction_files import ReconstructionLayout, reconstruction_names
from monai_vqgen.apps.requests import PrepareRequests, draw_conditions, join_conditions, sampling_requests
from monai_vqgen.apps.sample_files import SampleFiles
from monai_vqgen.apps.sampling import SamplingOptions, draw_samples
from monai_vqgen.apps.scans import LoadScand, UsableScans, model_pixel_mm, reconstruction_records

__all__ = [
    "LoadScand",
    "ModelEvaluation",
    "PrepareRequests",
    "ReconstructionLayout",
    "SampleFiles",
    "SamplingOptions",
    "SaveSecondaryCapturesd",
    "TrainedPriors",
    "UsableScans",
    "bundle_root",
    "condition_dim",
    "draw_conditions",
    "draw_samples",
    "export_autoencoder",
    "export_names",
    "join_conditions",
    "load_autoencoder",
    "load_priors",
    "model_pixel_mm",
    "pick_split",
    "reconstruction_names",
    "reconstruction_records",
    "run_stage",
    "sampling_requests",
    "split_records",
]
