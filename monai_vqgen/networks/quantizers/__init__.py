"""Quantizers: latent vectors to codes and back, behind one small protocol."""

from __future__ import annotations

from monai_vqgen.networks.quantizers.base import Quantized, Quantizer
from monai_vqgen.networks.quantizers.ema import EMACodebook
from monai_vqgen.networks.quantizers.fsq import FiniteScalarQuantizer
from monai_vqgen.networks.quantizers.gradient import GradientCodebook

__all__ = ["EMACodebook", "FiniteScalarQuantizer", "GradientCodebook", "Quantized", "Quantizer"]
