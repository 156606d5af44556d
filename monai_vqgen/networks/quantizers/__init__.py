"""Quantizers: latent vectors to codes and back, behind one small protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen.networks.quantizers.base import Quantized, Quantizer
    from monai_vqgen.networks.quantizers.ema import EMACodebook
    from monai_vqgen.networks.quantizers.fsq import FiniteScalarQuantizer
    from monai_vqgen.networks.quantizers.gradient_codebook import GradientCodebook
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "base": ["Quantized", "Quantizer"],
            "ema": ["EMACodebook"],
            "fsq": ["FiniteScalarQuantizer"],
            "gradient_codebook": ["GradientCodebook"],
        },
    )

__all__ = ["EMACodebook", "FiniteScalarQuantizer", "GradientCodebook", "Quantized", "Quantizer"]
