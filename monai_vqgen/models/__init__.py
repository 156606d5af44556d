"""Trained models and what people do with them: reconstruct, sample, complete, score, export."""

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen.models.anomaly_scans import (
        AnomalyScan as AnomalyScan,
        anomaly_names as anomaly_names,
        anomaly_scan as anomaly_scan,
        healthy_beside as healthy_beside,
        write_anomalies as write_anomalies,
    )
    from monai_vqgen.models.denoising import CycleSpinning as CycleSpinning
    from monai_vqgen.models.export import export_model as export_model, export_names as export_names
    from monai_vqgen.models.loading import recorded_autoencoder as recorded_autoencoder, start_from as start_from
    from monai_vqgen.models.reconstruction_files import (
        ReconstructionLayout as ReconstructionLayout,
        ReconstructionWriter as ReconstructionWriter,
        SaveSecondaryCapturesd as SaveSecondaryCapturesd,
        reconstruction_names as reconstruction_names,
    )
    from monai_vqgen.models.record import (
        ModelRecord as ModelRecord,
        SamplingSettings as SamplingSettings,
        autoencoder_record as autoencoder_record,
        prior_record as prior_record,
        trained_prior_record as trained_prior_record,
    )
    from monai_vqgen.models.sample_files import (
        SAMPLE_FILES as SAMPLE_FILES,
        SampleFiles as SampleFiles,
        SampleInferer as SampleInferer,
    )
    from monai_vqgen.models.samples import (
        Samples as Samples,
        draw_codes as draw_codes,
        draw_conditions as draw_conditions,
        join_conditions as join_conditions,
    )
    from monai_vqgen.models.saving import hand_down_priors as hand_down_priors
    from monai_vqgen.models.scans import (
        LoadScand as LoadScand,
        UsableScans as UsableScans,
        model_pixel_mm as model_pixel_mm,
        reconstruction_records as reconstruction_records,
    )
    from monai_vqgen.models.stream_files import (
        compress_files as compress_files,
        decompress_files as decompress_files,
    )
    from monai_vqgen.models.streams import compress_scan as compress_scan, decompress_scan as decompress_scan
    from monai_vqgen.models.trained_model import TrainedModel as TrainedModel
else:
    __getattr__, __dir__, __all__ = attach(__name__)
