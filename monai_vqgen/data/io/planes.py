"""The planes of a DICOM series, and whether they are one regular volume.

A plane is an image of one frame, or a frame of an enhanced image. highdicom judges whether positions are those of a
volume and sorts them (InstanceNumber plays no part); this file says in a person's words why they are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_vqgen.errors import ScanError

__all__ = ["SPACING_TOLERANCE", "Plane", "Stack", "planes_of", "stack_planes"]

GEOMETRY = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
SPACING_TOLERANCE = 0.05  # of the mean distance; rounded positions vary by up to 0.02, a missing slice by 1
ORIENTATION_TOLERANCE = 1e-3  # of a direction cosine: 0.06 degrees, 0.2 mm at the edge of a head
OFF_GRID = 0.25  # of a voxel's shortest edge: how far a plane may lie from its place in the volume
SAME_PLANE_MM = 0.01
APART = (  # what sets images of one plane apart, most telling first
    "EchoTime",
    "EffectiveEchoTime",
    "EchoNumbers",
    "InversionTime",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "TriggerTime",
    "DiffusionBValue",
    "ComplexImageComponent",
    "ImageType",
    "FrameType",
    "AcquisitionNumber",
    "AcquisitionTime",
)


ALIKE = {  # of all planes of one scan: what it says of those that differ
    "PatientID": "several patients",
    "StudyInstanceUID": "several studies",
    "BitsAllocated": "pixels stored in several ways",
    "PixelRepresentation": "pixels stored in several ways",
    "EchoTime": "several echoes",
    "EffectiveEchoTime": "several echoes",
    "InversionTime": "several inversion times",
    "DiffusionBValue": "several diffusion weightings",
    "ComplexImageComponent": "magnitude and phase",
    "ImageType": "several kinds of images",
}
NAMES = ("PatientID", "StudyInstanceUID")  # compared as they are, digits too
SAME_TIME = 0.01  # of the largest; scanners round the times of a series


class Plane(NamedTuple):
    """One plane of a series: its name in messages, and its headers, the most specific first."""

    name: str
    headers: tuple[Any, ...]

    def get(self, keyword: str) -> Any:
        """The value of the first header that has it, or None."""
        return next((header[keyword].value for header in self.headers if keyword in header), None)


class Stack(NamedTuple):
    """Planes in order: `positions[k]` is that of plane `order[k]`; the affine takes (column, row, k) to RAS+ mm."""

    order: NDArray
    positions: NDArray
    affine: NDArray


def planes_of(name: str, image: Any) -> list[Plane]:
    """The planes of a DICOM image; a frame's functional groups (PS3.3, C.7.6.16) go before those of all frames."""
    if "PerFrameFunctionalGroupsSequence" not in image:
        return [Plane(name, (image,))]
    shared = [item for group in image.get("SharedFunctionalGroupsSequence") or () for item in _macros(group)]
    frames = image.PerFrameFunctionalGroupsSequence
    return [Plane(f"frame {n} of {name}", (*_macros(f), *shared, image)) for n, f in enumerate(frames, start=1)]


def _macros(group: Any) -> list[Any]:
    return [element.value[0] for element in group if element.VR == "SQ" and element.value]


def stack_planes(folder: Path, planes: Sequence[Plane]) -> Stack:
    """Sort planes by position, where they are one regular volume.

    Raises:
        ScanError: geometry is missing; planes differ in orientation, size or spacing, lie on one another, are tilted
            against the stack, are not evenly spaced, or are of several scans.
    """
    from highdicom.spatial import get_volume_positions

    positions, orientations, spacings = (_numbers(folder, planes, *entry) for entry in GEOMETRY.items())
    orientation = _common(folder, planes, orientations, "ImageOrientationPatient", ORIENTATION_TOLERANCE)
    spacing = _common(folder, planes, spacings, "PixelSpacing", 0)
    sizes = np.array([[plane.get("Rows") or 0, plane.get("Columns") or 0] for plane in planes])
    _common(folder, planes, sizes, "Rows and Columns", 0)
    along_row, along_column = orientation[:3], orientation[3:]
    gram = [along_row @ along_row, along_column @ along_column, along_row @ along_column]
    if not np.allclose(gram, [1, 1, 0], atol=ORIENTATION_TOLERANCE) or (spacing <= 0).any():
        raise ScanError(
            f"{folder}: ImageOrientationPatient {orientation.tolist()} and PixelSpacing {spacing.tolist()}; expected "
            "two unit vectors at right angles and positive millimeters; export the series again"
        )
    normal = np.cross(along_row, along_column)
    distance, places = get_volume_positions(positions.tolist(), orientation.tolist(), rtol=SPACING_TOLERANCE)
    if distance is None or places is None:
        raise ScanError(f"{folder}: {_why_irregular(planes, positions, normal)}")
    order = np.argsort(places)
    ordered = positions[order]
    step = (ordered[-1] - ordered[0]) / (len(planes) - 1)
    regular = ordered[0] + np.outer(np.arange(len(planes)), (step @ normal) * normal)
    if np.abs(ordered - regular).max() > OFF_GRID * min(*spacing, distance):
        raise ScanError(f"{folder}: {_why_irregular(planes, positions, normal)}")
    _check_alike(folder, planes)
    affine = np.eye(4)
    affine[:3] = np.stack([along_row * spacing[1], along_column * spacing[0], step, ordered[0]], axis=1)
    return Stack(order, ordered, np.diag([-1, -1, 1, 1]) @ affine)


def _numbers(folder: Path, planes: Sequence[Plane], keyword: str, count: int) -> NDArray:
    """`[planes, count]`, finite."""
    values = []
    for plane in planes:
        try:
            row = np.asarray(plane.get(keyword), dtype=np.float64)
        except (TypeError, ValueError):
            row = np.empty(0)
        values.append(row if row.shape == (count,) and np.isfinite(row).all() else None)
    if bad := [plane.name for plane, row in zip(planes, values, strict=True) if row is None]:
        raise ScanError(
            f"{folder}: {len(bad)} of {len(planes)} images have no usable {keyword} ({bad[0]}), so that their place in "
            "space is unknown; export the series again with its geometry, or convert it to NIfTI with the right affine"
        )
    return np.array(values)


def _common(folder: Path, planes: Sequence[Plane], rows: NDArray, keyword: str, tolerance: float) -> NDArray:
    """The most frequent row, where no other is farther from it than the tolerance."""
    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    common = kinds[counts.argmax()]
    others = np.flatnonzero(np.abs(rows - common).max(axis=1) > tolerance)
    if others.size:
        raise ScanError(
            f"{folder}: {others.size} of {len(planes)} images have another {keyword} than the rest "
            f"({planes[others[0]].name}: {rows[others[0]].tolist()} instead of {common.tolist()}): a localizer or "
            "another scan; move them out of the folder"
        )
    return common


def _check_alike(folder: Path, planes: Sequence[Plane]) -> None:
    """Refuse planes of several scans: they may well lie evenly spaced, one scan between or behind the other."""
    for keyword, what in ALIKE.items():
        known = {plane.name: _compared(keyword, plane.get(keyword)) for plane in planes}
        found = [value for value in known.values() if value is not None]
        numbers = all(isinstance(value, float) for value in found)
        if len(set(found)) < 2 or (numbers and max(found) - min(found) <= SAME_TIME * max(map(abs, found))):
            continue
        first, other = found[0], next(value for value in found if value != found[0])
        name = next(name for name, value in known.items() if value == other)
        raise ScanError(
            f"{folder}: {what} in one series ({keyword} {first} of {planes[0].name}, {other} of {name}); give each a "
            "folder of its own"
        )


def _compared(keyword: str, value: Any) -> Any:
    """A header's value as it is compared; None where there is none."""
    if keyword == "ImageType":  # the first two say whether a person has edited an image
        return "\\".join(map(str, value[2:])) if value and not isinstance(value, str) else None
    try:
        return float(value) if keyword not in NAMES else str(value).strip() or None
    except (TypeError, ValueError):
        return str(value).strip() or None if value is not None else None


def _why_irregular(planes: Sequence[Plane], positions: NDArray, normal: NDArray) -> str:
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    gaps = np.diff(along[order])
    apart = gaps > SAME_PLANE_MM
    if not apart.all():
        first = int(apart.argmin())
        one, two = planes[order[first]], planes[order[first + 1]]
        differ = [f"{word} {one.get(word)} and {two.get(word)}" for word in APART if one.get(word) != two.get(word)]
        return (
            f"{len(planes)} images lie on {apart.sum() + 1} planes ({one.name} and {two.name} on one; "
            f"{', '.join(differ[:3]) or 'their headers do not tell them apart'}): several echoes, phases or copies in "
            "one series; give each a folder of its own"
        )
    step = positions[order[-1]] - positions[order[0]]
    sideways = np.linalg.norm(step - (step @ normal) * normal)
    usual = float(np.median(gaps))
    if sideways > usual * OFF_GRID and np.allclose(gaps, usual, rtol=SPACING_TOLERANCE):
        angle = np.degrees(np.arctan2(sideways, step @ normal))
        return (
            f"the planes are tilted by {angle:.1f} degrees against the direction they are stacked in (gantry tilt); "
            "resample the scan to a grid at right angles, as dcm2niix does, and give that"
        )
    worst = int(np.abs(gaps - usual).argmax())
    missing = int(np.maximum(np.rint(gaps / usual) - 1, 0).sum())
    return (
        f"the planes are not evenly spaced: {gaps[worst]:.2f} mm between {planes[order[worst]].name} and "
        f"{planes[order[worst + 1]].name}, elsewhere {usual:.2f} mm"
        + (f"; about {missing} slices are missing: copy or export the whole series again" if missing else "")
        + ("" if missing else "; resample the scan to an even grid")
    )
