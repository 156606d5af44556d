"""What is asked of the priors and what they give: conditions by name, masks of codes, samples.

Shape legend: n samples, b batch, c channels, f condition features, h w rows and columns, s spatial axes (2 or 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_vqgen.errors import InputError
from monai_vqgen.models.record import SamplingSettings
from monai_vqgen.networks.conditions import ConditionEncoder

__all__ = [
    "Samples",
    "check_names",
    "code_masks",
    "draw_codes",
    "draw_conditions",
    "encode_conditions",
    "join_conditions",
]

CONDITION_STREAM = 0xC0DE  # keeps the draws of conditions apart from the sampler's noise of the same seed


class Samples(NamedTuple):
    """Synthetic images.

    Attributes:
        images: float32 `(n, c, *s)` in [0, 1], on the CPU.
        codes: integers `(n, *grid)` a level, coarsest first.
        conditions: the values by name that each was drawn with.
        affine: float64 `(n, 4, 4)`, voxel `[row, column, 0]` to mm (RAS+): each at its position, its middle over the
            origin; of volumes their middle is at the origin. None where plane or pixel size are unknown.
        seed: with a sample's index, decides it.
        settings: temperature, top_k and top_p a level.
        seconds: time of drawing the codes, decoding left out.
        synthetic: always true.
    """

    images: Tensor
    codes: tuple[Tensor, ...]
    conditions: list[dict[str, Any]]
    affine: Tensor | None
    seed: int
    settings: SamplingSettings
    seconds: float
    synthetic: bool = True


def join_conditions(*parts: Mapping[str, Any] | None) -> dict[str, Any]:
    """One condition of several that were given apart; a value of None counts as not given.

    Raises:
        InputError: two parts give different values of one name.

    Examples:
        >>> join_conditions({"sex": "F"}, {"position_mm": None})
        {'sex': 'F'}
    """
    joined: dict[str, Any] = {}
    for part in parts:
        for name, value in (part or {}).items():
            if value is not None and joined.setdefault(name, value) != value:
                raise InputError(f"{name} is given twice, as {joined[name]} and as {value}: leave one out")
    return joined


def draw_conditions(
    encoder: ConditionEncoder | None,
    num_samples: int,
    *,
    seed: int = 0,
    given: Mapping[str, Any] | None = None,
    like: Sequence[Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """The condition of each sample: what is given, and for every other name a draw from the trained range.

    A sample's draw depends on the seed and its own number, not on how many samples there are.

    Args:
        encoder: knows names and ranges; None where the priors take no condition.
        num_samples: how many, at least 1.
        seed: of the draws.
        given: values by name for all samples; None counts as not given.
        like: records of slices; the names that are not given are then drawn together, from one of the records, whose
            values are moved into the trained ranges.

    Raises:
        InputError: no sample is asked for, or a name or value that the priors were not trained with.
    """
    check_count(num_samples)
    given = {name: value for name, value in (given or {}).items() if value is not None}
    check_names(encoder, given)
    if encoder is None:
        return [{} for _ in range(num_samples)]
    if like:
        from monai_vqgen.engines.conditions import fitted_conditions

        like = fitted_conditions(encoder, like)
    conditions = []
    for sample in range(num_samples):
        rng = np.random.Generator(np.random.Philox(key=[seed % 2**64, CONDITION_STREAM + sample]))
        drawn: dict[str, Any] = {
            name: round(float(rng.uniform(*limits)), 3) for name, limits in sorted(encoder.continuous.items())
        }
        choices = sorted(encoder.categorical.items())
        drawn.update({name: values[int(rng.integers(len(values)))] for name, values in choices})
        if like:
            drawn = dict(like[int(rng.integers(len(like)))])
        conditions.append({**drawn, **given})
    encoder.encode(conditions)  # refuses a value outside the trained range before any work
    return conditions


def draw_codes(
    model: Any, num_samples: int, *, seed: int = 0, like: Sequence[Mapping[str, Any]] | None = None
) -> list[Tensor]:
    """Draw codes without decoding them, with the recorded settings.

    Args:
        model: a `TrainedModel` with priors.
        num_samples: how many, at least 1.
        seed: of the draws.
        like: records of slices, each sample's condition is that of one of them; None draws from the trained ranges.

    Returns:
        Grids ``(num_samples, *grid)`` a level, coarsest first.

    Raises:
        CheckpointError: the model has no priors.
        InputError: no sample is asked for.
    """
    from monai_vqgen.inferers.draws import one_thread

    sampler, encoder = model.sampler(), model.condition
    conditions = draw_conditions(encoder, num_samples, seed=seed, like=like)
    features = None if encoder is None else encoder.encode(conditions).to(model.device)
    with one_thread():
        codes = sampler.sample(model.grids, num_samples=num_samples, seed=seed, condition=features)
    return [grid.cpu().clone() for grid in codes]


def encode_conditions(encoder: ConditionEncoder | None, count: int, given: Mapping[str, Any]) -> Tensor | None:
    """Features `(count, f)` of values by name, each one value for all or one an image; None without conditions.

    A name that is left out counts as unknown.

    Raises:
        InputError: an unknown name, a value outside the trained range, or another number of values than images.
    """
    given = {name: value for name, value in given.items() if value is not None}
    check_names(encoder, given)
    if encoder is None:
        return None
    columns = {name: _one_each(name, value, count) for name, value in given.items()}
    return encoder.encode([{name: values[i] for name, values in columns.items()} for i in range(count)])


def check_count(num_samples: Any, *, first_sample: Any = 0) -> None:
    """Refuse what is no number of samples, or no place of the first."""
    for name, value, least in (("num_samples", num_samples, 1), ("first_sample", first_sample, 0)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise InputError(f"{name} is {value!r}; give a whole number, at least {least}")


def check_names(encoder: ConditionEncoder | None, given: Mapping[str, Any]) -> None:
    """Refuse conditions that the priors were not trained with."""
    unknown = sorted(set(given) - set(encoder.names if encoder is not None else ()))
    if unknown and encoder is None:
        raise InputError(f"these priors take no condition, but {', '.join(unknown)} was given: leave it out")
    if unknown and encoder is not None:
        raise InputError(f"these priors are conditioned on {', '.join(encoder.names)}, not on {', '.join(unknown)}")


def _one_each(name: str, value: Any, count: int) -> list[Any]:
    values = value.tolist() if isinstance(value, Tensor | np.ndarray) else value
    if not isinstance(values, list | tuple):
        return [values] * count
    if len(values) != count:
        raise InputError(f"{name} has {len(values)} values for {count} images: give one value, or one an image")
    return list(values)


def code_masks(mask_bs: Tensor, grids: Sequence[Sequence[int]], *, image_size: Sequence[int]) -> list[Tensor]:
    """Which codes of each level cover a masked pixel.

    Args:
        mask_bs: booleans `(b, *s)`.
        grids: sizes of each level's grid, coarsest first.
        image_size: pixels that the grids cover, padding included; images start at its first pixel.

    Returns:
        Booleans `(b, *grid)` a level.

    Examples:
        >>> mask = torch.zeros(1, 4, 4, dtype=torch.bool)
        >>> mask[0, 0, 3] = True
        >>> code_masks(mask, [(1, 1), (2, 2)], image_size=(4, 4))[1].tolist()
        [[[False, True], [False, False]]]
    """
    missing = [full - size for full, size in zip(image_size, mask_bs.shape[1:], strict=True)]
    padded_bs = F.pad(mask_bs.float(), [width for size in reversed(missing) for width in (0, size)])
    pool = F.max_pool2d if mask_bs.ndim == 3 else F.max_pool3d
    masks = []
    for grid in grids:
        strides = [full // count for full, count in zip(image_size, grid, strict=True)]
        masks.append(pool(padded_bs[:, None], strides, strides)[:, 0] > 0)
    return masks


def sample_affines(
    plane: str, image_size: Sequence[int], pixel_mm: float, positions_mm: Sequence[float | None]
) -> Tensor:
    """Where samples lie, `(n, 4, 4)`: their middle over the origin, at their position; of volumes at the origin."""
    from monai_vqgen.transforms.geometry import VIEWS

    direction = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    axes = np.array([direction[code] for code in VIEWS[plane]], dtype=float).T
    middle = (np.array([*image_size, 1][:3]) - 1) / 2
    affines = np.tile(np.eye(4), (len(positions_mm), 1, 1))
    affines[:, :3, :3] = axes * pixel_mm
    for affine, position in zip(affines, positions_mm, strict=True):
        affine[:3, 3] = -affine[:3, :3] @ middle + axes[:, 2] * (position or 0.0)
    return torch.from_numpy(affines)


def asked_for(condition: Mapping[str, Any]) -> str:
    """The condition of a sample in a few characters: ``65 mm f 30``; a position comes first."""
    values = {**({"position_mm": None} if "position_mm" in condition else {}), **condition}
    known = {name: value for name, value in values.items() if value is not None}
    words = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in known.values()]
    return " ".join([f"{words[0]} mm", *words[1:]] if "position_mm" in known else words)


def drawn_with(seed: int, settings: SamplingSettings, *, what: str = "Synthetic") -> str:
    """How synthetic images were drawn, for the line above a picture of them; `what` where real ones stand beside."""
    chosen = {name: ", ".join(map(str, values)) for name, values in settings._asdict().items() if any(values)}
    return f"{what}: " + ", ".join([f"seed {seed}", *(f"{name} {value}" for name, value in chosen.items())])
