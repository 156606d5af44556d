"""How good a trained model is, measured on slices of subjects it has not seen: figures beside baselines, pictures."""

from __future__ import annotations

from monai_vqgen.evaluation.evaluator import (
    ModelEvaluation,
    ReportOptions,
    SamplingOptions,
    claim_evaluation,
    pick_split,
    split_records,
)
from monai_vqgen.evaluation.sections import EvaluationData

__all__ = [
    "EvaluationData",
    "ModelEvaluation",
    "ReportOptions",
    "SamplingOptions",
    "claim_evaluation",
    "pick_split",
    "split_records",
]
