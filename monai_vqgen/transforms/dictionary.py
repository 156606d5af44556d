"""Dictionary versions of the array transforms, as MONAI has them: `keys` name the entries to change."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from monai.config.type_definitions import KeysCollection
from monai.transforms.inverse import InvertibleTransform
from monai.transforms.transform import MapTransform
from monai.utils.misc import ensure_tuple_rep
from numpy.typing import NDArray

from monai_vqgen.errors import ScanError
from monai_vqgen.transforms.extract_slice import ExtractSlice, ExtractSlices
from monai_vqgen.transforms.intensity import MatchQuantiles, ScaleForeground
from monai_vqgen.transforms.lesions import SyntheticLesion
from monai_vqgen.transforms.loading import LoadSlice
from monai_vqgen.transforms.size import FitToSize

__all__ = [
    "ExtractSliceD",
    "ExtractSliceDict",
    "ExtractSliced",
    "ExtractSlicesD",
    "ExtractSlicesDict",
    "ExtractSlicesd",
    "FitToSizeD",
    "FitToSizeDict",
    "FitToSized",
    "LoadSliceD",
    "LoadSliceDict",
    "LoadSliced",
    "MatchQuantilesD",
    "MatchQuantilesDict",
    "MatchQuantilesd",
    "ScaleForegroundD",
    "ScaleForegroundDict",
    "ScaleForegroundd",
    "SyntheticLesionD",
    "SyntheticLesionDict",
    "SyntheticLesiond",
]


class ExtractSlicesd(MapTransform, InvertibleTransform):
    """Dictionary version of `ExtractSlices`: one dictionary in, a list of dictionaries out, one per position.

    MONAI's datasets and `list_data_collate` flatten such lists, and `Compose` maps what follows over them. All keys
    are extracted at the planes of `box_key`, so image and label stay together. Each dictionary also gets `plane` and
    `position_mm`; other entries are copied.

    Args:
        keys: entries to extract from, volumes on one grid.
        mode: "linear" (or "bilinear") or "nearest", one for all keys or one per key.
        box_key: whose foreground gives the box; default the first key.
        mask_key: an entry with a brain mask to use instead of the foreground.
        allow_missing_keys: skip missing keys.

    All others are those of `ExtractSlices`. `inverse` takes one of the dictionaries and puts its slices back into
    volumes, zeros elsewhere; `plane` and `position_mm` stay and say where they lie.
    """

    backend = ExtractSlices.backend

    def __init__(
        self,
        keys: KeysCollection,
        plane: str = "axial",
        positions: float | Sequence[float] = (0.0,),
        *,
        unit: str = "mm",
        reference: str = "brain_edge",
        pixel_mm: float | Sequence[float] | None = None,
        mode: str | Sequence[str] = "linear",
        box_key: str | None = None,
        mask_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.box_key: Hashable = box_key if box_key is not None else self.keys[0]
        self.mask_key = mask_key
        self.cutters = {
            key: ExtractSlices(plane, positions, unit=unit, reference=reference, pixel_mm=pixel_mm, mode=key_mode)
            for key, key_mode in zip(self.keys, ensure_tuple_rep(mode, len(self.keys)), strict=True)
        }
        self.placer = ExtractSlices(plane, positions, unit=unit, reference=reference)

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        """Extract every key at every position."""
        guide = data[self.box_key]
        prepared = self.placer.prepare(guide, data[self.mask_key] if self.mask_key is not None else None)
        planes = self.placer.locate(prepared)
        results: list[dict[Hashable, Any]] = [
            {**data, "plane": self.placer.plane, "position_mm": plane.position_mm} for plane in planes
        ]
        for key in self.key_iterator(dict(data)):
            if tuple(data[key].shape[1:]) != tuple(guide.shape[1:]):
                raise ScanError(f"{key}: shape {tuple(data[key].shape)} is not on the grid of {self.box_key}")
            for item, image in zip(results, self.cutters[key].cut(data[key], prepared, planes), strict=True):
                item[key] = image
        return results

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Put the slice of every key back into its volume."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.cutters[key].inverse(item[key])
        return item


class ExtractSliced(MapTransform, InvertibleTransform):
    """Dictionary version of `ExtractSlice`: one dictionary in, one out; the middle of the brain without a position.

    Arguments are those of `ExtractSlicesd`, with one `position` or None; so is `inverse`.
    """

    backend = ExtractSlice.backend

    def __init__(
        self,
        keys: KeysCollection,
        plane: str = "axial",
        position: float | None = None,
        *,
        unit: str = "mm",
        reference: str = "brain_edge",
        pixel_mm: float | Sequence[float] | None = None,
        mode: str | Sequence[str] = "linear",
        box_key: str | None = None,
        mask_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        one = ExtractSlice(plane, position, unit=unit, reference=reference).slices
        self.slices = ExtractSlicesd(
            keys,
            plane,
            one.positions,
            unit=one.unit,
            reference=one.reference,
            pixel_mm=pixel_mm,
            mode=mode,
            box_key=box_key,
            mask_key=mask_key,
            allow_missing_keys=allow_missing_keys,
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Extract every key."""
        return self.slices(data)[0]

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Put the slice of every key back into its volume."""
        return self.slices.inverse(data)


class _OfEachKey(MapTransform):
    """Applies one array transform, `each`, to every key."""

    each: Callable[[Any], Any]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change every key."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.each(item[key])
        return item


class ScaleForegroundd(MapTransform):
    """Dictionary version of `ScaleForeground`, with its arguments after `keys`; `mask_key` names a brain mask."""

    backend = ScaleForeground.backend

    def __init__(
        self,
        keys: KeysCollection,
        lower: float = 0.5,
        upper: float = 99.5,
        *,
        window: tuple[float, float] | None = None,
        mask_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.each, self.mask_key = ScaleForeground(lower, upper, window=window), mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scale every key."""
        item = dict(data)
        mask = None if self.mask_key is None else item[self.mask_key]
        for key in self.key_iterator(item):
            item[key] = self.each(item[key], mask)
        return item


class FitToSized(_OfEachKey, InvertibleTransform):
    """Dictionary version of `FitToSize`, with its arguments after `keys`, and its inverse."""

    backend = FitToSize.backend

    def __init__(
        self,
        keys: KeysCollection,
        size: int | Sequence[int],
        *,
        on_trim: str = "error",
        fill: float = 0.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.each: FitToSize = FitToSize(size, on_trim=on_trim, fill=fill)

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Undo the fit of every key."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.each.inverse(item[key])
        return item


class LoadSliced(_OfEachKey):
    """Dictionary version of `LoadSlice`; `subject`, `plane` and `position_mm` of the item also go into the meta."""

    backend = LoadSlice.backend

    def __init__(
        self,
        keys: KeysCollection,
        *,
        value_range: Sequence[float] | None = None,
        color: str = "error",
        channels: int = 1,
        dimensions: int = 2,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.each = LoadSlice(value_range=value_range, color=color, channels=channels, dimensions=dimensions)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load every key."""
        item = super().__call__(data)
        for key in self.key_iterator(item):
            item[key].meta.update({name: item[name] for name in ("subject", "plane", "position_mm") if name in item})
        return item


class MatchQuantilesd(_OfEachKey, InvertibleTransform):
    """Dictionary version of `MatchQuantiles`, with its arguments after `keys`, and its inverse."""

    backend = MatchQuantiles.backend

    def __init__(
        self, keys: KeysCollection, quantiles: Sequence[float] | NDArray, *, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.each: MatchQuantiles = MatchQuantiles(quantiles)

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Bring every key back to its own intensities."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.each.inverse(item[key])
        return item


class SyntheticLesiond(MapTransform):
    """Dictionary version of `SyntheticLesion`; `mask_key` gets the exact mask `[1, H, W]`, uint8.

    Other arguments are those of `SyntheticLesion`. With several keys each gets the lesion of its own outline, and the
    mask is that of the last.
    """

    backend = SyntheticLesion.backend

    def __init__(
        self,
        keys: KeysCollection,
        kind: Any = None,
        *,
        seed: int = 0,
        mask_key: str = "label",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.lesion, self.mask_key = SyntheticLesion(kind, seed=seed), mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change every key, and add the mask."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key], item[self.mask_key] = self.lesion.with_mask(item[key])
        return item


ExtractSliceD = ExtractSliceDict = ExtractSliced
ExtractSlicesD = ExtractSlicesDict = ExtractSlicesd
FitToSizeD = FitToSizeDict = FitToSized
LoadSliceD = LoadSliceDict = LoadSliced
ScaleForegroundD = ScaleForegroundDict = ScaleForegroundd
MatchQuantilesD = MatchQuantilesDict = MatchQuantilesd
SyntheticLesionD = SyntheticLesionDict = SyntheticLesiond
