"""How good a trained model is, measured on slices of subjects it has not seen: figures beside baselines, pictures."""

from __future__ import annotations

from monai_vqgen.evaluation.evaluator import ModelEvaluation, pick_split, split_records

__all__ = ["ModelEvaluation", "pick_split", "split_records"]
