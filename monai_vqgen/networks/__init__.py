"""Networks: quantizers, autoencoders and priors, for two and three spatial dimensions."""

from __future__ import annotations

from monai_vqgen.networks.conditions import ConditionEncoder
from monai_vqgen.networks.deployment import CodeReader, CodeWriter
from monai_vqgen.networks.hierarchical_vqvae import HierarchicalVQVAE, HierarchyPass
from monai_vqgen.networks.priors import (
    DecoderOnlyPrior,
    GatedPixelCNN,
    IncrementalPass,
    MaskedPixelCNN,
    PlainIncremental,
    Prior,
    start_from_codebooks,
)
from monai_vqgen.networks.quantizers import (
    EMACodebook,
    FiniteScalarQuantizer,
    GradientCodebook,
    Quantized,
    Quantizer,
)

__all__ = [
    "CodeReader",
    "CodeWriter",
    "ConditionEncoder",
    "DecoderOnlyPrior",
    "EMACodebook",
    "FiniteScalarQuantizer",
    "GatedPixelCNN",
    "GradientCodebook",
    "HierarchicalVQVAE",
    "HierarchyPass",
    "IncrementalPass",
    "MaskedPixelCNN",
    "PlainIncremental",
    "Prior",
    "Quantized",
    "Quantizer",
    "start_from_codebooks",
]
