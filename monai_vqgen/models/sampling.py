"""New slices from trained priors, in memory: codes level by level, decoded.

Shape legend: n samples, b batch, c channels, s spatial axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from monai.data import DataLoader, Dataset
from torch import Tensor

from monai_vqgen.inferers import SliceSampler
from monai_vqgen.models.priors import TrainedPriors
from monai_vqgen.models.requests import PrepareRequests, draw_conditions, sampling_requests
from monai_vqgen.networks import HierarchicalVQVAE

__all__ = ["SampleBatch", "SamplingOptions", "decode_in_batches", "draw_samples"]


class SampleBatch(NamedTuple):
    """What was drawn: images in [0, 1] `(n, 1, *s)`, the codes of each level, the condition of each sample."""

    images_ncs: Tensor
    codes: tuple[Tensor, ...]
    conditions: list[dict[str, Any]]
    seconds: float
    """Time of drawing the codes, decoding left out."""


class SamplingOptions(NamedTuple):
    """How many samples are drawn and how; arguments of `draw_samples`, which says what they mean.

    Example:
        >>> SamplingOptions(num_samples=4)._asdict()
        {'num_samples': 4, 'seed': 0, 'temperature': 1.0, 'top_k': None, 'top_p': None}
    """

    num_samples: int = 16
    seed: int = 0
    temperature: float | Sequence[float] = 1.0
    top_k: int | None = None
    top_p: float | None = None


def draw_samples(
    autoencoder: HierarchicalVQVAE,
    priors: TrainedPriors,
    *,
    num_samples: int,
    seed: int = 0,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    condition: Mapping[str, Any] | None = None,
    like: Sequence[Mapping[str, Any]] | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> SampleBatch:
    """Draw slices that nobody has scanned.

    Args:
        autoencoder: decodes the codes.
        priors: one a level, of this autoencoder.
        num_samples: how many.
        seed: equal seeds give equal samples, whatever the batch size.
        temperature: divides the logits, of all levels or one a level, coarsest first; below 1 likelier and more alike,
            above 1 more varied.
        top_k: draw from the k likeliest codes only.
        top_p: draw from the likeliest codes that hold this much probability.
        condition: values by name for all samples; a name left out is drawn from the trained range.
        like: records of slices; the values of each sample are then those of one of them, drawn at random.
        batch_size: samples drawn at once.
        progress: whether to show a bar.

    Raises:
        InputError: a number out of its range, or a condition the priors do not know.
    """
    conditions = draw_conditions(priors, num_samples=num_samples, seed=seed, given=condition, like=like)
    sampler = SliceSampler(
        priors.networks,
        priors.grids,
        image_size=priors.image_size,
        seed=seed,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        progress=progress,
    )
    device, prepare = next(autoencoder.parameters()).device, PrepareRequests()
    images, codes = [], []
    for batch in DataLoader(Dataset(sampling_requests(priors, conditions)), batch_size=batch_size):
        numbers, _, _, options = prepare(batch, device)
        images.append(sampler(numbers, autoencoder, **options).cpu())
        codes.append(sampler.codes)
    levels = tuple(torch.cat(level) for level in zip(*codes, strict=True))
    return SampleBatch(torch.cat(images), levels, conditions, sampler.seconds)


def decode_in_batches(autoencoder: HierarchicalVQVAE, codes: Sequence[Tensor], *, batch_size: int = 16) -> Tensor:
    """Decode many grids, a batch at a time, to images in [0, 1] on the CPU."""
    with torch.no_grad():
        parts = [
            autoencoder.decode([grid[i : i + batch_size] for grid in codes]).clamp(0, 1).cpu()
            for i in range(0, len(codes[0]), batch_size)
        ]
    return torch.cat(parts)
