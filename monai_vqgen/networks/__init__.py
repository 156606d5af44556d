"""Networks: quantizers, autoencoders and priors, for two and three spatial dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen.networks.conditions import ConditionEncoder
    from monai_vqgen.networks.generative_vqvae import GenerativeVQVAE
    from monai_vqgen.networks.hierarchical_vqvae import HierarchicalVQVAE, HierarchyPass
    from monai_vqgen.networks.priors import (
        DecoderOnlyPrior,
        GatedPixelCNN,
        IncrementalPass,
        MaskedPixelCNN,
        PlainIncremental,
        Prior,
    )
    from monai_vqgen.networks.quantizers import (
        EMACodebook,
        FiniteScalarQuantizer,
        GradientCodebook,
        Quantized,
        Quantizer,
    )
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "conditions": ["ConditionEncoder"],
            "generative_vqvae": ["GenerativeVQVAE"],
            "hierarchical_vqvae": ["HierarchicalVQVAE", "HierarchyPass"],
            "priors": [
                "DecoderOnlyPrior",
                "GatedPixelCNN",
                "IncrementalPass",
                "MaskedPixelCNN",
                "PlainIncremental",
                "Prior",
            ],
            "quantizers": [
                "EMACodebook",
                "FiniteScalarQuantizer",
                "GradientCodebook",
                "Quantized",
                "Quantizer",
            ],
        },
    )

__all__ = [
    "ConditionEncoder",
    "DecoderOnlyPrior",
    "EMACodebook",
    "FiniteScalarQuantizer",
    "GatedPixelCNN",
    "GenerativeVQVAE",
    "GradientCodebook",
    "HierarchicalVQVAE",
    "HierarchyPass",
    "IncrementalPass",
    "MaskedPixelCNN",
    "PlainIncremental",
    "Prior",
    "Quantized",
    "Quantizer",
]
