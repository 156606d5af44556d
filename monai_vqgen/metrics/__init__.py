"""How good reconstructions, codebooks and priors are, always beside what knows nothing."""

from __future__ import annotations

from monai_vqgen.metrics.baselines import BaselineScores, baseline_scores, mean_image
from monai_vqgen.metrics.codebook import CodebookCounter, CodebookUse, codebook_use
from monai_vqgen.metrics.codecs import CODECS, Codec, CodecCurves, CodecPoint, at_rate, codec_curves
from monai_vqgen.metrics.likelihood import PositionHistogram, bits_per_code, uniform_bits_per_code
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
    "CODECS",
    "BaselineScores",
    "CodebookCounter",
    "CodebookUse",
    "Codec",
    "CodecCurves",
    "CodecPoint",
    "ForegroundPSNRMetric",
    "ForegroundSSIMMetric",
    "PositionHistogram",
    "ReconstructionScores",
    "at_rate",
    "baseline_scores",
    "bits_per_code",
    "codebook_use",
    "codec_curves",
    "foreground_mask",
    "mean_image",
    "mean_scores",
    "reconstruction_scores",
    "ssim_map",
    "uniform_bits_per_code",
]
