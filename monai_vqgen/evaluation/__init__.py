"""How good a trained model is, measured on slices of subjects it has not seen: figures beside baselines, pictures."""

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen.evaluation.evaluator import (
        ModelEvaluation as ModelEvaluation,
        ReportOptions as ReportOptions,
        SamplingOptions as SamplingOptions,
        claim_evaluation as claim_evaluation,
        pick_split as pick_split,
        split_records as split_records,
    )
    from monai_vqgen.evaluation.lesions import AnomalyEvaluation as AnomalyEvaluation, every_slice as every_slice
    from monai_vqgen.evaluation.sections import EvaluationData as EvaluationData
else:
    __getattr__, __dir__, __all__ = attach(__name__)
