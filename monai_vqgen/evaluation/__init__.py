"""How good a trained model is, measured on slices of subjects it has not seen: figures beside baselines, pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen.evaluation.evaluator import (
        ModelEvaluation,
        ReportOptions,
        SamplingOptions,
        claim_evaluation,
        pick_split,
        split_records,
    )
    from monai_vqgen.evaluation.sections import EvaluationData
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "evaluator": [
                "ModelEvaluation",
                "ReportOptions",
                "SamplingOptions",
                "claim_evaluation",
                "pick_split",
                "split_records",
            ],
            "sections": ["EvaluationData"],
        },
    )

__all__ = [
    "EvaluationData",
    "ModelEvaluation",
    "ReportOptions",
    "SamplingOptions",
    "claim_evaluation",
    "pick_split",
    "split_records",
]
