"""From a volume to slices at positions in millimeters: the arithmetic behind `ExtractSlice`, in numpy.

volume (X, Y, Z) --prepare_volume--> PreparedVolume --locate_planes--> planes --cut_plane--> SlicePixels
                   view, box, window        |          index, mm                 pixels, affine
                                            +--cut_volume--> all of it, in the same form
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.transforms.foreground import Background, Box, Window, find_foreground, foreground_window
from monai_vqgen.transforms.geometry import PlaneView, check_plane, view_plane
from monai_vqgen.transforms.resampling import resample_plane

__all__ = [
    "REFERENCES",
    "Plane",
    "PreparedVolume",
    "SlicePixels",
    "cut_plane",
    "cut_volume",
    "locate_planes",
    "prepare_volume",
]

REFERENCES = ("brain_edge", "brain_center", "volume_center")
UNITS = ("mm", "fraction")
GRID_TOLERANCE = 0.1  # voxels that the corners of two grids may lie apart, since headers round differently

Extent = tuple[tuple[float, float], ...]
"""First and last pixel along each axis."""


class PreparedVolume(NamedTuple):
    """A volume seen plane by plane, with what its slices need to know about the whole of it."""

    plane: str
    view: PlaneView
    box: Box
    background: Background
    window: Window
    name: str

    @property
    def threshold(self) -> float:
        """Brain lies above it in the slices that are cut."""
        return self.background.threshold


class Plane(NamedTuple):
    """One voxel plane: its number (index) along the normal and the position of its center."""

    number: int
    position: float
    """In the unit asked for (mm or fraction), of this plane rather than of the request."""
    position_mm: float


class SlicePixels(NamedTuple):
    """A slice, or all of a volume, in the volume's own intensities."""

    pixels: NDArray
    """float32 `[H, W]` in display order, rows down, columns right; or `[X, Y, Z]`, RAS+."""
    affine: NDArray
    box: Extent
    """First and last pixel of the *volume's* foreground along each axis, in these pixels' indices."""


def check_position_options(plane: str, unit: str, reference: str) -> None:
    """Raise InputError for names that do not exist or do not go together."""
    check_plane(plane)
    if reference not in REFERENCES:
        raise InputError(f"reference {reference!r} is unknown; choose one of {', '.join(REFERENCES)}")
    if unit not in UNITS:
        raise InputError(f"unit {unit!r} is unknown; choose one of {', '.join(UNITS)}")
    if unit == "fraction" and reference != "brain_edge":
        raise InputError(f"unit 'fraction' needs reference 'brain_edge'; give unit 'mm' with {reference!r}")


def check_positions(positions: float | Sequence[float]) -> tuple[float, ...]:
    """One position or several as a tuple, or raise InputError."""
    try:
        places = tuple(float(p) for p in cast(Iterable[float], [positions] if np.isscalar(positions) else positions))
    except (TypeError, ValueError) as error:
        raise InputError(f"positions are {positions!r}; give a number or a list of numbers") from error
    if not places:
        raise InputError("positions are empty; give at least one")
    return places


def prepare_volume(
    volume_s: NDArray,
    affine: NDArray,
    plane: str,
    *,
    mask_s: NDArray | None = None,
    mask_affine: NDArray | None = None,
    lower: float = 0.5,
    upper: float = 99.5,
    name: str = "the volume",
) -> PreparedVolume:
    """View a volume along a plane's normal and find its foreground's box and intensity window.

    Args:
        volume_s: three axes, any order and direction.
        affine: 4x4, voxel centers to RAS+ millimeters.
        plane: "axial", "coronal" or "sagittal"; `VOLUME` for all of it.
        mask_s: a brain mask; it may be stored in another axis order than the volume, but on the same grid.
        mask_affine: the mask's own; default the volume's.
        lower: percentile of the foreground where the window begins.
        upper: percentile where it ends.
        name: of the volume in messages.

    Raises:
        ScanError: not a volume, an unusable affine, a mask on another grid, or nothing above the background.
    """
    view = view_plane(volume_s, affine, plane, name=name)
    mask_view = None
    if mask_s is not None:
        mask_view = _mask_view(mask_s, affine if mask_affine is None else mask_affine, view, plane, name)
    foreground = find_foreground(view.volume_s, mask_s=mask_view)
    if foreground.box is None:
        what = "the brain mask is" if mask_s is not None else "the volume is"
        raise ScanError(f"{name}: {what} empty, no voxel lies above the background; exclude or fix the scan")
    window = foreground_window(view.volume_s, foreground=foreground, mask_s=mask_view, lower=lower, upper=upper)
    return PreparedVolume(plane, view, foreground.box, foreground.background, window, name)


def _mask_view(mask_s: NDArray, affine: NDArray, view: PlaneView, plane: str, name: str) -> NDArray:
    """The mask as the volume is seen, or ScanError where its voxels lie elsewhere."""
    mask = view_plane(mask_s, affine, plane, name=f"{name}, its brain mask")
    corners = np.stack(np.meshgrid(*([0, n - 1] for n in view.volume_s.shape)), axis=-1).reshape(-1, 3)
    shift_mm = np.abs(corners @ (mask.affine - view.affine)[:3, :3].T + (mask.affine - view.affine)[:3, 3]).max()
    if mask.volume_s.shape != view.volume_s.shape or shift_mm > GRID_TOLERANCE * min(view.spacing):
        raise ScanError(
            f"{name}: the brain mask lies on another grid (shape {mask.volume_s.shape} instead of "
            f"{view.volume_s.shape} in the {plane} view, corners up to {shift_mm:.2f} mm apart); resample the mask"
        )
    return mask.volume_s


def _origin_and_range(prepared: PreparedVolume, reference: str) -> tuple[float, int, int]:
    """Voxel index of position zero, and the first and last plane that may be asked for."""
    first, last = prepared.box.start[2], prepared.box.stop[2] - 1
    if reference == "brain_edge":
        return float(first), first, last
    if reference == "brain_center":
        return (first + last) / 2, first, last
    depth = prepared.view.volume_s.shape[2]
    return (depth - 1) / 2, 0, depth - 1


def locate_planes(
    prepared: PreparedVolume, positions: Sequence[float], *, unit: str = "mm", reference: str = "brain_edge"
) -> list[Plane | None]:
    """The voxel planes closest to positions; None where a position lies outside.

    Brain references reach from the box's first to its last plane, `volume_center` over the whole volume; half a
    plane beyond the last voxel center still belongs to it.
    """
    origin, first, last = _origin_and_range(prepared, reference)
    spacing = prepared.view.spacing[2]
    step = spacing if unit == "mm" else 1 / max(1, last - first)
    planes: list[Plane | None] = []
    for position in positions:
        # ties go to the lower index, with a little slack so that float32 headers do not decide them
        index = int(np.ceil(origin + position / step - 0.5 - 1e-4)) if np.isfinite(position) else -1
        inside = first <= index <= last
        planes.append(Plane(index, (index - origin) * step, (index - origin) * spacing) if inside else None)
    return planes


def allowed_range(prepared: PreparedVolume, *, unit: str = "mm", reference: str = "brain_edge") -> tuple[float, float]:
    """The lowest and the highest position that lie in the brain's box (or the volume)."""
    origin, first, last = _origin_and_range(prepared, reference)
    step = prepared.view.spacing[2] if unit == "mm" else 1 / max(1, last - first)
    return (first - origin) * step, (last - origin) * step


def outside_message(prepared: PreparedVolume, position: float, *, unit: str, reference: str) -> str:
    """The error for a position outside the brain: file, position and allowed range."""
    low, high = allowed_range(prepared, unit=unit, reference=reference)
    unit_name = " mm" if unit == "mm" else ""
    return (
        f"{prepared.name}: position {position:g}{unit_name} from {reference} lies outside "
        f"{low:.1f} to {high:.1f}{unit_name}; choose a position in that range"
    )


def finite(values: NDArray, background: float = 0.0) -> NDArray:
    """NaN and infinity count as background."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return np.nan_to_num(values, nan=background, posinf=background, neginf=background)
    return values


def cut_plane(
    prepared: PreparedVolume,
    plane: Plane,
    *,
    pixel_mm: float | tuple[float, ...] | None = None,
    mode: str = "linear",
) -> SlicePixels:
    """Take one voxel plane, NaN as background, on another pixel size where one is asked for."""
    affine = prepared.view.affine.copy()
    affine[:3, 3] += affine[:3, 2] * plane.number
    return _cut(prepared, prepared.view.volume_s[:, :, plane.number], affine, pixel_mm, mode)


def cut_volume(prepared: PreparedVolume, *, pixel_mm: float | None = None, mode: str = "linear") -> SlicePixels:
    """Take all voxels, NaN as background, on another voxel size where one is asked for."""
    return _cut(prepared, prepared.view.volume_s, prepared.view.affine, pixel_mm, mode)


def _cut(
    prepared: PreparedVolume,
    voxels: NDArray,
    affine: NDArray,
    pixel_mm: float | tuple[float, ...] | None,
    mode: str,
) -> SlicePixels:
    pixels, axes = np.ascontiguousarray(voxels, dtype=np.float32), voxels.ndim
    pixels = prepared.background.hide(finite(pixels, prepared.background.value))
    box = np.array([prepared.box.start[:axes], np.subtract(prepared.box.stop[:axes], 1)], dtype=float)
    if pixel_mm is not None:
        try:
            resampled = resample_plane(pixels, affine, pixel_mm, mode=mode, axes=axes)
        except ScanError as error:
            raise ScanError(f"{prepared.name}: {error}") from error
        # the shift of the first pixel, read back from the two affines, in old pixels
        shift = np.linalg.lstsq(affine[:3, :axes], resampled.affine[:3, 3] - affine[:3, 3], rcond=None)[0]
        box = (box - shift) * np.array(resampled.scale)
        pixels, affine = resampled.pixels, resampled.affine
    return SlicePixels(pixels, affine, tuple(zip(*box.tolist(), strict=True)))
