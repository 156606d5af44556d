"""A whole volume through a network of slices or of volumes, and back in the volume's own geometry.

Shape legend: b batch, h w rows and columns of a slice, n slices of one volume, s the volume's three axes as stored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import Inferer
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray
from tqdm.auto import tqdm

from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.inferers.draws import in_memory
from monai_vqgen.transforms.foreground import Background, Window, find_foreground, foreground_window
from monai_vqgen.transforms.geometry import PLANES, VIEWS, VOLUME, view_plane
from monai_vqgen.transforms.intensity import check_window
from monai_vqgen.transforms.resampling import resample_plane, resampled_size, restore_plane

Intensity = Literal["input", "unit"]
PIXELS_AT_ONCE = 2**22  # of a batch, 16 slices of 512 x 512: some 100 bytes each in a network of the default size
BACKGROUND_LEVEL = 0.02  # share of the window below which a voxel is background, as in the metrics

logger = logging.getLogger(__name__)


class _Normalized(NamedTuple):
    volume_s: NDArray  # in [0, 1]
    window: Window
    background: float  # what lies outside the foreground, in the input's units
    hidden_s: NDArray | bool = False  # background of a value within the brain's range, which stays


class VolumeFrame(NamedTuple):
    """How slices lie in a volume, or the volume itself where it is shown as a whole, and what values stand for.

    Attributes:
        shape: voxels of the volume along its own axes.
        affine: 4x4 of the volume.
        plane: of the slices, or `VOLUME`.
        window: intensities that are 0 and 1.
        background: intensity outside the foreground, where it lies below the window.
        filled_n: which slices along the plane's normal are not blank; one entry for a whole volume.
        hidden_s: voxels of background of a value within the brain's range.
    """

    shape: tuple[int, ...]
    affine: NDArray
    plane: str
    window: Window
    background: float
    filled_n: NDArray
    hidden_s: NDArray | bool = False


class CutVolume(NamedTuple):
    """Slices in [0, 1] that are not blank, or one whole volume, as a network is shown them, and where they lie."""

    images_nhw: NDArray
    frame: VolumeFrame


class VolumeReconstructionInferer(Inferer):
    """Reconstruct volumes slice by slice, or as a whole; what comes back has the input's shape, axes, affine and units.

    ::

        volume ─ normalize ─ reorient ─ resample in plane ─ pad ─> slices ─> network
        volume <─ units ──── reorient ─ resample ──────── crop <────────────┘

    The intensity window runs from percentile `lower` to `upper` (0.5 to 99.5, as in `extract_slices`) of the whole
    volume's foreground, or is `window`; give the ones that the network's slices were cut with. Reorientation is by axis
    codes, so an oblique volume is not interpolated. No slice is cropped. A slice that is blank in the input is not
    shown to the network and comes back as it was. A volume with one axis of a single voxel is itself a slice: its plane
    is that axis', whatever `plane` says, and values already in [0, 1] are taken as normalized.

    With plane "volume" the network is one of volumes: it is shown all voxels at once, RAS+, resampled along all three
    axes. Values in [0, 1] are then taken as normalized where nothing is resampled, as in what `extract_slices` writes.

    Args:
        plane: "axial", "coronal" or "sagittal": the plane of the slices that the network was trained on; "volume" for
            a network of volumes.
        pixel_mm: pixel size that the network was trained on, in millimeters; `None` takes the volume as stored.
        image_size: pixels that the network was trained on; smaller slices (volumes) are padded with background to this
            size, larger ones stay larger. `None` pads nothing.
        batch_size: slices shown to the network at once; fewer where together they had more than 2**22 pixels.
        intensity: "input" returns the input's units, "unit" the normalized range [0, 1].
        lower: percentile of the foreground that becomes 0.
        upper: percentile that becomes 1.
        window: (low, high) in the input's units in place of percentiles. What lies above comes back as high; the lowest
            2 % and all below run down to the value of the background.
        progress: whether to draw a progress bar over the slices.

    Input: `(b, 1, X, Y, Z)`, a MetaTensor for any orientation but RAS+ at 1 mm; or `(b, 1, H, W)` images in [0, 1].
    Images of several channels, `(b, c, H, W)` or `(b, c, H, W, 1)` in [0, 1], are shown to the network as they are.

    Raises:
        InputError: an argument is out of its range, or the input has another number of channels or axes.
        ScanError: a volume has no foreground at all, or an affine that cannot place it; a slice for a network of
            volumes.

    Examples:
        >>> volume = torch.rand(1, 1, 12, 10, 6)
        >>> VolumeReconstructionInferer("axial", pixel_mm=2.0)(volume, torch.nn.Identity()).shape
        torch.Size([1, 1, 12, 10, 6])
    """

    def __init__(
        self,
        plane: str = "axial",
        *,
        pixel_mm: float | None = None,
        image_size: int | Sequence[int] | None = None,
        batch_size: int = 16,
        intensity: Intensity = "input",
        lower: float = 0.5,
        upper: float = 99.5,
        window: Sequence[float] | None = None,
        progress: bool = False,
    ) -> None:
        super().__init__()
        if plane not in VIEWS:
            raise InputError(f"plane {plane!r} is unknown; choose one of {', '.join(PLANES)}, or {VOLUME}")
        if pixel_mm is not None and not pixel_mm > 0:
            raise InputError(f"pixel_mm is {pixel_mm}; give a positive size in millimeters, or none")
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; give at least 1")
        if intensity not in get_args(Intensity):
            raise InputError(f"intensity is {intensity!r}; choose 'input' or 'unit'")
        if not 0 <= lower < upper <= 100:
            raise InputError(f"percentiles are {lower} and {upper}; give 0 <= lower < upper <= 100")
        check_window(window)
        self.lower, self.upper = lower, upper
        self.window = None if window is None else Window(float(window[0]), float(window[1]))
        self.plane, self.pixel_mm, self.batch_size = plane, pixel_mm, batch_size
        self.intensity, self.progress = intensity, progress
        self.axes = 3 if plane == VOLUME else 2
        size = image_size or 0
        self.image_size = tuple(map(int, size if isinstance(size, Sequence) else (size,) * self.axes))
        if len(self.image_size) != self.axes:
            raise InputError(f"image_size is {image_size}; give {self.axes} numbers, or one for all")

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return the reconstruction of `inputs`, shaped like it and with its meta data."""
        if inputs.shape[1:2] > (1,) and (inputs.ndim == 4 or (inputs.ndim == 5 and inputs.shape[4] == 1)):
            return self._channels(inputs, network, *args, **kwargs)
        if inputs.ndim == 4 and self.axes == 3:
            raise InputError(
                f"slices of shape {tuple(inputs.shape)} for a network of volumes: give (batch, 1, X, Y, Z)"
            )
        if inputs.ndim not in (4, 5) or inputs.shape[1] != 1:
            raise InputError(
                f"the input has shape {tuple(inputs.shape)}: give volumes as (batch, 1, X, Y, Z) or slices as "
                "(batch, 1, H, W), one channel"
            )
        device = inputs.device

        def reconstruct(images_nhw: NDArray) -> NDArray:
            return self._run_network(images_nhw, lambda x: network(x, *args, **kwargs), device)

        values = inputs.detach().cpu().float().numpy()
        affine = inputs.affine.cpu().double().numpy() if isinstance(inputs, MetaTensor) else np.eye(4)  # one, or each's
        affines = np.broadcast_to(affine, (len(values), 4, 4))
        if inputs.ndim == 4:  # pictures know no plane and no millimeters: each is one slice of a volume
            values, affines = values[..., None], np.broadcast_to(_AS_AXIAL_SLICE, affines.shape)
        parts = zip(values, affines, strict=True)
        results = [self._volume(value[0], affine, reconstruct, inputs.ndim == 5) for value, affine in parts]
        output = inputs.detach().clone().float()
        output.copy_(torch.as_tensor(np.stack(results)[:, None]).reshape(inputs.shape))
        return output

    def _channels(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Reconstruct images of several channels; a blank one comes back as it was."""
        output = inputs.detach().clone().float()
        plain_bchw = output.as_tensor() if isinstance(output, MetaTensor) else output
        images_bchw = plain_bchw.reshape(inputs.shape[:4])
        with torch.no_grad():
            parts = [network(part, *args, **kwargs).clamp(0, 1) for part in images_bchw.split(self.batch_size)]
        filled_b = images_bchw.flatten(1).amax(1) > 0
        result_bchw = torch.where(filled_b[:, None, None, None], torch.cat(parts).to(images_bchw), images_bchw)
        output.copy_(result_bchw.reshape(inputs.shape))
        return output

    def check(self, image: torch.Tensor) -> None:
        """Raise ScanError where a volume `(1, X, Y, Z)` or a slice `(1, H, W)` has no contrast to reconstruct."""
        values = image[0].detach().cpu().float().numpy()
        values = values[..., None] if values.ndim == 2 else values
        self._check_volume(values.shape)
        if not self._is_normalized(values):
            self._contrast(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0))

    def _volume(
        self, volume_s: NDArray, affine: NDArray, reconstruct: Callable[[NDArray], NDArray], resampled: bool
    ) -> NDArray:
        images_nhw, frame = self.cut(volume_s, affine, resampled=resampled)
        made_nhw = reconstruct(images_nhw) if len(images_nhw) else images_nhw
        return self.restore(made_nhw, frame, volume_s, resampled=resampled)

    def cut(self, volume_s: NDArray, affine: NDArray, *, resampled: bool = True) -> CutVolume:
        """The slices of a volume that are not blank, in [0, 1], as the network is shown them, and where they lie.

        Args:
            volume_s: float32 `(X, Y, Z)` in any units.
            affine: 4x4, voxel centers to RAS+ millimeters.
            resampled: to `pixel_mm`, where there is one; not for pictures, which know no millimeters.

        Raises:
            ScanError: no foreground, or an affine that cannot place it.
        """
        self._check_volume(volume_s.shape)
        plane = plane_of(volume_s.shape, affine) or self.plane
        normalized = self._normalize(volume_s)
        view = view_plane(normalized.volume_s, affine, plane)
        images_nhw = view.volume_s[None] if plane == VOLUME else np.moveaxis(view.volume_s, -1, 0)
        filled_n = images_nhw.reshape(len(images_nhw), -1).max(1) > 0
        images_nhw = images_nhw[filled_n]
        if resampled and self.pixel_mm is not None and len(images_nhw):
            images_nhw = resample_plane(images_nhw, view.affine, self.pixel_mm, axes=self.axes).pixels
        before, after = self._margins(images_nhw.shape[1:])
        padded_nhw = np.pad(images_nhw, [(0, 0), *zip(before, after, strict=True)])
        frame = VolumeFrame(
            volume_s.shape, affine, plane, normalized.window, normalized.background, filled_n, normalized.hidden_s
        )
        return CutVolume(padded_nhw.astype(np.float32, copy=False), frame)

    def restore(
        self, images_nhw: NDArray, frame: VolumeFrame, volume_s: NDArray | None = None, *, resampled: bool = True
    ) -> NDArray:
        """A volume of the slices that `cut` took from it, in its own axes and size, in the units of `intensity`.

        Args:
            images_nhw: in [0, 1], of the size and number that `cut` gave.
            frame: of the volume.
            volume_s: the volume that was cut, whose blank slices and hidden background come back as they were; without
                it they come back as background.
            resampled: as in `cut`.
        """
        blank = np.zeros(frame.shape, dtype=np.float32)
        view = view_plane(blank, frame.affine, frame.plane)
        size = view.volume_s.shape[: self.axes]
        if len(images_nhw):
            pixel_mm = self.pixel_mm if resampled else None
            shown = size if pixel_mm is None else resampled_size(size, view.affine, pixel_mm)
            before, _ = self._margins(shown)
            window: Any = (..., *(slice(b, b + n) for b, n in zip(before, shown, strict=True)))
            images_nhw = images_nhw[window]
            if pixel_mm is not None:
                images_nhw = restore_plane(images_nhw, size, view.affine, pixel_mm).clip(0, 1)
            if frame.plane == VOLUME:
                view.volume_s[:] = images_nhw[0]
            else:
                view.volume_s[..., frame.filled_n] = np.moveaxis(images_nhw, 0, -1)
        if self.intensity == "unit":
            return blank
        result_s = _in_units(blank, frame.window, frame.background).astype(np.float32)
        if volume_s is None:
            return result_s
        back = ornt_transform(axcodes2ornt(VIEWS[frame.plane]), io_orientation(frame.affine))
        filled_s = apply_orientation(np.broadcast_to(frame.filled_n, view.volume_s.shape), back)
        return np.where(filled_s & ~np.asarray(frame.hidden_s), result_s, volume_s).astype(np.float32)

    def _margins(self, size: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Pixels of background before and after each axis."""
        lacking = [max(0, want - have) for want, have in zip(self.image_size, size, strict=True)]
        return tuple(n // 2 for n in lacking), tuple(n - n // 2 for n in lacking)

    def _check_volume(self, shape: Sequence[int]) -> None:
        if self.axes == 3 and 1 in shape:
            raise ScanError(f"a single slice of shape {tuple(shape)}, and the model is one of volumes: give a volume")

    def _is_normalized(self, volume_s: NDArray) -> bool:
        as_trained = 1 in volume_s.shape if self.axes == 2 else self.pixel_mm is None
        return as_trained and bool(volume_s.min() >= 0 and volume_s.max() <= 1)

    def _contrast(self, volume_s: NDArray) -> tuple[Background, Window]:
        """Background of a volume and the window of its foreground, or ScanError where that is empty."""
        foreground = find_foreground(volume_s)
        if self.window is not None:
            return foreground.background, self.window
        window = foreground_window(volume_s, foreground=foreground, lower=self.lower, upper=self.upper)
        if window.high <= window.low:
            raise ScanError(
                f"a volume of shape {volume_s.shape} has no contrast (its foreground runs from {window.low:g} to "
                f"{window.high:g}); remove it or export it again"
            )
        return foreground.background, window

    def _normalize(self, volume_s: NDArray) -> _Normalized:
        if not np.isfinite(volume_s).all():
            logger.warning("%d voxels are not finite numbers; they are taken as 0", int((~np.isfinite(volume_s)).sum()))
            volume_s = np.nan_to_num(volume_s, nan=0.0, posinf=0.0, neginf=0.0)
        if self._is_normalized(volume_s):
            return _Normalized(volume_s, Window(0.0, 1.0), 0.0)
        found, window = self._contrast(volume_s)
        shown_s = found.hide(volume_s)
        below = shown_s[shown_s <= found.threshold]
        background = min(float(np.median(below)), window.low) if below.size else window.low
        scaled = np.clip((shown_s - window.low) / (window.high - window.low), 0, 1)
        return _Normalized(scaled.astype(np.float32), window, background, shown_s != volume_s)

    def _run_network(
        self, images_nhw: NDArray, network: Callable[[torch.Tensor], torch.Tensor], device: torch.device
    ) -> NDArray:
        def run(part: slice) -> NDArray:
            batch = np.ascontiguousarray(images_nhw[part, None], dtype=np.float32)
            shown: NDArray = network(torch.from_numpy(batch).to(device))[:, 0].clamp(0, 1).float().cpu().numpy()
            return shown

        count, parts = len(images_nhw), []
        with torch.no_grad():
            step = max(1, min(self.batch_size, PIXELS_AT_ONCE // images_nhw[0].size))
            starts = range(0, count, step)
            for start in tqdm(starts, desc="slices", disable=not self.progress, leave=False):
                parts += in_memory(run, slice(start, min(start + step, count)))
        return np.concatenate(parts)


_AS_AXIAL_SLICE = np.array([[0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]], dtype=np.float64)


def plane_of(shape: Sequence[int], affine: NDArray) -> str | None:
    """The plane of a volume that is a single slice, else None."""
    single = [axis for axis, size in enumerate(shape) if size == 1]
    if len(single) != 1:
        return None
    anatomical = int(io_orientation(affine)[single[0], 0])  # 0 left-right, 1 back-front, 2 foot-head
    return ("sagittal", "coronal", "axial")[anatomical]


def _in_units(images: NDArray, window: Window, background: float) -> NDArray:
    """Undo the window; the lowest 2 % run down to the background's own value, so that black stays black."""
    low, high = window
    if background >= low:
        return low + images * (high - low)
    knee = low + BACKGROUND_LEVEL * (high - low)
    return np.interp(images, [0.0, BACKGROUND_LEVEL, 1.0], [background, knee, high])
