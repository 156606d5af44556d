"""Networks: quantizers, autoencoders and priors, for two and three spatial dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen.networks.conditions import ConditionEncoder
    from monai_vqgen.networks.generative_vqvae import GenerativeVQVAE
    from monai_vqgen.networks.hierarchical_vqvae import HierarchicalVQVAE, HierarchyPass
    from monai_vqgen.networks.priors.base import IncrementalPass, PlainIncremental, Prior
    from monai_vqgen.networks.priors.decoder_only import DecoderOnlyPrior
    from monai_vqgen.networks.priors.gated.network import GatedPixelCNN
    from monai_vqgen.networks.priors.masked import MaskedPixelCNN
    from monai_vqgen.networks.quantizers.base import Quantized, Quantizer
    from monai_vqgen.networks.quantizers.ema import EMACodebook
    from monai_vqgen.networks.quantizers.fsq import FiniteScalarQuantizer
    from monai_vqgen.networks.quantizers.gradient_codebook import GradientCodebook
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "conditions": ["ConditionEncoder"],
            "generative_vqvae": ["GenerativeVQVAE"],
            "hierarchical_vqvae": ["HierarchicalVQVAE", "HierarchyPass"],
            "priors.base": ["IncrementalPass", "PlainIncremental", "Prior"],
            "priors.decoder_only": ["DecoderOnlyPrior"],
            "priors.gated.network": ["GatedPixelCNN"],
            "priors.masked": ["MaskedPixelCNN"],
            "quantizers.base": ["Quantized", "Quantizer"],
            "quantizers.ema": ["EMACodebook"],
            "quantizers.fsq": ["FiniteScalarQuantizer"],
            "quantizers.gradient_codebook": ["GradientCodebook"],
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
