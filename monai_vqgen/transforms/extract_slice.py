"""Extract one slice or several from a volume by plane and position, as MetaTensors.

The affine of each is made where it is cut, in `volume_slicing.cut_plane`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from monai.config.type_definitions import NdarrayOrTensor
from monai.data.meta_tensor import MetaTensor
from monai.transforms.inverse import InvertibleTransform
from monai.utils.enums import MetaKeys, TraceKeys, TransformBackends
from numpy.typing import NDArray

from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.transforms.foreground import find_background
from monai_vqgen.transforms.geometry import view_plane
from monai_vqgen.transforms.resampling import check_mode, check_pixel_mm, restore_plane
from monai_vqgen.transforms.tensors import affine_of, as_slice, name_of, to_numpy
from monai_vqgen.transforms.volume_slicing import (
    Plane,
    PreparedVolume,
    check_position_options,
    check_positions,
    cut_plane,
    finite,
    locate_planes,
    outside_message,
    prepare_volume,
)

__all__ = ["ExtractSlice", "ExtractSlices"]


class ExtractSlices(InvertibleTransform):
    """Extract slices of a volume at positions in millimeters: the same anatomy whatever the stored axis order.

        axial      rows: posterior, columns: left, position grows downwards from the top of the brain
        coronal    rows: inferior,  columns: left, position grows backwards from its front
        sagittal   rows: inferior,  columns: posterior, position grows rightwards from its left

    A slice is the voxel plane whose center is nearest to the position; nothing is interpolated across planes, and the
    slice of an oblique volume stays oblique (its affine says how). In its own plane it is resampled where `pixel_mm`
    is given. The brain's box is that of the volume's foreground or of a mask.

    Args:
        plane: "axial", "coronal" or "sagittal".
        positions: one or several, in millimeters along the plane's normal, or fractions (0 to 1) of the box's extent
            from its edge.
        unit: "mm" or "fraction".
        reference: where 0 mm is: "brain_edge" (first plane of the box: top, front or left), "brain_center",
            "volume_center".
        pixel_mm: size of the slice's pixels, one number or (rows, columns); None keeps the scan's own.
        mode: in-plane interpolation: "linear" or "bilinear" (the same, antialiased when shrinking), or "nearest"
            (labels).

    Shapes: `[C, X, Y, Z]` to a list of `[C, H, W]`, float32 MetaTensors in the volume's own intensities (scale them
    with `ScaleForeground`). The 4x4 affine's first two columns belong to H and W, the third to the normal, so a NIfTI
    `[H, W, 1]` with it is right. Without a MetaTensor the affine is taken as the identity. meta: `plane`,
    `position_mm` (of the plane found, not of the request), `foreground_box` (first and last row and column of the
    volume's box, in this slice), `foreground_window` and `foreground_threshold` of the whole volume. MONAI's
    `SaveImage` writes them as it does those of `LoadSlice`.

    `inverse` puts one slice back where it was cut, into a volume of the old shape and affine that is zero elsewhere;
    what `pixel_mm` resampled is first brought back to the scan's own pixels. A prediction of other channels than the
    scan's keeps them (`Invertd`).

    Raises:
        InputError: an unknown plane, unit, reference or mode, or no positions; in `inverse`, a slice of another size
            than was cut.
        ScanError: not a volume, an empty one, a mask on another grid, or a position outside the brain; names the file
            and the allowed range.

    Examples:
        >>> volume = torch.rand(1, 20, 24, 18) + 0.1
        >>> [tuple(s.shape) for s in ExtractSlices("axial", [3, 9])(volume)]
        [(1, 24, 20), (1, 24, 20)]
    """

    backend = [TransformBackends.NUMPY]  # noqa: RUF012 (MONAI's own convention)

    def __init__(
        self,
        plane: str = "axial",
        positions: float | Sequence[float] = (0.0,),
        *,
        unit: str = "mm",
        reference: str = "brain_edge",
        pixel_mm: float | Sequence[float] | None = None,
        mode: str = "linear",
    ) -> None:
        check_position_options(plane, unit, reference)
        self.plane, self.unit, self.reference, self.mode = plane, unit, reference, check_mode(mode)
        self.positions = check_positions(positions)
        self.pixel_mm = check_pixel_mm(pixel_mm) if pixel_mm is not None else None

    def __call__(self, img: NdarrayOrTensor, mask: NdarrayOrTensor | None = None) -> list[MetaTensor]:
        """Extract the slices, in the order of the positions."""
        prepared = self.prepare(img, mask)
        return self.cut(img, prepared, self.locate(prepared))

    def prepare(self, img: NdarrayOrTensor, mask: NdarrayOrTensor | None = None) -> PreparedVolume:
        """Find the box and the window of a volume (of its first channel).

        A mask that is a MetaTensor lies where its own affine says, any other on the volume's array.
        """
        return prepare_volume(
            finite(_first_channel(img)),
            affine_of(img),
            self.plane,
            mask_s=_first_channel(mask) if mask is not None else None,
            mask_affine=affine_of(mask) if isinstance(mask, MetaTensor) else None,
            name=name_of(img),
        )

    def locate(self, prepared: PreparedVolume) -> list[Plane]:
        """The planes at the positions, or ScanError."""
        planes = []
        found = locate_planes(prepared, self.positions, unit=self.unit, reference=self.reference)
        for position, plane in zip(self.positions, found, strict=True):
            if plane is None:
                raise ScanError(outside_message(prepared, position, unit=self.unit, reference=self.reference))
            planes.append(plane)
        return planes

    def cut(self, img: NdarrayOrTensor, prepared: PreparedVolume, planes: Sequence[Plane]) -> list[MetaTensor]:
        """The slices of all channels at some planes; each channel has a background of its own."""
        views = [view_plane(channel, affine_of(img), self.plane, name=prepared.name) for channel in to_numpy(img)]
        volumes = [
            prepared._replace(view=prepared.view._replace(volume_s=v.volume_s), background=find_background(v.volume_s))
            for v in views
        ]
        device = img.device if isinstance(img, torch.Tensor) else None
        slices = []
        for plane in planes:
            cuts = [cut_plane(volume, plane, pixel_mm=self.pixel_mm, mode=self.mode) for volume in volumes]
            meta = {
                **_slice_meta(img),
                "plane": self.plane,
                "position_mm": plane.position_mm,
                "foreground_box": cuts[0].box,
                "foreground_window": tuple(prepared.window),
                "foreground_threshold": prepared.threshold,
            }
            pixels = torch.from_numpy(np.stack([cut.pixels for cut in cuts]))
            image = as_slice(pixels, cuts[0].affine, meta)
            if isinstance(img, MetaTensor):
                image.applied_operations = list(img.applied_operations)
            where = {"number": plane.number, "affine": affine_of(img), "size": tuple(pixels.shape[1:])}
            self.push_transform(image, orig_size=tuple(to_numpy(img).shape[1:]), extra_info=where)
            slices.append(cast("MetaTensor", image.to(device)) if device is not None else image)
        return slices

    def inverse(self, data: MetaTensor) -> MetaTensor:
        """Put one slice back into its volume, zeros elsewhere."""
        record = self.pop_transform(data)
        where, shape = record[TraceKeys.EXTRA_INFO], [int(size) for size in record[TraceKeys.ORIG_SIZE]]
        pixels, affine = to_numpy(data), np.asarray(where["affine"])
        if pixels.shape[1:] != tuple(where["size"]):
            raise InputError(
                f"{name_of(data)}: a slice of {pixels.shape[1:]} pixels was given and one of {tuple(where['size'])} "
                "was cut; undo what changed its size first"
            )
        volume = np.zeros((len(pixels), *shape), dtype=np.float32)
        for channel, values in zip(volume, pixels, strict=True):
            view = view_plane(channel, affine, self.plane)
            if self.pixel_mm is not None:
                values = restore_plane(values, view.volume_s.shape[:2], view.affine, self.pixel_mm, mode=self.mode)
            view.volume_s[:, :, int(where["number"])] = values
        result = MetaTensor(
            torch.from_numpy(volume).to(data.device), affine=torch.as_tensor(affine), meta=_slice_meta(data)
        )
        result.applied_operations = list(data.applied_operations)
        return result


class ExtractSlice(InvertibleTransform):
    """Extract one slice of a volume; the middle of the brain's box where no position is given.

    Everything else is as in `ExtractSlices`, `inverse` included.

    Args:
        plane: "axial", "coronal" or "sagittal".
        position: where, or None for the middle of the brain's box.
        unit: "mm" or "fraction".
        reference: "brain_edge", "brain_center" or "volume_center".
        pixel_mm: size of the slice's pixels, or None for the scan's own.
        mode: "linear" (or "bilinear") or "nearest".

    Shapes: `[C, X, Y, Z]` to `[C, H, W]`.

    Raises:
        InputError, ScanError: as `ExtractSlices`.

    Examples:
        >>> tuple(ExtractSlice("coronal")(torch.rand(1, 20, 24, 18) + 0.1).shape)
        (1, 18, 20)
    """

    backend = [TransformBackends.NUMPY]  # noqa: RUF012 (MONAI's own convention)

    def __init__(
        self,
        plane: str = "axial",
        position: float | None = None,
        *,
        unit: str = "mm",
        reference: str = "brain_edge",
        pixel_mm: float | Sequence[float] | None = None,
        mode: str = "linear",
    ) -> None:
        check_position_options(plane, unit, reference)
        if position is None:
            position, unit, reference = 0.0, "mm", "brain_center"
        self.slices = ExtractSlices(plane, [position], unit=unit, reference=reference, pixel_mm=pixel_mm, mode=mode)

    def __call__(self, img: NdarrayOrTensor, mask: NdarrayOrTensor | None = None) -> MetaTensor:
        """Extract the slice."""
        return self.slices(img, mask)[0]

    def inverse(self, data: MetaTensor) -> MetaTensor:
        """Put the slice back into its volume, zeros elsewhere."""
        return self.slices.inverse(data)


def _first_channel(img: NdarrayOrTensor) -> NDArray:
    volume = to_numpy(img)
    if volume.ndim != 4 or volume.shape[0] < 1:
        raise ScanError(
            f"{name_of(img)}: shape {tuple(volume.shape)}; expected a volume [C, X, Y, Z] (EnsureChannelFirst adds C)"
        )
    return volume[0]


def _slice_meta(img: NdarrayOrTensor) -> dict[str, Any]:
    """The volume's meta that still holds for a slice: its subject, not its layout in the array."""
    meta = dict(img.meta) if isinstance(img, MetaTensor) else {}
    return {key: meta[key] for key in ("filename_or_obj", "subject", MetaKeys.SPACE) if key in meta}
