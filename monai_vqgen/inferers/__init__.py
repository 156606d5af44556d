"""Inferers: sampling from priors, and reconstruction."""

from __future__ import annotations

from monai_vqgen.inferers.ancestral import AncestralSampler
from monai_vqgen.inferers.noise import GumbelNoise
from monai_vqgen.inferers.reconstruction import VolumeReconstructionInferer
from monai_vqgen.inferers.threads import finished_time, one_thread
from monai_vqgen.inferers.truncation import Truncation

__all__ = [
    "AncestralSampler",
    "GumbelNoise",
    "Truncation",
    "VolumeReconstructionInferer",
    "finished_time",
    "one_thread",
]
