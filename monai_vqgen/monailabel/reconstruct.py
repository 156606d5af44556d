"""Reconstruction of a volume or slice through `inference.json`, in the input's own geometry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_vqgen.errors import InputError
from monai_vqgen.inferers.reconstruction import VolumeReconstructionInferer, plane_of
from monai_vqgen.monailabel.answers import answer_nifti, answer_png
from monai_vqgen.monailabel.interfaces import BundleInferTask, InferType
from monai_vqgen.monailabel.knobs import ReconstructionKnobs
from monai_vqgen.monailabel.served_bundle import ServedBundle
from monai_vqgen.transforms.geometry import view_plane

__all__ = ["ReconstructTask"]

MAX_SLICE_PIXELS = 2**22
"""Shown to the network at once, some 0.5 GB."""
MAX_PIXELS = 2**27
"""In one answer, as the model sees them: 512 slices of 512 x 512, a quarter of an hour on one core."""


class ReconstructTask(BundleInferTask):
    """The bundle's `inference.json` as MONAI Label runs it, with checked knobs and files of exact geometry.

    It differs from the stock task in four ways: weights that do not fit are an error and not a half-loaded network; a
    client cannot name a file to load weights from; a PNG comes back as a PNG; a NIfTI keeps its affine bit for bit,
    where ITK's writer would make it orthogonal.

    Knobs: `plane`, `pixel_mm`, `batch_size`, `intensity` (see `VolumeReconstructionInferer`).
    """

    def __init__(self, bundle: ServedBundle) -> None:
        super().__init__(str(bundle.root), {}, type=InferType.OTHERS, add_post_restore=False)
        self.bundle = bundle
        self.description = "Reconstruction from the codes of the autoencoder, in the image's own geometry"
        self.labels: dict[str, int] = {}
        self._config.pop("model_filename", None)

    def __call__(self, request: Mapping[str, Any], callbacks: Any = None) -> tuple[str | None, dict[str, Any]]:
        """Return the path of the reconstruction and what it is.

        Raises:
            InputError: a knob outside its range, or more pixels than a client may ask for.
            ScanError: the image cannot be used.
        """
        names = ReconstructionKnobs.model_fields
        asked = {name: request[name] for name in names if request.get(name) not in (None, "")}
        defaults = {name: self.displayable_configs[name] for name in names}
        knobs = ReconstructionKnobs.of({**defaults, **asked}).model_dump()
        known = {name: request[name] for name in ("model", "image", "device")}  # MONAI Label obeys many more names
        with self.bundle.lock:  # the parsed configuration is one for all requests
            path, answer = super().__call__({**known, **knobs, "model_filename": None})
        return path, {**answer, **knobs, "synthetic": False, **self.bundle.about("cpu")}

    def inferer(self, data: Any = None) -> VolumeReconstructionInferer:
        """The configured inferer; a picture has no millimeters, so it is shown to the model as it is."""
        inferer: VolumeReconstructionInferer = super().inferer(data)
        if data is not None:
            image = data[self.input_key]
            if image.ndim == 3:
                inferer.pixel_mm = None
            check_size(tuple(image.shape[1:]), np.asarray(image.affine), inferer.plane, inferer.pixel_mm)
        return inferer

    def writer(self, data: dict[str, Any], extension: Any = None, dtype: Any = None) -> tuple[str, dict[str, Any]]:
        """Write `pred` with the geometry that was read."""
        image, values = data[self.input_key], data[self.output_label_key]
        pixels = np.asarray(values.detach().cpu().float())
        if image.ndim == 3:
            return answer_png(pixels[0]), {}
        shape = tuple(int(n) for n in image.meta["spatial_shape"])
        about = {"reconstruction": True, "model_version": self.bundle.version}
        return answer_nifti(pixels[0].reshape(shape), np.asarray(image.meta["original_affine"]), about), {}

    def _get_network(self, device: str, data: Any) -> Any:
        return self.bundle.model(device, with_priors=False).autoencoder


def check_size(shape: tuple[int, ...], affine: NDArray, plane: str, pixel_mm: float | None) -> None:
    """Raise InputError where a picture or volume has more pixels, as the model sees it, than a client may ask for."""
    size, count = [float(n) for n in shape[:2]], 1
    if len(shape) == 3:
        view = view_plane(np.broadcast_to(np.float32(0), shape), affine, plane_of(shape, affine) or plane)
        seen = zip(view.volume_s.shape[:2], view.spacing[:2], strict=True)
        size, count = [n * mm / (pixel_mm or mm) for n, mm in seen], view.volume_s.shape[2]
    rows, columns = size
    if rows * columns > MAX_SLICE_PIXELS or rows * columns * count > MAX_PIXELS:
        raise InputError(
            f"the model would be shown {count} slices of {rows:.0f} x {columns:.0f} pixels; at most {MAX_SLICE_PIXELS} "
            f"a slice and {MAX_PIXELS} in all are allowed: give a larger pixel_mm, or crop the image"
        )
