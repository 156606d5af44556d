"""A scan's slices as the model was trained on them: at its positions, of its size, the brain's size matched.

    scan -> every plane at a trained position -> slices -- maps of them --> the scan's geometry

Shape legend: n slices, h w rows and columns, s the scan's three axes as stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.models.scans import BUNDLE_PIXEL_MM
from monai_vqgen.transforms.geometry import PlaneView, view_plane
from monai_vqgen.transforms.intensity import BRAIN_LEVEL, scale_to_window
from monai_vqgen.transforms.resampling import restore_plane
from monai_vqgen.transforms.size import Frame, apply_frame, frame_loses, place_frame, trimmed
from monai_vqgen.transforms.volume_slicing import Plane, PreparedVolume, cut_plane, locate_planes, prepare_volume

__all__ = ["UNSCALED", "ScanSlices", "brain_extent", "cut_scan"]

UNSCALED = (1.0, 1.0, 1.0)
MOST_SCALED, MOST_STRETCHED = 1.35, 1.15  # chosen by us: beyond, it is not the brain alone, or not an adult's
MOST_SLICES = 1024  # of a scan


class ScanSlices(NamedTuple):
    """Slices of a scan as the model was trained on them, and how they lie.

    Attributes:
        images_nhw: float32 in [0, 1].
        positions_mm: of each.
        left_out: slices of the brain outside the trained positions.
        cropped: slices that show brain outside the model's image size; it is not looked at.
        prepared: the volume they were cut from.
        planes: of each slice.
        frame: of the model's image size in the resampled planes, whose size is `shown`.
        shown: rows and columns of a resampled plane.
        pixel_mm: of the slices.
        scaled: factors by which the brain was enlarged along rows, columns and normal.
        kept: why the brain's size was left as it is although another was asked for; else empty.
    """

    images_nhw: NDArray
    positions_mm: list[float]
    left_out: int
    cropped: int
    prepared: PreparedVolume
    planes: list[Plane]
    frame: Frame
    shown: tuple[int, ...]
    pixel_mm: float
    scaled: tuple[float, float, float] = UNSCALED
    kept: str = ""

    def back(self, maps_nhw: NDArray, shape: Sequence[int], affine: NDArray) -> NDArray:
        """Maps in the scan's geometry, `(X, Y, Z)` float32; 0 where there was no slice."""
        volume_s = np.zeros(tuple(shape), dtype=np.float32)
        view = view_plane(volume_s, affine, self.prepared.plane)
        grid = scaled_view(view, self.scaled).affine
        outside = Frame(tuple(-start for start in self.frame.start), tuple(self.shown))
        inner_nhw = apply_frame(maps_nhw.astype(np.float32), outside)
        own_nhw = restore_plane(inner_nhw, view.volume_s.shape[:2], grid, self.pixel_mm).clip(0)
        for plane, own_hw in zip(self.planes, own_nhw, strict=True):
            view.volume_s[:, :, plane.number] = own_hw
        return volume_s


def cut_scan(
    model: Any,
    values_s: NDArray,
    affine: NDArray,
    *,
    plane: str | None = None,
    step_mm: float | None = None,
    brain_mm: NDArray | None = None,
) -> ScanSlices:
    """Every plane of a scan at a position that the priors know, extracted as `extract_slices.json` does.

    A brain of another size shows other anatomy at the same distance below its top, and other folds: with `brain_mm` the
    scan is cut as if its voxels had the size with which its brain measures that, and the geometric mean of both factors
    holds along the normal. It is left as it is where a factor would be above 1.35 or below 1 / 1.35, one factor 1.15
    times the other, or no slice would be left.

    Args:
        model: a `TrainedModel` of slices.
        values_s: the scan.
        affine: 4x4, voxel centers to RAS+ millimeters.
        plane: of the slices; by default the model's.
        step_mm: between slices; by default every plane of the scan.
        brain_mm: rows and columns of the brain, as `brain_extent` measures it; by default the scan's own.

    Raises:
        ScanError: nothing to see, or no plane at a trained position.
        InputError: a model whose image size is not known.
    """
    cut = _cut(model, values_s, affine, plane, step_mm)
    if brain_mm is None:
        return cut
    if plane not in (None, model.record.plane or "axial"):
        return cut._replace(kept=f"the size of the training data's brains in {plane} slices is not known")
    own_mm = brain_extent(cut.images_nhw) * cut.pixel_mm
    told = (
        f"the brain measures {_size(own_mm)}, those of the training data {_size(brain_mm)}; its size is left as it is"
    )
    rows, columns = np.asarray(brain_mm) / np.maximum(own_mm, cut.pixel_mm)
    factors = (float(rows), float(columns), float(np.sqrt(rows * columns)))
    alike = max(rows / columns, columns / rows) <= MOST_STRETCHED
    if not alike or not all(1 / MOST_SCALED <= factor <= MOST_SCALED for factor in factors):
        return cut._replace(kept=told)
    try:
        return _cut(model, values_s, affine, plane, step_mm, factors)
    except ScanError as error:
        return cut._replace(kept=f"{told} ({error})")


def _size(sides_mm: NDArray) -> str:
    return " x ".join(f"{side:.0f}" for side in sides_mm) + " mm"


def brain_extent(images_nhw: NDArray) -> NDArray:
    """Rows and columns, in pixels, from the first to the last of the largest part that is brain in any slice."""
    parts_hw, count = ndimage.label(np.any(np.asarray(images_nhw) > BRAIN_LEVEL, axis=0))
    sizes = np.bincount(parts_hw.ravel(), minlength=2)[1:]
    brain_hw = parts_hw == 1 + int(sizes.argmax()) if count else np.zeros(parts_hw.shape, dtype=bool)
    spans = [np.flatnonzero(brain_hw.any(1)), np.flatnonzero(brain_hw.any(0))]
    return np.array([span[-1] - span[0] + 1 if span.size else 0 for span in spans], dtype=float)


def scaled_view(view: PlaneView, scaled: Sequence[float]) -> PlaneView:
    """The view as if its voxels were so many times as large along rows, columns and normal."""
    rows, columns, normal = (size * factor for size, factor in zip(view.spacing, scaled, strict=True))
    return view._replace(affine=view.affine @ np.diag([*scaled, 1.0]), spacing=(rows, columns, normal))


def _cut(
    model: Any,
    values_s: NDArray,
    affine: NDArray,
    plane: str | None,
    step_mm: float | None,
    scaled: tuple[float, float, float] = UNSCALED,
) -> ScanSlices:
    if not model.record.image_size:
        raise InputError("the record of these weights does not tell their image size: use anomaly_map on slices")
    lower, upper = model.record.percentiles
    values_s = np.nan_to_num(values_s, nan=0.0, posinf=0.0, neginf=0.0)
    prepared = prepare_volume(values_s, affine, plane or model.record.plane or "axial", lower=lower, upper=upper)
    if not prepared.window.high > prepared.window.low:
        raise ScanError("the scan has no contrast; export it again")
    prepared = prepared._replace(view=scaled_view(prepared.view, scaled))
    spacing, pixel_mm = prepared.view.spacing[2], model.record.pixel_mm or BUNDLE_PIXEL_MM
    count = prepared.box.stop[2] - prepared.box.start[2]
    step_mm = max(step_mm or spacing, spacing)
    placed = locate_planes(prepared, np.arange(0, count * spacing, step_mm).tolist())
    found = [plane for plane in placed if plane is not None]  # rounding may ask for one more than there are
    low, high = (model.condition.continuous if model.condition else {}).get("position_mm", (-np.inf, np.inf))
    planes = [plane for plane in found if low <= plane.position_mm <= high]
    if len(planes) > MOST_SLICES:
        raise ScanError(
            f"{len(planes)} slices {spacing:g} mm apart; at most {MOST_SLICES} are looked at in a scan: fix the "
            "spacing in the header, or resample the scan"
        )
    if not planes:
        raise ScanError(
            f"no slice of the scan lies {low:g} to {high:g} mm from the brain's edge, as the trained ones do"
        )
    cuts = [cut_plane(prepared, plane, pixel_mm=pixel_mm) for plane in planes]
    frame = place_frame(cuts[0].box, model.record.image_size)
    images = [scale_to_window(apply_frame(c.pixels, frame, fill=prepared.window.low), prepared.window) for c in cuts]
    cropped = sum(trimmed(c.pixels, frame, prepared.threshold) for c in cuts) if frame_loses(frame, cuts[0].box) else 0
    return ScanSlices(
        np.stack(images),
        [plane.position_mm for plane in planes],
        len(found) - len(planes),
        cropped,
        prepared,
        planes,
        frame,
        cuts[0].pixels.shape,
        pixel_mm,
        scaled,
    )
