"""Completion: a region of a slice is hidden, its codes are drawn anew, the rest stays.

    slice, mask -> hide -> encode -> codes, kept outside the mask -> draw the others -> decode -> paste into the slice

Shape legend: n samples, h w rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.inferers import AncestralSampler
from monai_vqgen.inferers.threads import one_thread
from monai_vqgen.models.priors import TrainedPriors
from monai_vqgen.models.requests import draw_conditions
from monai_vqgen.models.sampling import decode_in_batches
from monai_vqgen.monailabel.answers import answer_nifti
from monai_vqgen.monailabel.drawing import Drawing, DrawingTask, drawing_of
from monai_vqgen.monailabel.served_bundle import ServedBundle
from monai_vqgen.networks import HierarchicalVQVAE
from monai_vqgen.transforms import LoadSlice

__all__ = ["CompleteTask", "code_masks"]


def code_masks(mask_hw: Tensor, grids: Sequence[Sequence[int]], *, image_size: Sequence[int]) -> list[Tensor]:
    """Which codes of each level stand for a masked pixel; an image that was padded is masked up to its edge only.

    Example:
        >>> mask = torch.zeros(4, 4, dtype=torch.bool)
        >>> mask[0, 3] = True
        >>> code_masks(mask, [(1, 1), (2, 2)], image_size=(4, 4))[1].tolist()
        [[False, True], [False, False]]
    """
    masks = []
    for grid in grids:
        rows, columns = (-(-size // count) for size, count in zip(image_size, grid, strict=True))
        padded = torch.zeros(grid[0] * rows, grid[1] * columns, dtype=torch.bool)
        padded[: mask_hw.shape[0], : mask_hw.shape[1]] = mask_hw
        masks.append(padded.view(grid[0], rows, grid[1], columns).any(3).any(1))
    return masks


class CompleteTask(DrawingTask):
    """Fill a masked region of a slice from the priors; completions are stacked along the third axis of one NIfTI.

    The image is a slice as the model knows them (PNG, or NIfTI `[H, W, 1]` in [0, 1], of the size the priors were
    trained on). The region is the file sent as `label` (any value above zero), or `box`: first row, first column, row
    after the last, column after the last, in pixels. What lies under it is hidden before encoding and has no influence
    on the answer; pixels outside come back as they were sent.

    Knobs: those of `SampleTask`; the position that a slice tells of itself is taken where none is given.
    """

    def __init__(self, bundle: ServedBundle) -> None:
        description = "A masked region of a slice, drawn anew from the priors (synthetic inside the region)"
        super().__init__(bundle, description, {"box": ""})

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
        mask_hw = _region(request, tuple(pixels_hw.shape))
        device = request["device"]
        with self.bundle.lock:
            priors = self.bundle.priors(device)
            drawing = drawing_of(request, priors)
            if not drawing.condition.get("position_mm") and priors.condition is not None:
                drawing = drawing._replace(condition={**_own_position(image, priors), **drawing.condition})
            results_nhw, share = _complete(self.bundle.autoencoder(device), priors, drawing, pixels_hw, mask_hw)
            about = {"synthetic": True, **drawing._asdict(), **self.bundle.about(device), "codes_drawn": share}
        stack_hwn = np.moveaxis(results_nhw, 0, -1)
        return answer_nifti(stack_hwn, np.asarray(image.affine), about), about


def _complete(
    autoencoder: HierarchicalVQVAE, priors: TrainedPriors, drawing: Drawing, pixels_hw: Tensor, mask_hw: Tensor
) -> tuple[NDArray, float]:
    """The completed slices (n, h, w), and the share of codes that were drawn."""
    size = tuple(pixels_hw.shape)
    if autoencoder.grids(size) != priors.grids:
        known = f"slices of {' x '.join(map(str, priors.image_size))} pixels" if priors.image_size else "other slices"
        raise InputError(f"the slice has {' x '.join(map(str, size))} pixels; the priors were trained on {known}")
    given = drawing.condition
    values = draw_conditions(priors, num_samples=drawing.num_samples, seed=drawing.seed, given=given)
    condition = priors.condition.encode(values) if priors.condition is not None else None
    sampler = AncestralSampler(priors.networks, temperature=drawing.temperature)
    masks = code_masks(mask_hw, priors.grids, image_size=[grid * autoencoder.strides[-1] for grid in priors.grids[-1]])
    device = next(autoencoder.parameters()).device
    with one_thread(), torch.no_grad():
        codes = autoencoder.encode(torch.where(mask_hw, 0, pixels_hw)[None, None].to(device))
        repeated = [level.expand(drawing.num_samples, *level.shape[1:]) for level in codes]
        filled = sampler.complete(repeated, masks, seed=drawing.seed, condition=condition)
        images = decode_in_batches(autoencoder, filled)[:, 0, : size[0], : size[1]]
    share = sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
    return torch.where(mask_hw, images, pixels_hw).numpy(), round(share, 4)


def _own_position(image: MetaTensor, priors: TrainedPriors) -> dict[str, Any]:
    """The position that the slice tells of itself, where the priors know such a position."""
    position = image.meta.get("position_mm")
    assert priors.condition is not None
    low, high = priors.condition.continuous.get("position_mm", (1.0, 0.0))
    return {"position_mm": position} if isinstance(position, int | float) and low <= position <= high else {}


def _region(request: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    """The mask (h, w) of a request.

    Raises:
        InputError: neither or both of `label` and `box` are given, or they do not fit the slice.
        ScanError: the mask is unreadable.
    """
    box, label = request.get("box") or None, request.get("label") or None
    if (box is None) == (label is None):
        raise InputError("give the region either as a mask file (label) or as box=[row, column, row, column]")
    mask = _from_box(box, shape) if label is None else _from_file(Path(str(label)))
    if tuple(mask.shape) != shape:
        raise InputError(f"the mask has shape {tuple(mask.shape)}, the slice {shape}: give one value a pixel")
    if not mask.any():
        raise InputError("the mask marks no pixel: there is nothing to complete")
    return torch.from_numpy(np.ascontiguousarray(mask))


def _from_box(box: Any, shape: tuple[int, ...]) -> NDArray:
    try:
        numbers = [int(word) for word in (box.split(",") if isinstance(box, str) else box)]
        top, left, bottom, right = numbers
    except (TypeError, ValueError) as error:
        raise InputError(f"box is {box!r}; give four whole numbers: row, column, row, column") from error
    if not (0 <= top < bottom <= shape[0] and 0 <= left < right <= shape[1]):
        raise InputError(f"box is {box!r}; rows 0 to {shape[0]} and columns 0 to {shape[1]} are in the slice")
    mask = np.zeros(shape, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def _from_file(path: Path) -> NDArray:
    try:
        if path.suffix.lower() == ".png":
            return np.asarray(Image.open(path).convert("I")) > 0
        values = np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]
    except Exception as error:  # whatever a reader raises at a file from outside
        raise ScanError(f"the mask cannot be read ({error}); send a PNG or NIfTI of the slice's size") from error
    return (values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values) > 0
