"""How good reconstructions, codebooks and priors are, always beside what knows nothing."""

from __future__ import annotations

from monai_vqgen.metrics.baselines import BaselineScores, baseline_scores, mean_image
from monai_vqgen.metrics.reconstruction import (
    ForegroundPSNRMetric,
    ForegroundSSIMMetric,
    ReconstructionScores,
    foreground_mask,
    mean_scores,
    reconstruction_scores,
    ssim_map,
)

__all__ = [
    "BaselineScores",
    "ForegroundPSNRMetric",
    "ForegroundSSIMMetric",
    "ReconstructionScores",
    "baseline_scores",
    "foreground_mask",
    "mean_image",
    "mean_scores",
    "reconstruction_scores",
    "ssim_map",
]
