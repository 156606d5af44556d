"""Inferers: sampling from priors, and reconstruction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen.inferers.ancestral import AncestralSampler
    from monai_vqgen.inferers.draws import GumbelNoise, Truncation
    from monai_vqgen.inferers.reconstruction import VolumeReconstructionInferer
    from monai_vqgen.inferers.threads import finished_time, one_thread
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "ancestral": ["AncestralSampler"],
            "draws": ["GumbelNoise", "Truncation"],
            "reconstruction": ["VolumeReconstructionInferer"],
            "threads": ["finished_time", "one_thread"],
        },
    )

__all__ = [
    "AncestralSampler",
    "GumbelNoise",
    "Truncation",
    "VolumeReconstructionInferer",
    "finished_time",
    "one_thread",
]
