"""Discrete generative models of medical images for MONAI: hierarchical VQ-VAEs and PixelCNN priors, sampled exactly."""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__"]
