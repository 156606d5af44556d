"""What tests are made of: slices, tiny networks, priors, models and code stores; seeded, small, and complete."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from monai_vqgen.anomaly import HealthySlices, anomaly_signals
from monai_vqgen.anomaly.healthy import model_fingerprint
from monai_vqgen.engines import encode_records
from monai_vqgen.models import ModelRecord, TrainedModel
from monai_vqgen.models.loading import LoadedPriors
from monai_vqgen.models.record import SamplingSettings
from monai_vqgen.networks import ConditionEncoder, EMACodebook, GatedPixelCNN, HierarchicalVQVAE
from monai_vqgen.weights import fingerprint

POSITIONS = ConditionEncoder({"position_mm": (40.0, 97.0)})


def tiny_autoencoder(
    num_codes: int | Sequence[int] = 8, *, strides: Sequence[int] = (8, 4), dim: int = 16, seed: int = 0, **more: Any
) -> HierarchicalVQVAE:
    """An untrained autoencoder of some thousand weights, in evaluation mode."""
    torch.manual_seed(seed)
    sizes = [num_codes] * len(strides) if isinstance(num_codes, int) else num_codes
    more = {"channels": 8, "residual_channels": 4, **more}
    quantizers = [EMACodebook(size, dim) for size in sizes]
    return HierarchicalVQVAE(strides=strides, quantizers=quantizers, **more).eval()


def tiny_priors(
    codebook_sizes: Sequence[int] = (8, 8), *, condition: ConditionEncoder | None = None, seed: int = 1, **more: Any
) -> tuple[GatedPixelCNN, ...]:
    """Untrained priors, one a level, coarsest first, in evaluation mode."""
    torch.manual_seed(seed)
    more = {"channels": 8, "num_layers": 2, "attention_every": 0, **more}
    dim = condition.dim if condition else 0
    return tuple(
        GatedPixelCNN(size, coarser_codes=codebook_sizes[:level], condition_dim=dim, **more).eval()
        for level, size in enumerate(codebook_sizes)
    )


def tiny_model(
    image_size: Sequence[int] = (16, 16),
    *,
    autoencoder: HierarchicalVQVAE | None = None,
    condition: ConditionEncoder | None = None,
    with_priors: bool = True,
    settings: SamplingSettings | None = None,
    record: Mapping[str, Any] | None = None,
    **priors: Any,
) -> TrainedModel:
    """An untrained but complete model; `save` writes it with its records.

    Args:
        image_size: of its images.
        autoencoder: by default `tiny_autoencoder()`.
        condition: of the priors.
        with_priors: whether it has any.
        settings: recorded sampling settings.
        record: fields of `ModelRecord`.
        priors: options of `tiny_priors`.
    """
    network = autoencoder or tiny_autoencoder()
    known = {"plane": "axial", "pixel_mm": 3.0, **(record or {}), "image_size": tuple(image_size)}
    whole = ModelRecord(**known, fingerprint=fingerprint(network))
    if not with_priors:
        return TrainedModel(network, record=whole)
    networks = tiny_priors(network.codebook_sizes, condition=condition, **priors)
    loaded = LoadedPriors(
        networks,
        tuple(network.grids(image_size)),
        condition,
        settings or SamplingSettings.recorded([{}] * network.num_levels),
    )
    return TrainedModel(network, loaded, record=whole)


def random_statistics(model: TrainedModel, *, threshold: float = 3.0) -> HealthySlices:
    """Statistics of slices of noise, 40 to 97 mm below the top of the brain."""
    places = [40.0 + 3 * i for i in range(20)]
    images = torch.rand(len(places), 1, *model.record.image_size, generator=torch.Generator().manual_seed(0))
    records = [{"position_mm": place} for place in places]
    features = None if model.condition is None else encode_records(model.condition, records)
    signals = anomaly_signals(model, images, condition=features)
    healthy = HealthySlices.fit([(signals, places)], fingerprint=model_fingerprint(model))
    return healthy._replace(threshold=threshold)


def write_slices(
    folder: Path,
    size: Sequence[int] = (16, 16),
    *,
    counts: Mapping[str, int] | None = None,
    plane: str = "axial",
    pixel_mm: float = 3.472,
) -> None:
    """Discs of their own radius and brightness as NIfTI slices, and their `datalist.json`; one subject a slice."""
    random = np.random.default_rng(0)
    rows, columns = np.ogrid[: size[0], : size[1]]
    square = (rows / size[0] - 0.5) ** 2 + (columns / size[1] - 0.5) ** 2
    datalist: dict[str, Any] = {"plane": plane, "image_size": list(size), "pixel_mm": pixel_mm}
    (folder / "images").mkdir(parents=True)
    for split, count in (counts or {"training": 8, "validation": 4, "test": 2}).items():
        datalist[split] = []
        for i in range(count):
            disc = (square < random.uniform(0.05, 0.2)) * random.uniform(0.4, 1.0)
            name = f"images/{split}{i}.nii.gz"
            nib.save(nib.Nifti1Image(disc[:, :, None].astype(np.float32), np.eye(4)), folder / name)
            record = {"image": name, "subject": f"{split}{i}", "plane": plane, "position_mm": 40.0 + i}
            datalist[split].append(record)
    (folder / "datalist.json").write_text(json.dumps(datalist))
