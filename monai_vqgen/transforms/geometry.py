"""Anatomical planes of a volume by axis codes, as views (nothing is copied or resampled).

Array names: `volume_s` has the three spatial axes; a view's axes are (rows, columns, normal).
"""

from __future__ import annotations

from typing import NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_vqgen.errors import InputError, ScanError

__all__ = ["LEFT_RIGHT_AXIS", "PLANES", "VIEWS", "VOLUME", "PlaneView", "check_affine", "three_planes", "view_plane"]

PLANES: dict[str, tuple[str, str, str]] = {
    "axial": ("P", "L", "I"),
    "coronal": ("I", "L", "P"),
    "sagittal": ("I", "P", "R"),
}
"""Axis codes of (rows, columns, normal) of a slice drawn rows down, columns right.

Axial and coronal slices are radiological: the image's left is the patient's right. The third axis runs in the
direction of increasing position: from the top (axial), the front (coronal), the left (sagittal).
"""

VOLUME = "volume"
"""In place of a plane: the whole volume, its axes to the right, to the front and to the top (RAS+)."""

LEFT_RIGHT_AXIS = {2: -1, 3: -3}
"""By the number of spatial axes, the one that runs between left and right: a slice's columns, a volume's first."""

VIEWS: dict[str, tuple[str, str, str]] = {**PLANES, VOLUME: ("R", "A", "S")}
"""Axis codes of what a model is shown: of slices (rows, columns, normal), or of a volume."""
MOST_SHOWN = 1024  # pixels a side of a picture that are made up between voxels


class PlaneView(NamedTuple):
    """A volume seen plane by plane, `volume_s[:, :, i]` is a slice; or seen as a whole, its axes RAS+."""

    volume_s: NDArray
    affine: NDArray
    spacing: tuple[float, float, float]
    """Millimeters between voxel centers along rows, columns and the normal, or along a volume's axes."""


def check_affine(affine: NDArray, name: str) -> NDArray:
    """Return the affine as float64, or raise ScanError where it cannot place a volume."""
    affine = np.asarray(affine, dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise ScanError(f"{name}: the affine is not 4x4 or has NaN or infinite entries; fix the scan's geometry")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (lengths == 0).any() or abs(np.linalg.det(affine[:3, :3] / np.where(lengths > 0, lengths, 1))) < 1e-3:
        raise ScanError(f"{name}: the affine is singular (an axis has no extent of its own); fix the scan's geometry")
    return affine


def check_plane(plane: str) -> str:
    """Return the plane's name, or raise InputError."""
    if plane not in PLANES:
        raise InputError(f"plane {plane!r} is unknown; choose one of {', '.join(PLANES)}")
    return plane


def view_plane(volume_s: NDArray, affine: NDArray, plane: str, *, name: str = "the volume") -> PlaneView:
    """Reorient a volume by axis codes so that its last axis is the plane's normal, or all three are RAS+.

    Oblique volumes are not resampled: each anatomical axis is the voxel axis closest to it.

    Args:
        volume_s: three spatial axes, any order and direction.
        affine: 4x4, voxel centers to RAS+ millimeters.
        plane: "axial", "coronal" or "sagittal"; `VOLUME` for all of it.
        name: of the volume in messages, usually its file.

    Returns:
        A view (no copy) with the affine that belongs to it.

    Examples:
        >>> view = view_plane(np.zeros((4, 5, 6)), np.eye(4), "axial")
        >>> view.volume_s.shape
        (5, 4, 6)
    """
    if plane != VOLUME:
        check_plane(plane)
    if volume_s.ndim != 3:
        raise ScanError(f"{name}: shape {tuple(volume_s.shape)}; expected a 3-D volume")
    if 0 in volume_s.shape:
        raise ScanError(f"{name}: an axis has no voxels (shape {tuple(volume_s.shape)}); export the scan again")
    affine = check_affine(affine, name)
    change = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(VIEWS[plane])
    )
    turned = affine @ nib.orientations.inv_ornt_aff(change, volume_s.shape)
    rows, columns, normal = np.linalg.norm(turned[:3, :3], axis=0)
    spacing = (float(rows), float(columns), float(normal))
    return PlaneView(nib.orientations.apply_orientation(volume_s, change), turned, spacing)


def middle_slice(view: PlaneView) -> NDArray:
    """The middle slice of a view as it is drawn: its pixels are as long as the shortest side of a voxel.

    Examples:
        >>> middle_slice(view_plane(np.ones((4, 6, 5)), np.diag([1.0, 1.0, 3.0, 1.0]), "coronal")).shape
        (15, 4)
    """
    pixels_hw = view.volume_s[:, :, view.volume_s.shape[2] // 2]
    factors = np.minimum(
        np.array(view.spacing[:2]) / min(view.spacing), np.maximum(MOST_SHOWN / np.array(pixels_hw.shape), 1)
    )
    drawn: NDArray = ndimage.zoom(pixels_hw, factors, order=1, grid_mode=True, mode="nearest")
    return drawn


def three_planes(volume_s: NDArray, affine: NDArray | None = None) -> NDArray:
    """A picture of a volume: its middle axial, coronal and sagittal slice, side by side, as drawn.

    Each has as many rows as the tallest, with zeros above and below.

    Args:
        volume_s: `[X, Y, Z]`.
        affine: 4x4, voxel centers to RAS+ millimeters; where voxels are no cubes, the pixels are made as small as their
            shortest side. None for cubes along RAS+.

    Examples:
        >>> three_planes(np.ones((4, 6, 5))).shape
        (6, 14)
        >>> three_planes(np.ones((4, 6, 5)), np.diag([1.0, 1.0, 3.0, 1.0])).shape
        (15, 14)
    """
    views = [view_plane(volume_s, np.eye(4) if affine is None else affine, plane) for plane in PLANES]
    slices = [middle_slice(view) for view in views]
    height = max(len(pixels) for pixels in slices)
    above = [(height - len(pixels)) // 2 for pixels in slices]
    return np.hstack([np.pad(p, ((a, height - len(p) - a), (0, 0))) for p, a in zip(slices, above, strict=True)])
