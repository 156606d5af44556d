"""Priors: autoregressive distributions over grids of codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen.networks.priors.base import IncrementalPass, PlainIncremental, Prior
    from monai_vqgen.networks.priors.decoder_only import DecoderOnlyPrior
    from monai_vqgen.networks.priors.gated.network import GatedPixelCNN
    from monai_vqgen.networks.priors.masked import MaskedPixelCNN
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "base": ["IncrementalPass", "PlainIncremental", "Prior"],
            "decoder_only": ["DecoderOnlyPrior"],
            "gated.network": ["GatedPixelCNN"],
            "masked": ["MaskedPixelCNN"],
        },
    )

__all__ = [
    "DecoderOnlyPrior",
    "GatedPixelCNN",
    "IncrementalPass",
    "MaskedPixelCNN",
    "PlainIncremental",
    "Prior",
]
