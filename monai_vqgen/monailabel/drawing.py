"""What sampling and completion have in common: they draw from the served priors, with the same knobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from monai_vqgen.models.priors import TrainedPriors
from monai_vqgen.monailabel.parameters import MAX_SAMPLES, conditions, number, whole
from monai_vqgen.monailabel.parts import InferTask, InferType
from monai_vqgen.monailabel.served_bundle import ServedBundle

__all__ = ["Drawing", "DrawingTask", "drawing_of"]

MAX_SEED = 2**63 - 1
TEMPERATURES = (0.01, 10.0)
KNOBS: dict[str, Any] = {"num_samples": 1, "seed": 0, "temperature": 1.0, "position_mm": "", "age": "", "sex": ""}


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


class DrawingTask(InferTask):
    """A task that needs priors, and answers with a stack of slices.

    Args:
        bundle: what is served.
        description: what a viewer shows.
        knobs: what a client may set besides `KNOBS`, and the defaults.
    """

    def __init__(self, bundle: ServedBundle, description: str, knobs: Mapping[str, Any] | None = None) -> None:
        super().__init__(InferType.OTHERS, {}, 2, description, {**KNOBS, **(knobs or {})})
        self.bundle = bundle

    def is_valid(self) -> bool:
        """Whether the bundle has priors."""
        return self.bundle.has_priors()
