"""New slices from the priors, as one NIfTI stack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from monai_vqgen.models.samples import sample_affines
from monai_vqgen.models.sampling import draw_samples
from monai_vqgen.monailabel.answers import answer_nifti
from monai_vqgen.monailabel.drawing import DrawingTask, drawing_of
from monai_vqgen.monailabel.served_bundle import ServedBundle

__all__ = ["SampleTask"]


class SampleTask(DrawingTask):
    """Slices that nobody has scanned, stacked along the third axis of one NIfTI in [0, 1]. No image is needed.

    Knobs: `num_samples`, `seed`, `temperature`, and what the priors are conditioned on (`position_mm`, `age`, `sex`).
    """

    def __init__(self, bundle: ServedBundle) -> None:
        super().__init__(bundle, "New, synthetic slices drawn from the priors (needs no image)")

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Draw the samples; return the file's path and what it holds.

        Raises:
            InputError: a parameter outside its range.
            CheckpointError: there are no priors.
            CodesMismatchError: the priors are of another autoencoder.
        """
        device = request["device"]
        with self.bundle.lock:
            priors = self.bundle.priors(device)
            drawing = drawing_of(request, priors)
            batch = draw_samples(self.bundle.autoencoder(device), priors, **drawing._asdict(), progress=False)
            about = {"synthetic": True, **drawing._asdict(), **self.bundle.about(device)}
        about["samples"] = [{"index": index, "condition": each} for index, each in enumerate(batch.conditions)]
        stack_hwn = np.moveaxis(batch.images_ncs[:, 0].numpy(), 0, -1)
        position = batch.conditions[0].get("position_mm") if drawing.num_samples == 1 else None
        affine = sample_affines(priors.plane or "axial", stack_hwn.shape[:2], priors.pixel_mm or 1.0, [position])[
            0
        ].numpy()
        return answer_nifti(stack_hwn, affine, about), about
