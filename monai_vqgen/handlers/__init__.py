"""Handlers for MONAI's engines: safe checkpoints, curves, codebook health, pictures, guards, progress."""

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen.handlers.checkpoints import (
        BestCheckpoint as BestCheckpoint,
        MovingAverage as MovingAverage,
        TrainingState as TrainingState,
    )
    from monai_vqgen.handlers.guards import (
        GradientGuard as GradientGuard,
        Patience as Patience,
        TimeBudget as TimeBudget,
        check_time_budget as check_time_budget,
    )
    from monai_vqgen.handlers.history import (
        History as History,
        TensorBoardCurves as TensorBoardCurves,
        TrainingProgress as TrainingProgress,
        name_tracked as name_tracked,
    )
    from monai_vqgen.handlers.images import (
        ReconstructionImages as ReconstructionImages,
        SampleImages as SampleImages,
        image_rows as image_rows,
    )
    from monai_vqgen.handlers.output import (
        claim_output as claim_output,
        claim_training as claim_training,
        log_to_file as log_to_file,
        publish_output as publish_output,
    )
    from monai_vqgen.handlers.statistics import (
        CodebookHealth as CodebookHealth,
        EpochLog as EpochLog,
        ObjectiveMean as ObjectiveMean,
        objective_means as objective_means,
    )
else:
    __getattr__, __dir__, __all__ = attach(__name__)
