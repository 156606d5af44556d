"""How good reconstructions, codebooks, priors and samples are, always beside what knows nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen.metrics.baselines import BaselineScores, baseline_scores, mean_image
    from monai_vqgen.metrics.classifier import (
        TwoSampleScore,
        TwoSampleSplit,
        cnn_two_sample,
        linear_two_sample,
        split_two_samples,
    )
    from monai_vqgen.metrics.codebook import CodebookCounter, CodebookUse, codebook_use
    from monai_vqgen.metrics.codecs import CODECS, Codec, CodecCurves, CodecPoint, at_rate, codec_curves
    from monai_vqgen.metrics.features import FeatureSpace, NetworkFeatures, WhitenedFeatures
    from monai_vqgen.metrics.fidelity import (
        DensityCoverage,
        FrechetScore,
        PairwiseSimilarity,
        PrecisionRecall,
        density_coverage,
        frechet_score,
        gaussian_frechet_score,
        pairwise_ms_ssim,
        precision_recall,
    )
    from monai_vqgen.metrics.filter_bank import FilterBankFeatures
    from monai_vqgen.metrics.likelihood import PositionHistogram, bits_per_code, uniform_bits_per_code
    from monai_vqgen.metrics.memorization import (
        Authenticity,
        ClosestPair,
        MemorizationAudit,
        authenticity,
        memorization_audit,
    )
    from monai_vqgen.metrics.neighbors import AlignedNeighbors, FeatureNeighbors, aligned_neighbors, feature_neighbors
    from monai_vqgen.metrics.position import PositionConsistency, RidgeModel, fit_ridge, position_consistency
    from monai_vqgen.metrics.reconstruction import (
        ForegroundPSNRMetric,
        ForegroundSSIMMetric,
        ReconstructionScores,
        foreground_mask,
        mean_scores,
        reconstruction_scores,
        ssim_map,
    )
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "baselines": ["BaselineScores", "baseline_scores", "mean_image"],
            "classifier": [
                "TwoSampleScore",
                "TwoSampleSplit",
                "cnn_two_sample",
                "linear_two_sample",
                "split_two_samples",
            ],
            "codebook": ["CodebookCounter", "CodebookUse", "codebook_use"],
            "codecs": ["CODECS", "Codec", "CodecCurves", "CodecPoint", "at_rate", "codec_curves"],
            "features": ["FeatureSpace", "NetworkFeatures", "WhitenedFeatures"],
            "fidelity": [
                "DensityCoverage",
                "FrechetScore",
                "PairwiseSimilarity",
                "PrecisionRecall",
                "density_coverage",
                "frechet_score",
                "gaussian_frechet_score",
                "pairwise_ms_ssim",
                "precision_recall",
            ],
            "filter_bank": ["FilterBankFeatures"],
            "likelihood": ["PositionHistogram", "bits_per_code", "uniform_bits_per_code"],
            "memorization": ["Authenticity", "ClosestPair", "MemorizationAudit", "authenticity", "memorization_audit"],
            "neighbors": ["AlignedNeighbors", "FeatureNeighbors", "aligned_neighbors", "feature_neighbors"],
            "position": ["PositionConsistency", "RidgeModel", "fit_ridge", "position_consistency"],
            "reconstruction": [
                "ForegroundPSNRMetric",
                "ForegroundSSIMMetric",
                "ReconstructionScores",
                "foreground_mask",
                "mean_scores",
                "reconstruction_scores",
                "ssim_map",
            ],
        },
    )

__all__ = [
    "CODECS",
    "AlignedNeighbors",
    "Authenticity",
    "BaselineScores",
    "ClosestPair",
    "CodebookCounter",
    "CodebookUse",
    "Codec",
    "CodecCurves",
    "CodecPoint",
    "DensityCoverage",
    "FeatureNeighbors",
    "FeatureSpace",
    "FilterBankFeatures",
    "ForegroundPSNRMetric",
    "ForegroundSSIMMetric",
    "FrechetScore",
    "MemorizationAudit",
    "NetworkFeatures",
    "PairwiseSimilarity",
    "PositionConsistency",
    "PositionHistogram",
    "PrecisionRecall",
    "ReconstructionScores",
    "RidgeModel",
    "TwoSampleScore",
    "TwoSampleSplit",
    "WhitenedFeatures",
    "aligned_neighbors",
    "at_rate",
    "authenticity",
    "baseline_scores",
    "bits_per_code",
    "cnn_two_sample",
    "codebook_use",
    "codec_curves",
    "density_coverage",
    "feature_neighbors",
    "fit_ridge",
    "foreground_mask",
    "frechet_score",
    "gaussian_frechet_score",
    "linear_two_sample",
    "mean_image",
    "mean_scores",
    "memorization_audit",
    "pairwise_ms_ssim",
    "position_consistency",
    "precision_recall",
    "reconstruction_scores",
    "split_two_samples",
    "ssim_map",
    "uniform_bits_per_code",
]
