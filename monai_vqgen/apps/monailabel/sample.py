"""New slices from the priors, as one NIfTI stack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from monai_vqgen.apps.monailabel.answers import answer_nifti
from monai_vqgen.apps.monailabel.parameters import MAX_SAMPLES, conditions, number, whole
from monai_vqgen.apps.monailabel.parts import InferTask, InferType
from monai_vqgen.apps.monailabel.served_bundle import ServedBundle
from monai_vqgen.apps.priors import TrainedPriors
from monai_vqgen.apps.sample_files import sample_affine
from monai_vqgen.apps.sampling import draw_samples

__all__ = ["Drawing", "SampleTask", "drawing_of"]

MAX_SEED = 2**63 - 1
TEMPERATURES = (0.01, 10.0)


class Drawing(NamedTuple):
    """How samples are to be drawn, from a request: checked and capped."""

    num_samples: int
    seed: int
    temperature: float
    condition: dict[str, Any]


def drawing_of(request: Mapping[str, Any], priors: TrainedPriors) -> Drawing:
    """What a client asks for.

    Raises:
        InputError: a number outside its range, or a condition that the priors do not know.
    """
    temperature = number(request, "temperature", 1.0, low=TEMPERATURES[0], high=TEMPERATURES[1])
    assert temperature is not None  # it has a default
    return Drawing(
        num_samples=whole(request, "num_samples", 1, low=1, high=MAX_SAMPLES),
        seed=whole(request, "seed", 0, low=0, high=MAX_SEED),
        temperature=temperature,
        condition=conditions(request, priors.condition.names if priors.condition is not None else ()),
    )


class SampleTask(InferTask):
    """Slices that nobody has scanned, stacked along the third axis of one NIfTI in [0, 1]. No image is needed.

    Knobs: `num_samples`, `seed`, `temperature`, and what the priors are conditioned on (`position_mm`, `age`, `sex`).
    """

    def __init__(self, bundle: ServedBundle) -> None:
        config = {"num_samples": 1, "seed": 0, "temperature": 1.0, "position_mm": "", "age": "", "sex": ""}
        description = "New, synthetic slices drawn from the priors (needs no image)"
        super().__init__(InferType.OTHERS, {}, 2, description, config)
        self.bundle = bundle

    def is_valid(self) -> bool:
        """Whether the bundle has priors."""
        return self.bundle.has_priors()

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
        affine = sample_affine(priors.plane or "axial", stack_hwn.shape[:2], priors.pixel_mm or 1.0, position)
        return answer_nifti(stack_hwn, affine, about), about
