"""Priors: autoregressive distributions over grids of codes."""

from __future__ import annotations

from monai_vqgen.networks.priors.base import IncrementalPass, PlainIncremental, Prior
from monai_vqgen.networks.priors.decoder_only import DecoderOnlyPrior
from monai_vqgen.networks.priors.gated.network import GatedPixelCNN
from monai_vqgen.networks.priors.initialization import start_from_codebooks
from monai_vqgen.networks.priors.masked import MaskedPixelCNN

__all__ = [
    "DecoderOnlyPrior",
    "GatedPixelCNN",
    "IncrementalPass",
    "MaskedPixelCNN",
    "PlainIncremental",
    "Prior",
    "start_from_codebooks",
]
