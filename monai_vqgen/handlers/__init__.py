"""Handlers for MONAI's engines: safe checkpoints, curves, codebook health, pictures, guards, progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen.handlers.budget import TimeBudget, check_time_budget
    from monai_vqgen.handlers.checkpoints import BestCheckpoint, TrainingState
    from monai_vqgen.handlers.guards import GradientGuard, Patience
    from monai_vqgen.handlers.history import History
    from monai_vqgen.handlers.images import ReconstructionImages, SampleImages, image_rows
    from monai_vqgen.handlers.output import claim_output, claim_training, log_to_file
    from monai_vqgen.handlers.progress import TrainingProgress
    from monai_vqgen.handlers.statistics import CodebookHealth, EpochLog, ObjectiveMean, objective_means
    from monai_vqgen.handlers.tracking import name_tracked
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "budget": ["TimeBudget", "check_time_budget"],
            "checkpoints": ["BestCheckpoint", "TrainingState"],
            "guards": ["GradientGuard", "Patience"],
            "history": ["History"],
            "images": ["ReconstructionImages", "SampleImages", "image_rows"],
            "output": ["claim_output", "claim_training", "log_to_file"],
            "progress": ["TrainingProgress"],
            "statistics": ["CodebookHealth", "EpochLog", "ObjectiveMean", "objective_means"],
            "tracking": ["name_tracked"],
        },
    )

__all__ = [
    "BestCheckpoint",
    "CodebookHealth",
    "EpochLog",
    "GradientGuard",
    "History",
    "ObjectiveMean",
    "Patience",
    "ReconstructionImages",
    "SampleImages",
    "TimeBudget",
    "TrainingProgress",
    "TrainingState",
    "check_time_budget",
    "claim_output",
    "claim_training",
    "image_rows",
    "log_to_file",
    "name_tracked",
    "objective_means",
]
