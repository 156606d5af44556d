"""What runs on top of the parts: sampling to a folder, evaluation, the demo and its report."""

from __future__ import annotations

from monai_vqgen.apps.bundles import bundle_root, run_stage
from monai_vqgen.apps.evaluation import evaluate, pick_split, split_records
from monai_vqgen.apps.priors import TrainedPriors, condition_dim, load_autoencoder, load_priors
from monai_vqgen.apps.reconstruction_files import CompleteNiftiWriter, ReconstructionLayout, reconstruction_names
from monai_vqgen.apps.sampling import draw_conditions, draw_samples, join_conditions, sample_to_folder
from monai_vqgen.apps.scans import LoadScand, UsableScans, model_pixel_mm, reconstruction_records

__all__ = [
    "CompleteNiftiWriter",
    "LoadScand",
    "ReconstructionLayout",
    "TrainedPriors",
    "UsableScans",
    "bundle_root",
    "condition_dim",
    "draw_conditions",
    "draw_samples",
    "evaluate",
    "join_conditions",
    "load_autoencoder",
    "load_priors",
    "model_pixel_mm",
    "pick_split",
    "reconstruction_names",
    "reconstruction_records",
    "run_stage",
    "sample_to_folder",
    "split_records",
]
