"""Synthetic lesions with exact masks, for measuring anomaly maps where no patients with masks are at hand.

Shape legend: c channels, h w rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from monai.config.type_definitions import NdarrayOrTensor
from monai.transforms.transform import Transform
from monai.utils.enums import TransformBackends
from numpy.typing import NDArray
from scipy import ndimage

from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.transforms.intensity import BRAIN_LEVEL
from monai_vqgen.transforms.tensors import name_of, to_numpy, with_values

__all__ = [
    "Lesion",
    "SyntheticLesion",
    "draw_lesion",
    "place_lesion",
]

LesionKind = Literal["dark", "bright", "blurred", "noisy", "deformed"]
LESION_KINDS: tuple[LesionKind, ...] = get_args(LesionKind)
STRENGTHS = {
    "dark": (0.5, 0.9),  # share of the intensity that is taken away
    "bright": (0.4, 0.7),  # of the range [0, 1], added
    "blurred": (2.5, 5.0),  # pixels, sigma of a Gaussian
    "noisy": (0.2, 0.35),  # of the range, standard deviation
    "deformed": (0.4, 0.64),  # of the radius, by which the middle is shifted along the first axis; 0.65 would fold it
}
RADII = (4.0, 9.0)  # pixels; 7 to 16 mm at the pixels of the shipped weights
RAMP = 0.25  # of the radius over which a lesion rises to its full strength
MOST_OUTSIDE = 0.1  # of a lesion's area that may lie outside the brain
ATTEMPTS = 200  # places that are tried
LESION_STREAM = 0x1E510  # keeps these draws apart from other draws of the same seed


class Lesion(NamedTuple):
    """All there is to know of a lesion; with `place_lesion` it can be made again.

    Attributes:
        kind: "dark", "bright", "blurred", "noisy" or "deformed".
        center: row and column in pixels.
        radii: half axes of its ellipse in pixels.
        angle: of the first half axis against the rows, radians.
        strength: by kind: the share of the intensity taken away, what is added to it, the blur's sigma in pixels, the
            noise's standard deviation, the shift of the middle as a share of the first half axis.
        seed: of the noise of a noisy one.
    """

    kind: LesionKind
    center: tuple[float, float]
    radii: tuple[float, float]
    angle: float
    strength: float
    seed: int = 0


def _weight(lesion: Lesion, size: Sequence[int]) -> NDArray:
    """How much of the lesion each pixel has, `(h, w)` from 0 outside to 1 inside."""
    return np.clip((1 - _distance(lesion, size)) / RAMP, 0, 1)


def _distance(lesion: Lesion, size: Sequence[int]) -> NDArray:
    """Of each pixel from the center, in radii."""
    offsets = [np.arange(n, dtype=float) - c for n, c in zip(size, lesion.center, strict=True)]
    down_hw, right_hw = np.meshgrid(*offsets, indexing="ij")
    cosine, sine = np.cos(lesion.angle), np.sin(lesion.angle)
    first, second = cosine * down_hw + sine * right_hw, cosine * right_hw - sine * down_hw
    return np.hypot(first / lesion.radii[0], second / lesion.radii[1])


def draw_lesion(
    image_hw: NDArray, *, seed: int, kind: LesionKind | None = None, radii: Sequence[float] = RADII
) -> Lesion:
    """A lesion of random place, size and strength, in the brain of a slice.

    Args:
        image_hw: values in [0, 1].
        seed: decides everything but the brain's outline.
        kind: by default drawn too.
        radii: smallest and largest half axis in pixels.

    Raises:
        InputError: no such kind.
        ScanError: the slice has no place for a lesion of this size.

    Examples:
        >>> lesion = draw_lesion(np.ones((64, 64)), seed=3, kind="dark")
        >>> lesion.kind, 4 <= min(lesion.radii) <= max(lesion.radii) <= 9
        ('dark', True)
    """
    if kind is not None and kind not in LESION_KINDS:
        raise InputError(f"kind is {kind!r}; choose one of {', '.join(LESION_KINDS)}")
    rng = np.random.Generator(np.random.Philox(key=[seed % 2**64, LESION_STREAM]))
    drawn = kind or LESION_KINDS[int(rng.integers(len(LESION_KINDS)))]
    low, high = STRENGTHS[drawn]
    strength = float(rng.uniform(low, high))
    brain_hw = np.asarray(image_hw) > BRAIN_LEVEL
    inside = np.argwhere(ndimage.binary_fill_holes(brain_hw))
    for _ in range(ATTEMPTS if len(inside) else 0):
        row, column = inside[int(rng.integers(len(inside)))].tolist()
        axes = (float(rng.uniform(radii[0], radii[1])), float(rng.uniform(radii[0], radii[1])))
        lesion = Lesion(drawn, (row, column), axes, float(rng.uniform(0, np.pi)), strength, seed)
        mask_hw = _weight(lesion, brain_hw.shape) > 0
        if (mask_hw & ~brain_hw).sum() <= MOST_OUTSIDE * mask_hw.sum():
            return lesion
    raise ScanError(f"a slice of shape {brain_hw.shape} has no room for a lesion of radius {radii[0]:g} pixels in it")


def place_lesion(image_hw: NDArray, lesion: Lesion) -> tuple[NDArray, NDArray]:
    """The slice with the lesion, float32 in [0, 1], and its mask: the brain's pixels in its ellipse.

    Pixels outside the mask stay exactly as they were; each inside is changed, by however little at the rim.
    """
    image_hw = np.asarray(image_hw, dtype=np.float64)
    weight_hw = _weight(lesion, image_hw.shape) * (image_hw > BRAIN_LEVEL)
    changed_hw = image_hw + weight_hw * (_changed(image_hw, lesion) - image_hw)
    mask_hw = weight_hw > 0
    return np.where(mask_hw, changed_hw, image_hw).clip(0, 1).astype(np.float32), mask_hw


def _changed(image_hw: NDArray, lesion: Lesion) -> NDArray:
    """The whole slice changed as the lesion changes its middle."""
    if lesion.kind == "dark":
        return image_hw * (1 - lesion.strength)
    if lesion.kind == "bright":
        return image_hw + lesion.strength
    if lesion.kind == "blurred":
        return ndimage.gaussian_filter(image_hw, lesion.strength)
    if lesion.kind == "noisy":
        rng = np.random.Generator(np.random.Philox(key=[lesion.seed % 2**64, LESION_STREAM + 1]))
        return image_hw + lesion.strength * rng.standard_normal(image_hw.shape)
    shift_hw = lesion.strength * lesion.radii[0] * np.clip(1 - _distance(lesion, image_hw.shape) ** 2, 0, None) ** 2
    rows_hw, columns_hw = np.indices(image_hw.shape, dtype=float)
    places = [rows_hw - np.cos(lesion.angle) * shift_hw, columns_hw - np.sin(lesion.angle) * shift_hw]
    return ndimage.map_coordinates(image_hw, places, order=1, mode="nearest")


class SyntheticLesion(Transform):
    """Put one synthetic lesion into a slice; the same seed and slice give the same lesion.

    Args:
        kind: "dark", "bright", "blurred", "noisy" or "deformed"; by default one of them by the seed.
        seed: of kind, place, size, strength and noise.
        radii: smallest and largest half axis in pixels.

    Shapes: `[1, H, W]` in [0, 1] to the same, float32. `with_mask` and `SyntheticLesiond` also give the exact mask.

    Raises:
        InputError: an unknown kind, or no slice of one channel.
        ScanError: a slice without room for it.

    Examples:
        >>> image = torch.ones(1, 64, 64) / 2
        >>> bool((SyntheticLesion("bright", seed=1)(image) > image).any())
        True
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]  # noqa: RUF012 (MONAI's own convention)

    def __init__(self, kind: LesionKind | None = None, *, seed: int = 0, radii: Sequence[float] = RADII) -> None:
        if kind is not None and kind not in LESION_KINDS:
            raise InputError(f"kind is {kind!r}; choose one of {', '.join(LESION_KINDS)}")
        self.kind, self.seed, self.radii = kind, seed, tuple(radii)

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        """Change one slice."""
        return self.with_mask(img)[0]

    def with_mask(self, img: NdarrayOrTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The slice with the lesion, and its mask `[1, H, W]`, uint8."""
        pixels = to_numpy(img)
        if pixels.ndim != 3 or len(pixels) != 1:
            raise InputError(f"{name_of(img)}: shape {tuple(pixels.shape)} is no slice of one channel [1, H, W]")
        lesion = draw_lesion(pixels[0], seed=self.seed, kind=self.kind, radii=self.radii)
        image_hw, mask_hw = place_lesion(pixels[0], lesion)
        return with_values(image_hw[None], img), with_values(mask_hw[None].astype(np.uint8), img)
