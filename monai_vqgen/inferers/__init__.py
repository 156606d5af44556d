"""Inferers: sampling from priors, and reconstruction."""

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen.inferers.ancestral import AncestralSampler as AncestralSampler
    from monai_vqgen.inferers.draws import GumbelNoise as GumbelNoise, Truncation as Truncation
    from monai_vqgen.inferers.reconstruction import VolumeReconstructionInferer as VolumeReconstructionInferer
else:
    __getattr__, __dir__, __all__ = attach(__name__)
