"""Discrete generative models of medical images for MONAI: hierarchical VQ-VAEs and PixelCNN priors, sampled exactly."""

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen import (
        coding as coding,
        data as data,
        engines as engines,
        evaluation as evaluation,
        handlers as handlers,
        inferers as inferers,
        metrics as metrics,
        models as models,
        networks as networks,
        transforms as transforms,
    )
    from monai_vqgen.errors import (
        CheckpointError as CheckpointError,
        InputError as InputError,
        ScanError as ScanError,
        StreamError as StreamError,
        VQGenError as VQGenError,
    )
    from monai_vqgen.inferers import (
        AncestralSampler as AncestralSampler,
        VolumeReconstructionInferer as VolumeReconstructionInferer,
    )
    from monai_vqgen.models import TrainedModel as TrainedModel
    from monai_vqgen.networks import (
        EMACodebook as EMACodebook,
        FiniteScalarQuantizer as FiniteScalarQuantizer,
        GatedPixelCNN as GatedPixelCNN,
        GradientCodebook as GradientCodebook,
        HierarchicalVQVAE as HierarchicalVQVAE,
        MaskedPixelCNN as MaskedPixelCNN,
    )
    from monai_vqgen.transforms import (
        ExtractSliced as ExtractSliced,
        FitToSized as FitToSized,
        LoadSliced as LoadSliced,
        ScaleForegroundd as ScaleForegroundd,
    )
else:
    __getattr__, __dir__, __all__ = attach(__name__)

__version__ = "0.2.0"
