"""Networks: quantizers, autoencoders and priors, for two and three spatial dimensions."""

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen.networks.conditions import ConditionEncoder as ConditionEncoder
    from monai_vqgen.networks.feature_discriminator import (
        FeatureDiscriminator as FeatureDiscriminator,
        slice_discriminators as slice_discriminators,
    )
    from monai_vqgen.networks.generative_vqvae import GenerativeVQVAE as GenerativeVQVAE
    from monai_vqgen.networks.hierarchical_vqvae import (
        HierarchicalVQVAE as HierarchicalVQVAE,
        HierarchyPass as HierarchyPass,
    )
    from monai_vqgen.networks.priors.base import (
        IncrementalPass as IncrementalPass,
        PlainIncremental as PlainIncremental,
        Prior as Prior,
    )
    from monai_vqgen.networks.priors.decoder_only import DecoderOnlyPrior as DecoderOnlyPrior
    from monai_vqgen.networks.priors.gated.network import GatedPixelCNN as GatedPixelCNN
    from monai_vqgen.networks.priors.masked import MaskedPixelCNN as MaskedPixelCNN
    from monai_vqgen.networks.quantizers.base import Quantized as Quantized, Quantizer as Quantizer
    from monai_vqgen.networks.quantizers.codebooks import (
        EMACodebook as EMACodebook,
        GradientCodebook as GradientCodebook,
    )
    from monai_vqgen.networks.quantizers.fsq import FiniteScalarQuantizer as FiniteScalarQuantizer
    from monai_vqgen.networks.quantizers.lookup_free import LookupFreeQuantizer as LookupFreeQuantizer
    from monai_vqgen.networks.quantizers.residual import ResidualQuantizer as ResidualQuantizer
    from monai_vqgen.networks.slice_discriminator import SliceDiscriminator as SliceDiscriminator
else:
    __getattr__, __dir__, __all__ = attach(__name__)
