"""Priors: autoregressive distributions over grids of codes."""

from __future__ import annotations

from monai_vqgen.networks.priors.base import IncrementalPass, PlainIncremental, Prior
from monai_vqgen.networks.priors.gated import GatedPixelCNN
from monai_vqgen.networks.priors.selection import pick_prior

__all__ = ["GatedPixelCNN", "IncrementalPass", "PlainIncremental", "Prior", "pick_prior"]
