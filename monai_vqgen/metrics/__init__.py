"""How good reconstructions, codebooks, priors and samples are, always beside what knows nothing."""

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen.metrics.classifier import (
        TwoSampleScore as TwoSampleScore,
        TwoSampleSplit as TwoSampleSplit,
        cnn_two_sample as cnn_two_sample,
        linear_two_sample as linear_two_sample,
        split_two_samples as split_two_samples,
    )
    from monai_vqgen.metrics.codecs import (
        CODECS as CODECS,
        Codec as Codec,
        CodecCurves as CodecCurves,
        CodecPoint as CodecPoint,
        at_rate as at_rate,
        codec_curves as codec_curves,
    )
    from monai_vqgen.metrics.codes import (
        CodebookCounter as CodebookCounter,
        CodebookUse as CodebookUse,
        PositionHistogram as PositionHistogram,
        bits_per_code as bits_per_code,
        codebook_use as codebook_use,
        uniform_bits_per_code as uniform_bits_per_code,
    )
    from monai_vqgen.metrics.features import (
        FeatureSpace as FeatureSpace,
        NetworkFeatures as NetworkFeatures,
        WhitenedFeatures as WhitenedFeatures,
    )
    from monai_vqgen.metrics.fidelity import (
        DensityCoverage as DensityCoverage,
        FrechetScore as FrechetScore,
        PairwiseSimilarity as PairwiseSimilarity,
        PrecisionRecall as PrecisionRecall,
        density_coverage as density_coverage,
        frechet_score as frechet_score,
        pairwise_ms_ssim as pairwise_ms_ssim,
        precision_recall as precision_recall,
    )
    from monai_vqgen.metrics.filter_bank import FilterBankFeatures as FilterBankFeatures
    from monai_vqgen.metrics.lesions import (
        LesionScores as LesionScores,
        PixelCounts as PixelCounts,
        average_precision as average_precision,
        count_pixels as count_pixels,
        lesion_scores as lesion_scores,
        lesions_found as lesions_found,
    )
    from monai_vqgen.metrics.memorization import (
        AlignedNeighbors as AlignedNeighbors,
        Authenticity as Authenticity,
        ClosestPair as ClosestPair,
        FeatureNeighbors as FeatureNeighbors,
        MemorizationAudit as MemorizationAudit,
        aligned_neighbors as aligned_neighbors,
        authenticity as authenticity,
        feature_neighbors as feature_neighbors,
        memorization_audit as memorization_audit,
    )
    from monai_vqgen.metrics.position import (
        PositionConsistency as PositionConsistency,
        position_consistency as position_consistency,
    )
    from monai_vqgen.metrics.reconstruction import (
        BaselineScores as BaselineScores,
        ForegroundPSNRMetric as ForegroundPSNRMetric,
        ForegroundSSIMMetric as ForegroundSSIMMetric,
        ReconstructionScores as ReconstructionScores,
        baseline_scores as baseline_scores,
        mean_image as mean_image,
        mean_scores as mean_scores,
        reconstruction_scores as reconstruction_scores,
        ssim_map as ssim_map,
    )
else:
    __getattr__, __dir__, __all__ = attach(__name__)
