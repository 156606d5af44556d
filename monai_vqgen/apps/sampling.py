"""New slices from trained priors: codes level by level, decoded, written as NIfTI, PNG and one grid picture.

Shape legend: n samples, b batch, c channels, s spatial axes, f condition features.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from monai_vqgen.apps.pictures import grid_picture, save_png
from monai_vqgen.apps.priors import TrainedPriors
from monai_vqgen.apps.timing import finished_time, one_thread
from monai_vqgen.data.files import write_json
from monai_vqgen.data.writing import write_slice_nifti
from monai_vqgen.errors import InputError
from monai_vqgen.inferers import AncestralSampler
from monai_vqgen.networks import HierarchicalVQVAE
from monai_vqgen.transforms.geometry import PLANES, check_plane

__all__ = [
    "SampleBatch",
    "crop",
    "draw_conditions",
    "draw_samples",
    "join_conditions",
    "sample_affine",
    "sample_to_folder",
]

logger = logging.getLogger(__name__)

CONDITION_STREAM = 0xC0DE  # keeps the draws of conditions apart from the sampler's noise of the same seed


class SampleBatch(NamedTuple):
    """What was drawn: images in [0, 1] `(n, 1, *s)`, the codes of each level, the condition of each sample."""

    images_ncs: Tensor
    codes: tuple[Tensor, ...]
    conditions: list[dict[str, Any]]
    seconds: float
    """Time of drawing the codes, decoding left out."""


def join_conditions(*parts: Mapping[str, Any] | None) -> dict[str, Any]:
    """One condition of several that were given apart; a value of None counts as not given.

    Raises:
        InputError: two parts give different values of one name.

    Example:
        >>> join_conditions({"sex": "F"}, {"position_mm": None})
        {'sex': 'F'}
    """
    joined: dict[str, Any] = {}
    for part in parts:
        for name, value in (part or {}).items():
            if value is None:
                continue
            if joined.setdefault(name, value) != value:
                raise InputError(f"{name} is given twice, as {joined[name]} and as {value}: leave one out")
    return joined


def draw_conditions(
    priors: TrainedPriors,
    *,
    num_samples: int,
    seed: int = 0,
    given: Mapping[str, Any] | None = None,
    like: Sequence[Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """The condition of each sample: what is given, and for every other name a draw from what the priors were taught.

    With `like`, records of slices, all names of a sample are drawn together: those of one of the records.

    A sample's draw depends on the seed and its own number, not on how many samples there are.

    Raises:
        InputError: a given name or value that the priors do not know.
    """
    given = {name: value for name, value in (given or {}).items() if value is not None}
    if priors.condition is None:
        if given:
            raise InputError(f"these priors take no condition, {sorted(given)} was given: leave it out")
        return [{} for _ in range(num_samples)]
    spec = priors.condition.to_dict()
    continuous, categorical = spec.get("continuous", {}), spec.get("categorical", {})
    unknown = sorted(set(given) - set(continuous) - set(categorical))
    if unknown:
        known = sorted([*continuous, *categorical])
        raise InputError(f"these priors know nothing of {', '.join(unknown)}: they are conditioned on {known}")
    conditions = []
    for sample in range(num_samples):
        rng = np.random.Generator(np.random.Philox(key=[seed % 2**64, CONDITION_STREAM + sample]))
        drawn: dict[str, Any] = {
            name: round(float(rng.uniform(*limits)), 3) for name, limits in sorted(continuous.items())
        }
        drawn.update({name: values[int(rng.integers(len(values)))] for name, values in sorted(categorical.items())})
        if like:
            drawn = priors.condition.select(like[int(rng.integers(len(like)))])
        conditions.append({**drawn, **given})
    priors.condition.encode(conditions)  # refuses a given value outside the trained range before any work
    return conditions


def _check(num_samples: int) -> None:
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise InputError(f"num_samples is {num_samples}; ask for at least 1 sample")


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
    _check(num_samples)
    sampler = AncestralSampler(
        priors.networks, temperature=temperature, top_k=top_k, top_p=top_p, batch_size=batch_size
    )
    conditions = draw_conditions(priors, num_samples=num_samples, seed=seed, given=condition, like=like)
    device = next(autoencoder.parameters()).device
    condition_nf = priors.condition.encode(conditions).to(device) if priors.condition is not None else None
    start = finished_time(device)
    with one_thread(), tqdm(desc="sampling", unit="code", disable=not progress, leave=False) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        codes = sampler.sample(
            priors.grids, num_samples=num_samples, seed=seed, condition=condition_nf, progress=advance
        )
    seconds = finished_time(device) - start
    images_ncs = crop(decode_in_batches(autoencoder, codes, batch_size=batch_size), priors.image_size)
    return SampleBatch(images_ncs, codes, conditions, seconds)


def crop(images_ncs: Tensor, size: Sequence[int]) -> Tensor:
    """The first pixels of each axis: sizes that do not divide were padded at the end. An empty size crops nothing."""
    for axis, length in enumerate(size, start=2):
        images_ncs = images_ncs.narrow(axis, 0, length)
    return images_ncs


def decode_in_batches(autoencoder: HierarchicalVQVAE, codes: Sequence[Tensor], *, batch_size: int = 16) -> Tensor:
    """Decode many grids, a batch at a time, to images in [0, 1] on the CPU."""
    with torch.no_grad():
        parts = [
            autoencoder.decode([grid[i : i + batch_size] for grid in codes]).clamp(0, 1).cpu()
            for i in range(0, len(codes[0]), batch_size)
        ]
    return torch.cat(parts)


def sample_affine(plane: str, image_size: Sequence[int], pixel_mm: float, position_mm: float | None) -> np.ndarray:
    """Where a sample lies: its middle over the origin, at its position below, behind or right of the edge."""
    direction = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    axes = np.array([direction[code] for code in PLANES[check_plane(plane)]], dtype=float).T
    affine = np.eye(4)
    affine[:3, :3] = axes * pixel_mm
    middle = (np.array([*image_size, 1]) - 1) / 2
    affine[:3, 3] = -affine[:3, :3] @ middle + axes[:, 2] * (position_mm or 0.0)
    return affine


def sample_to_folder(
    autoencoder: HierarchicalVQVAE,
    priors: TrainedPriors,
    output_dir: str | Path,
    *,
    num_samples: int,
    seed: int = 0,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    condition: Mapping[str, Any] | None = None,
    plane: str | None = None,
    pixel_mm: float | None = None,
    batch_size: int = 16,
) -> SampleBatch:
    """Draw samples and write them: `images/sample_0000.nii.gz` and `.png`, `samples.png`, `samples.json` (last).

    The other arguments are those of `draw_samples`; `plane` and `pixel_mm` give the NIfTI files their geometry, by
    default that of the slices which the priors learned from (axial and 1 mm where it is not known).
    """
    plane = check_plane(plane or priors.plane or "axial")
    pixel_mm = pixel_mm or priors.pixel_mm or 1.0
    batch = draw_samples(
        autoencoder,
        priors,
        num_samples=num_samples,
        seed=seed,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        condition=condition,
        batch_size=batch_size,
    )
    folder = Path(output_dir)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images_nhw = batch.images_ncs[:, 0].numpy()
    entries = []
    for index, (image_hw, values) in enumerate(
        tqdm(zip(images_nhw, batch.conditions, strict=True), total=num_samples, desc="writing samples", leave=False)
    ):
        name = f"images/sample_{index:04d}"
        about = {"synthetic": True, "seed": seed, "index": index, "temperature": temperature, "condition": values}
        affine = sample_affine(plane, image_hw.shape, pixel_mm, values.get("position_mm"))
        write_slice_nifti(folder / f"{name}.nii.gz", image_hw, affine, about)
        save_png(image_hw, folder / f"{name}.png")
        entries.append({**about, "image": f"{name}.nii.gz", "picture": f"{name}.png"})
    save_png(grid_picture(images_nhw), folder / "samples.png")
    write_json(
        folder / "samples.json",
        {
            "description": "Synthetic slices; not for clinical use.",
            "seed": seed,
            "num_samples": num_samples,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "plane": plane,
            "pixel_mm": pixel_mm,
            "autoencoder_fingerprint": priors.autoencoder_fingerprint,
            "seconds": round(batch.seconds, 3),
            "samples": entries,
        },
    )
    logger.info("%d samples in %.1f s, written to %s", num_samples, batch.seconds, folder)
    return batch
