"""What the priors draw: new slices, and a redrawn region of a slice whose rest stays.

    slice, mask -> hide -> encode -> codes, kept outside the mask -> draw the others -> decode -> paste into the slice

Shape legend: n samples, h w rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.models.samples import code_masks, draw_conditions, sample_affines
from monai_vqgen.models.trained_model import TrainedModel
from monai_vqgen.monailabel.answers import answer_nifti
from monai_vqgen.monailabel.interfaces import InferTask, InferType
from monai_vqgen.monailabel.knobs import SamplingKnobs, asked_conditions
from monai_vqgen.monailabel.served_bundle import ServedBundle
from monai_vqgen.transforms import LoadSlice
from monai_vqgen.transforms.nifti import FREE_BYTES, nifti_shape, read_nifti

__all__ = ["CompletionTask", "SamplingTask"]

CONDITIONS = {"position_mm": "", "age": "", "sex": ""}  # those of the weights that ship; others are taken too


class _PriorTask(InferTask):
    """A task that needs priors, and answers with a stack of slices."""

    def __init__(self, bundle: ServedBundle, description: str, **knobs: Any) -> None:
        super().__init__(InferType.OTHERS, {}, 2, description, {**SamplingKnobs.defaults(), **CONDITIONS, **knobs})
        self.bundle = bundle

    def is_valid(self) -> bool:
        """Whether the bundle has priors."""
        return self.bundle.has_priors()


class SamplingTask(_PriorTask):
    """Synthetic slices, stacked along the third axis of one NIfTI in [0, 1]. No image is needed.

    Knobs: those of `SamplingKnobs`, and what the priors are conditioned on (`position_mm`, `age`, `sex`).
    """

    def __init__(self, bundle: ServedBundle) -> None:
        super().__init__(bundle, "Synthetic slices drawn from the priors (needs no image)")

    def is_valid(self) -> bool:
        """Whether the weights that draw have priors."""
        return self.bundle.has_priors(self.bundle.sampling_weights)

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Draw the samples; return the file's path and what it holds.

        Raises:
            InputError: a parameter outside its range.
            CheckpointError: there are no priors.
            CodesMismatchError: the priors are of another autoencoder.
        """
        knobs, device = SamplingKnobs.of(request), request["device"]
        with self.bundle.lock:
            weights = self.bundle.sampling_weights  # read under the lock: training may replace them
            model = self.bundle.model(device, weights=weights)
            condition = asked_conditions(request, model.condition.names if model.condition else ())
            samples = model.sample(knobs.num_samples, seed=knobs.seed, **knobs.settings(), **condition)
            about = _about(knobs, samples.settings, condition) | self.bundle.about(device, weights)
        about["samples"] = [{"index": index, "condition": each} for index, each in enumerate(samples.conditions)]
        stack_hwn = np.moveaxis(samples.images[:, 0].numpy(), 0, -1)
        # the third axis of several counts samples and is no place
        position = samples.conditions[0].get("position_mm") if knobs.num_samples == 1 else None
        record, size = model.record, stack_hwn.shape[:2]
        affine = sample_affines(record.plane or "axial", size, record.pixel_mm or 1.0, [position])[0].numpy()
        return answer_nifti(stack_hwn, affine, about), about


def _about(knobs: SamplingKnobs, settings: Any, condition: Mapping[str, Any]) -> dict[str, Any]:
    drawn = {name: list(values) for name, values in settings._asdict().items()}
    return {"synthetic": True, **knobs.model_dump(), **drawn, "condition": dict(condition)}


class CompletionTask(_PriorTask):
    """Fill a masked region of a slice from the priors; completions are stacked along the third axis of one NIfTI.

    The image is a slice as the model knows them (PNG, or NIfTI `[H, W, 1]` in [0, 1], of the size the priors were
    trained on). The region is the file sent as `label` (any value above zero), or `box`: first row, first column, row
    after the last, column after the last, in pixels. What lies under it is hidden before encoding and has no influence
    on the answer; pixels outside come back as they were sent.

    Knobs: those of `SamplingTask`; the position in a slice's header is taken where none is given.
    """

    def __init__(self, bundle: ServedBundle) -> None:
        super().__init__(bundle, "A masked region of a slice, redrawn (synthetic inside the region)", box="")

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Complete the slice; return the file's path and what it holds.

        Raises:
            InputError: a parameter outside its range, or no region.
            ScanError: the image or the mask cannot be used.
            CheckpointError: there are no priors.
            CodesMismatchError: the priors are of another autoencoder.
        """
        image = LoadSlice()(str(request["image"]))
        pixels_hw = image.as_tensor()[0]
        affine = np.asarray(image.affine)
        mask_hw = _region(request, tuple(pixels_hw.shape), affine)
        knobs, device = SamplingKnobs.of(request), request["device"]
        with self.bundle.lock:
            model = self.bundle.model(device)
            given = asked_conditions(request, model.condition.names if model.condition else ())
            condition = {**_own_position(image.meta.get("position_mm"), model), **given}
            drawn = draw_conditions(model.condition, knobs.num_samples, seed=knobs.seed, given=condition)
            columns = {name: [row[name] for row in drawn] for name in drawn[0]}
            images = pixels_hw.expand(knobs.num_samples, 1, *pixels_hw.shape)
            results = model.complete(images, mask_hw, seed=knobs.seed, **knobs.settings(), **columns)
            about = _about(knobs, model.settings.replaced(**knobs.settings()), condition) | self.bundle.about(device)
            about |= {"codes_drawn": _share(model, mask_hw), "samples": drawn}
        return answer_nifti(np.moveaxis(results[:, 0].numpy(), 0, -1), affine, about), about


def _share(model: TrainedModel, mask_hw: Tensor) -> float:
    """The share of codes that are drawn."""
    masks = code_masks(mask_hw[None], model.grids, image_size=model.covered_size)
    return round(sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks), 4)


def _own_position(position: Any, model: TrainedModel) -> dict[str, Any]:
    """The position in the slice's header, where the priors were trained on such a position."""
    low, high = (model.condition.continuous if model.condition else {}).get("position_mm", (1.0, 0.0))
    return {"position_mm": position} if isinstance(position, int | float) and low <= position <= high else {}


def _region(request: Mapping[str, Any], shape: tuple[int, ...], affine: NDArray | None = None) -> Tensor:
    """The mask (h, w) of a request, on a slice of a shape and an affine.

    Raises:
        InputError: neither or both of `label` and `box` are given, or they do not fit the slice, or lie elsewhere.
        ScanError: the mask is unreadable.
    """
    box, label = request.get("box") or None, request.get("label") or None
    if (box is None) == (label is None):
        raise InputError("give the region either as a mask file (label) or as box=[row, column, row, column]")
    mask = _from_box(box, shape) if label is None else _from_file(Path(str(label)), shape, affine)
    if not mask.any():
        raise InputError("the mask marks no pixel: there is nothing to complete")
    return torch.from_numpy(np.ascontiguousarray(mask))


def _from_box(box: Any, shape: tuple[int, ...]) -> NDArray:
    try:
        words = box.split(",") if isinstance(box, str) else box
        numbers = [int(word) for word in words]
        if any(isinstance(word, float) and word != number for word, number in zip(words, numbers, strict=True)):
            raise ValueError("half a pixel")
        top, left, bottom, right = numbers
    except (TypeError, ValueError, OverflowError) as error:  # of infinity
        raise InputError(f"box is {box!r}; give four whole numbers: row, column, row, column") from error
    if not (0 <= top < bottom <= shape[0] and 0 <= left < right <= shape[1]):
        raise InputError(f"box is {box!r}; rows 0 to {shape[0]} and columns 0 to {shape[1]} are in the slice")
    mask = np.zeros(shape, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def _from_file(path: Path, shape: tuple[int, ...], affine: NDArray | None = None) -> NDArray:
    """Read a mask; its header tells the size, and no other than the slice's is unpacked, none elsewhere is taken."""
    try:
        if not path.is_file():  # a pipe would be waited for
            raise FileNotFoundError("no file")
        if path.suffix.lower() == ".png":
            with Image.open(path, formats=["PNG"]) as picture:  # of others Pillow starts programs
                if (size := picture.size[::-1]) == shape:
                    return np.asarray(picture.convert("I")) > 0
        else:
            size = nifti_shape(path)
            size = size[:2] if size[2:] == (1,) else size
            if size == shape:
                stored = read_nifti(path, lambda _: None, max_bytes=FREE_BYTES)
                if affine is not None and stored.oriented:
                    _check_place(stored.affine, affine, shape)
                return stored.voxels_s.reshape(shape) * stored.slope + stored.offset > 0
    except InputError:
        raise
    except Exception as error:  # whatever a reader raises at a file from outside
        raise ScanError(f"the mask cannot be read ({error}); send a PNG or NIfTI of the slice's size") from error
    raise InputError(f"the mask has shape {size}, the slice {shape}: give one value a pixel")


def _check_place(mask_affine: NDArray, affine: NDArray, shape: tuple[int, ...]) -> None:
    """Raise InputError where a corner of the mask is more than half a pixel from the slice's."""
    if np.array_equal(affine, np.eye(4)):  # a picture lies nowhere
        return
    corners = np.array([(row, column, 0, 1) for row in (0, shape[0] - 1) for column in (0, shape[1] - 1)]).T
    apart = float(np.linalg.norm(((mask_affine - affine) @ corners)[:3], axis=0).max())
    if apart > np.linalg.norm(affine[:3, :2], axis=0).min() / 2:
        raise InputError(
            f"the mask lies elsewhere than the slice (corners are up to {apart:.1f} mm apart): give it the slice's "
            "affine, or send it as PNG"
        )
