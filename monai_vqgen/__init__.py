"""Discrete generative models of medical images for MONAI: hierarchical VQ-VAEs and PixelCNN priors, sampled exactly."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monai_vqgen.errors import CheckpointError, InputError, ScanError, VQGenError
    from monai_vqgen.inferers import AncestralSampler, VolumeReconstructionInferer
    from monai_vqgen.models import TrainedModel
    from monai_vqgen.networks import (
        EMACodebook,
        FiniteScalarQuantizer,
        GatedPixelCNN,
        GradientCodebook,
        HierarchicalVQVAE,
        MaskedPixelCNN,
    )
    from monai_vqgen.transforms import ExtractSliced, FitToSized, LoadSliced, ScaleForegroundd

__version__ = "0.2.0"
__all__ = [
    "AncestralSampler",
    "CheckpointError",
    "EMACodebook",
    "ExtractSliced",
    "FiniteScalarQuantizer",
    "FitToSized",
    "GatedPixelCNN",
    "GradientCodebook",
    "HierarchicalVQVAE",
    "InputError",
    "LoadSliced",
    "MaskedPixelCNN",
    "ScaleForegroundd",
    "ScanError",
    "TrainedModel",
    "VQGenError",
    "VolumeReconstructionInferer",
]

_ROOMS = {
    "errors": ("CheckpointError", "InputError", "ScanError", "VQGenError"),
    "inferers": ("AncestralSampler", "VolumeReconstructionInferer"),
    "models": ("TrainedModel",),
    "transforms": ("ExtractSliced", "FitToSized", "LoadSliced", "ScaleForegroundd"),
}


_SUBPACKAGES = ("data", "engines", "evaluation", "handlers", "inferers", "metrics", "models", "networks", "transforms")


def __getattr__(name: str) -> Any:
    """Import a public name or a room when it is first asked for: this package alone imports nothing heavy."""
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = next((room for room, names in _ROOMS.items() if name in names), "networks")
    return getattr(importlib.import_module(f"{__name__}.{room}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
