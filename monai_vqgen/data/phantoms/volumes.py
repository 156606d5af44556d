"""Anatomical phantoms on disk: skull-stripped-like T1-weighted heads as NIfTI, stored as variously as real ones.

brightness(subject, x, y, z) --sampled on a turned grid--> bias field, noise --axes permuted and flipped--> .nii.gz
"""

from __future__ import annotations

import csv
import io
import itertools
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from monai_vqgen.data.io.nifti import write_volume_nifti
from monai_vqgen.data.phantoms.anatomy import HALF_EXTENT_MM, Subject, brightness
from monai_vqgen.errors import InputError, OutputExistsError
from monai_vqgen.files import write_bytes

__all__ = ["Phantom", "make_phantom", "make_phantoms"]

MARGIN_MM = 5.0
ORIENTATIONS = tuple(
    "".join(codes) for order in itertools.permutations(("LR", "PA", "IS")) for codes in itertools.product(*order)
)
"""The 48 ways to store a volume."""


class Phantom(NamedTuple):
    """A head as it would be read from a file."""

    voxels_s: NDArray
    affine: NDArray
    subject: Subject


def _grid(rng: np.random.Generator, voxel_mm: float) -> tuple[tuple[int, int, int], NDArray]:
    """Shape and affine of a turned grid around the head; a fifth of the heads has thick slices."""
    spacing = voxel_mm * rng.uniform(0.88, 1.12, 3)
    if rng.random() < 0.2:
        spacing[rng.integers(3)] *= 1.5
    turn = Rotation.from_rotvec(rng.normal(0, 1, 3) * np.deg2rad(4)).as_matrix()
    reach = np.abs(turn.T) @ (np.array(HALF_EXTENT_MM) * 1.02) + MARGIN_MM + rng.uniform(0, 6, 3)
    shape = np.ceil(2 * reach / spacing).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = rng.normal(0, 8, 3) - affine[:3, :3] @ ((shape - 1) / 2)
    return (int(shape[0]), int(shape[1]), int(shape[2])), affine


def _render(subject: Subject, shape: tuple[int, int, int], affine: NDArray, rng: np.random.Generator) -> NDArray:
    """Brightness on the grid, with bias field and Rician noise inside the brain; exact zeros outside."""
    steps = affine[:3, :3].astype(np.float32)
    axes = [np.arange(n, dtype=np.float32) - (n - 1) / 2 for n in shape]
    i, j, k = (axis.reshape([-1 if a == d else 1 for a in range(3)]) for d, axis in enumerate(axes))
    x, y, z = (steps[row, 0] * i + steps[row, 1] * j + steps[row, 2] * k for row in range(3))
    near = (x / HALF_EXTENT_MM[0]) ** 2 + (y / HALF_EXTENT_MM[1]) ** 2 + (z / HALF_EXTENT_MM[2]) ** 2 < 1.25
    points = (x[near], y[near], z[near])
    values = brightness(subject, *points)
    bias = np.exp(sum(c * p for c, p in zip(rng.normal(0, 0.0011, 3).astype(np.float32), points, strict=True)))
    noise = rng.standard_normal((2, values.size), dtype=np.float32) * np.float32(rng.uniform(0.008, 0.02))
    noisy = np.hypot(values * bias + noise[0], noise[1])
    image = np.zeros(shape, dtype=np.float32)
    image[near] = np.where(values > 0.02, noisy, 0)
    return image


def make_phantom(seed: int, index: int = 0, *, voxel_mm: float = 2.0, orientation: str | None = None) -> Phantom:
    """Make one head, the same for the same seed and index.

    Args:
        seed: of the whole set.
        index: which subject of the set.
        voxel_mm: mean distance of voxels; axes differ by some 10 %.
        orientation: axis codes such as "LPS"; drawn where none is given.

    Raises:
        InputError: a voxel size or orientation that cannot work.
    """
    if not 0.5 <= voxel_mm <= 8:
        raise InputError(f"voxel_mm is {voxel_mm}; give 0.5 to 8")
    if orientation is not None and orientation not in ORIENTATIONS:
        raise InputError(f"orientation {orientation!r} is unknown; give axis codes such as 'LPS'")
    rng = np.random.default_rng([seed, index])
    subject = Subject.draw(rng)
    shape, affine = _grid(rng, voxel_mm)
    image = _render(subject, shape, affine, rng)
    stored_as = str(rng.choice(ORIENTATIONS))
    change = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(orientation or stored_as)
    )
    gain = rng.uniform(400, 4000)  # scanners have no unit
    voxels = nib.orientations.apply_orientation(image, change) * np.float32(gain)
    if rng.random() < 0.7:
        voxels = np.rint(voxels).astype(np.int16)
    return Phantom(voxels, affine @ nib.orientations.inv_ornt_aff(change, shape), subject)


def make_phantoms(
    folder: str | Path,
    num_subjects: int = 48,
    *,
    seed: int = 0,
    voxel_mm: float = 2.0,
    overwrite: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Write a folder of heads: `sub-01_T1w.nii.gz` ... and `participants.tsv` with age and sex.

    Axis orders, flips, voxel sizes, obliquity, data types and anatomy differ from head to head; age shows in the
    ventricles and sulci, sex in the size.

    Args:
        folder: where to write; made if missing.
        num_subjects: how many.
        seed: equal seeds give equal files.
        voxel_mm: mean distance of voxels.
        overwrite: replace earlier scans of the same names.
        progress: show a bar.

    Returns:
        The files, in order.

    Raises:
        InputError: fewer than one subject.
        OutputExistsError: scans are there already.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in make_phantoms(folder, 2, voxel_mm=6, progress=False)]
        ['sub-01_T1w.nii.gz', 'sub-02_T1w.nii.gz']
    """
    if num_subjects < 1:
        raise InputError(f"num_subjects is {num_subjects}; give at least 1")
    folder = Path(folder)
    if folder.is_dir() and not overwrite and any(folder.glob("*.nii*")):
        raise OutputExistsError(f"{folder} holds scans already; choose another folder, or overwrite=True")
    folder.mkdir(parents=True, exist_ok=True)
    digits = max(2, len(str(num_subjects)))
    paths, rows = [], []
    for index in tqdm(range(num_subjects), desc="phantoms", unit="head", disable=not progress):
        phantom = make_phantom(seed, index, voxel_mm=voxel_mm)
        name = f"sub-{index + 1:0{digits}d}"
        paths.append(folder / f"{name}_T1w.nii.gz")
        write_volume_nifti(paths[-1], phantom.voxels_s, phantom.affine)
        rows.append([name, f"{phantom.subject.age:g}", phantom.subject.sex])
    table = io.StringIO()
    csv.writer(table, delimiter="\t", lineterminator="\n").writerows([["participant_id", "age", "sex"], *rows])
    write_bytes(folder / "participants.tsv", table.getvalue().encode())
    return paths
