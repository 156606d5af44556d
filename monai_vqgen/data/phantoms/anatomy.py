"""A brain from formulas: the T1-weighted brightness of any point of a subject's head.

Everything is built from depths in millimeters (positive inside a structure) in the subject's own frame: x to the
right, y to the front, z upwards, the origin near the thalami. Cortex is what lies within a few millimeters of a
surface: the hull's, a sulcus's, the interhemispheric or the Sylvian fissure's. Sulci are the zero level of a smooth
random field that is constant along rays to the hemisphere's middle, so they run inwards as sheets and wind over the
surface as gyri do. Sizes are of an adult brain, to look right and to vary, not to measure by.

    hull, fissures, sulci --> depth below the nearest surface --> CSF | gray | white --> deep nuclei, ventricles --> T1
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["HALF_EXTENT_MM", "Subject", "brightness"]

Field = NDArray[np.floating]

HALF_EXTENT_MM = (73.0, 93.0, 82.0)  # of a box that holds every subject's brain, before size and rotation
CSF, GRAY, WHITE = 0.16, 0.52, 0.86  # T1-weighted brightness, white matter near 1
EDGE_MM = 0.9  # width of a soft edge: partial volume
FIELD_CELLS, FIELD_MM = 48, 3.5  # lattice of the folding field
SULCUS_SPACING_MM = 11.0


class Subject(NamedTuple):
    """What makes one brain differ from the next."""

    age: float
    sex: str
    size: tuple[float, float, float]
    ventricle: float
    sulcus_mm: float
    cortex_mm: float
    warp: NDArray
    """`(6, 8)`: wave vector (3), phase, displacement (3) of smooth bends, one a row; the last column is unused."""
    folding: Field
    depth: Field
    shifts: NDArray

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Subject:
        """Draw a subject: older brains have wider ventricles and sulci and a thinner cortex."""
        age = float(np.round(rng.uniform(18, 85), 1))
        sex = str(rng.choice(["f", "m"]))
        size = (0.94 if sex == "f" else 1.0) * rng.normal(1, 0.035, 3).clip(0.92, 1.07)
        warp = np.concatenate(
            [rng.normal(0, 0.03, (6, 3)), rng.uniform(0, 2 * np.pi, (6, 1)), rng.normal(0, 1.2, (6, 4))], axis=1
        )
        return cls(
            age=age,
            sex=sex,
            size=(float(size[0]), float(size[1]), float(size[2])),
            ventricle=float((0.62 + 0.011 * (age - 18)) * rng.uniform(0.85, 1.2)),
            sulcus_mm=float(0.5 + 0.014 * (age - 18) + rng.uniform(0, 0.3)),
            cortex_mm=float(3.2 - 0.008 * (age - 18) + rng.uniform(-0.15, 0.15)),
            warp=warp.astype(np.float32),
            folding=_band_noise(rng, SULCUS_SPACING_MM * 2),
            depth=_band_noise(rng, 45.0),
            shifts=rng.uniform(0, FIELD_CELLS, (2, 3)).astype(np.float32),
        )


def _band_noise(rng: np.random.Generator, wavelength_mm: float) -> Field:
    """A periodic random field of one wavelength, unit variance."""
    k = np.fft.fftfreq(FIELD_CELLS, FIELD_MM)
    radius = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, :] ** 2) * wavelength_mm
    band = np.exp(-(((radius - 1) / 0.28) ** 2))
    field = np.fft.ifftn(np.fft.fftn(rng.standard_normal((FIELD_CELLS,) * 3)) * band).real
    return (field / field.std()).astype(np.float32)


def _sample(field: Field, x: Field, y: Field, z: Field, shift: NDArray) -> Field:
    points = np.stack([c / np.float32(FIELD_MM) + s for c, s in zip((x, y, z), shift, strict=True)])
    sampled: Field = ndimage.map_coordinates(field, points, order=1, mode="grid-wrap")
    return sampled


def _ellipsoid(x: Field, y: Field, z: Field, middle: tuple[float, ...], radii: tuple[float, ...]) -> Field:
    """Approximate depth below an ellipsoid's surface."""
    (cx, cy, cz), (rx, ry, rz) = middle, radii
    r = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2)
    return np.asarray((1 - r) * np.float32((rx * ry * rz) ** (1 / 3)), dtype=np.float32)


def _inside(depth: Field, edge: float = EDGE_MM) -> Field:
    """Depth to a soft 0 to 1."""
    return np.clip(depth / np.float32(edge) + np.float32(0.5), 0, 1)


def _over(image: Field, value: float | Field, weight: Field) -> None:
    """Paint a structure over the image, in place."""
    image += (value - image) * weight


def brightness(subject: Subject, x: Field, y: Field, z: Field) -> Field:
    """T1-weighted brightness (0 outside the brain, white matter near 0.86) of points in millimeters.

    Args:
        subject: whose brain.
        x: millimeters to the right, any shape.
        y: millimeters to the front.
        z: millimeters upwards.
    """
    x, y, z = _bent(subject, x, y, z)
    side = np.abs(x)
    stem = np.maximum(
        _ellipsoid(side, y + 0.25 * (z + 30), z, (0, -22, -44), (15, 14, 44)),
        _ellipsoid(side, y, z, (0, -15, -40), (18, 14, 16)),
    )
    cerebellum = np.maximum(
        _ellipsoid(side, y, z, (22, -52, -42), (31, 32, 25)), _ellipsoid(side, y, z, (0, -54, -40), (16, 26, 22))
    )
    cerebrum = _cerebrum_hull(side, y, z)
    image = _cerebrum(subject, x, side, y, z, cerebrum)
    _paint_deep(subject, image, side, y, z)
    # the cerebellum lies below the tent: a thin dark gap, then its own folds
    tent = _inside(cerebellum + 2.0, 1.0)
    _over(image, CSF, tent)
    hull = np.maximum(np.maximum(cerebrum, cerebellum), stem)
    _over(image, _cerebellum(subject, x, side, y, z, cerebellum), _inside(cerebellum))
    _over(image, 0.8, _inside(stem, 2.0))
    _over(image, CSF, _inside(_ellipsoid(side, y, z, (0, -36, -42), (6 * subject.ventricle, 5, 9))))
    return image * _inside(hull)


def _bent(subject: Subject, x: Field, y: Field, z: Field) -> tuple[Field, Field, Field]:
    """The subject's frame to the average one: size, then smooth bends."""
    x, y, z = (c / np.float32(s) for c, s in zip((x, y, z), subject.size, strict=True))
    moved = [x.copy(), y.copy(), z.copy()]
    for kx, ky, kz, phase, dx, dy, dz, _ in subject.warp:
        wave = np.sin(kx * x + ky * y + kz * z + phase)
        for axis, amount in enumerate((dx, dy, dz)):
            moved[axis] += amount * wave
    return moved[0], moved[1], moved[2]


def _cerebrum_hull(side: Field, y: Field, z: Field) -> Field:
    below = np.maximum(0, 8 - z)  # the base is flatter than the vault
    main = _ellipsoid(side, y, z - 0.4 * below, (25, -3, 8), (42, 84, 58))
    temporal = _ellipsoid(side, y - 0.15 * z, z, (40, 2, -25), (25, 44, 25))
    return np.maximum(main, temporal)


def _cerebrum(subject: Subject, x: Field, side: Field, y: Field, z: Field, hull: Field) -> Field:
    """Cortex and white matter by depth below the nearest surface."""
    # between the hemispheres, but for a core of corpus callosum and thalami that joins them
    core = _ellipsoid(side, y, z, (0, -3, 3), (40, 42, 25))
    fissure = np.hypot(np.maximum(side - 0.5 * subject.sulcus_mm - 0.3, 0), np.maximum(core, 0))
    sylvian_z = -8 + 0.22 * (y - 5) + 0.12 * (side - 40)
    sylvian = np.hypot(np.abs(z - sylvian_z), np.maximum(0, 35 - side) + np.maximum(0, np.abs(y - 6) - 32))
    insula = np.hypot(np.abs(side - 37), np.maximum(0, np.abs(z + 2) - 12) + np.maximum(0, np.abs(y - 8) - 20))
    folds = np.minimum(sylvian, insula) - np.float32(0.6 * subject.sulcus_mm + 0.3)
    # medial sulci are shallow: their depth counts from 8 mm before the fissure
    sulci = _sulci(subject, x, y, z, np.minimum(hull, fissure + 8))
    depth_all = np.minimum(np.minimum(hull, fissure), np.minimum(folds, sulci))
    image = np.full(x.shape, CSF, dtype=np.float32)
    _over(image, GRAY, _inside(depth_all))
    _over(image, WHITE, _inside(depth_all - np.float32(subject.cortex_mm), 1.3))
    return image


def _sulci(subject: Subject, x: Field, y: Field, z: Field, depth: Field) -> Field:
    """Distance to the nearest sulcus, negative in its fluid."""
    dx, dy, dz = np.where(x > 0, x - 25, x + 25), y + 3, z - 6
    radius = np.sqrt(dx * dx + (dy * np.float32(0.55)) ** 2 + (dz * np.float32(0.8)) ** 2) + 1
    # onto a shell, so that the field hardly changes along a ray; the rest lets sulci curve inwards
    pull = np.float32(0.72) * (np.float32(44) / radius - 1) + 1
    shift = np.where(x > 0, np.float32(0), np.float32(17))
    px, py, pz = dx * pull + shift, dy * pull, dz * pull
    wave = _sample(subject.folding, px, py, pz, subject.shifts[0])
    deep = _sample(subject.depth, px, py, pz, subject.shifts[1])
    # a wave of unit variance and this wavelength climbs about 2 pi / wavelength a millimeter
    away = np.abs(wave) * np.float32(SULCUS_SPACING_MM / np.pi) / np.clip(pull, 0.7, 3)
    bottom = np.clip(19 + 7 * deep, 6, 32)
    return np.hypot(away, np.maximum(0, depth - bottom)) - np.float32(0.5 * subject.sulcus_mm)


def _paint_deep(subject: Subject, image: Field, side: Field, y: Field, z: Field) -> None:
    """Nuclei and ventricles."""
    nuclei = (
        ((10.5, -15, 3), (9.5, 14, 9.5), 0.66),  # thalamus
        ((13, 18, 8), (5.5, 10, 11), 0.56),  # caudate, head
        ((16, 2, 18), (4, 17, 4.5), 0.56),  # caudate, body
        ((26, 4, 1), (6.5, 15, 10.5), 0.58),  # putamen
        ((19, 0, -1), (4.5, 9, 7), 0.72),  # pallidum
        ((24, -8, -24), (8, 9, 7), 0.56),  # amygdala and hippocampus
        ((27, -24, -16), (6, 15, 5), 0.54),
    )
    for middle, radii, value in nuclei:
        tilted = side + 0.22 * (y - middle[1]) if middle[0] > 17 else side
        _over(image, value, _inside(_ellipsoid(tilted, y, z, middle, radii), 1.5))
    v = subject.ventricle
    along = np.sqrt(np.clip(1 - ((y + 12) / 46) ** 2, 0, 1))  # the lateral ventricle tapers to both horns
    middle_x = 2.5 + 4.0 * v + 0.24 * np.maximum(0, y - 8) + 0.45 * np.maximum(0, -12 - y)
    middle_z = 14.5 - 0.0045 * (y - 5) ** 2
    width, height = 0.5 + 5.2 * v * along, 0.5 + (4.8 + 2.5 * v) * along
    tube = np.sqrt(((side - middle_x) / width) ** 2 + ((z - middle_z - 0.35 * (side - middle_x)) / height) ** 2)
    _over(image, CSF, _inside((1 - tube) * width) * (along > 0))
    _over(image, CSF, _inside(_ellipsoid(side, y, z, (0, -9, -2), (1.2 + 1.4 * v, 14, 10))))


def _cerebellum(subject: Subject, x: Field, side: Field, y: Field, z: Field, depth: Field) -> Field:
    """Narrow folia around a white core."""
    bend = _sample(subject.depth, x, y, z, subject.shifts[1])
    radius = np.sqrt(x * x * np.float32(0.6) + (y + 26) ** 2 + (z + 44) ** 2)
    folia = np.cos(radius * np.float32(2 * np.pi / 6.5) + 1.5 * bend) * np.clip(1 - depth / 13, 0, 1)
    image = np.asarray(0.58 + 0.16 * folia, dtype=np.float32)
    core = _ellipsoid(side, y, z, (15, -46, -46), (15, 17, 9))
    _over(image, 0.82, _inside(core, 4.0))
    return image
