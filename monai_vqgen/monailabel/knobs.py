"""What a client may ask for: each value checked against its type and range before any work, and capped.

The server is open to whoever reaches it: a request must not be able to fill its memory or keep it busy for hours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from monai_vqgen.errors import InputError

__all__ = ["AnomalyKnobs", "Knobs", "ReconstructionKnobs", "SamplingKnobs", "TrainingKnobs", "asked_conditions"]

MAX_SAMPLES = 64
"""Slices in one answer: about four minutes of the demo's priors on one core."""
MAX_SEED = 2**63 - 1
Plane = Literal["axial", "coronal", "sagittal"]
Self = TypeVar("Self", bound="Knobs")


class Knobs(BaseModel):
    """Values of a request by name; numbers may come as text, empty values stand for the default."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, request: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in request.items() if value is not None and value != ""}
        # pydantic takes true for 1
        return {name: str(value) if isinstance(value, bool) else value for name, value in given.items()}

    @classmethod
    def of(cls: type[Self], request: Mapping[str, Any]) -> Self:
        """The checked values of a request.

        Raises:
            InputError: a value of another type or outside its range.

        Examples:
            >>> SamplingKnobs.of({"num_samples": "4", "seed": "", "image": "ignored"}).num_samples
            4
        """
        try:
            return cls.model_validate(dict(request))
        except ValidationError as error:
            faults = {str(fault["loc"][0]): fault["msg"] for fault in error.errors()}
            wrong = [f"{name} is {request[name]!r}; {text}" for name, text in faults.items()]
            raise InputError(", and ".join(wrong).replace("Input should", "it should")) from error

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Every name with its default, as a viewer shows it."""
        return {name: "" if field.default is None else field.default for name, field in cls.model_fields.items()}


class SamplingKnobs(Knobs):
    """How samples are drawn; a setting that is left out is the one recorded with the weights."""

    num_samples: int = Field(1, ge=1, le=MAX_SAMPLES)
    seed: int = Field(0, ge=0, le=MAX_SEED)
    temperature: float | None = Field(None, ge=0.01, le=10)
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)

    def settings(self) -> dict[str, Any]:
        """Temperature, top_k and top_p."""
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}


class ReconstructionKnobs(Knobs):
    """How a volume is shown to the model; see `VolumeReconstructionInferer`."""

    plane: Plane | None = None
    pixel_mm: float | None = Field(None, ge=0.1, le=20)
    batch_size: int = Field(16, ge=1, le=64)
    intensity: Literal["input", "unit"] = "input"


class AnomalyKnobs(Knobs):
    """What is called unusual; a threshold that is left out is that of the statistics of healthy slices."""

    threshold: float | None = Field(None, gt=0)
    match: bool = True
    scale: bool = True


class TrainingKnobs(Knobs):
    """A training job; it ends at whichever of `max_epochs` and `max_minutes` comes first."""

    max_epochs: int = Field(50, ge=1, le=10_000)
    max_minutes: float = Field(60.0, ge=0.01, le=7 * 24 * 60)
    batch_size: int = Field(16, ge=1, le=1024)
    learning_rate: float = Field(0.0003, ge=1e-7, le=0.1)
    fine_tune: bool = True
    replace: bool = False
    plane: Plane | None = None
    seed: int = Field(0, ge=0, le=2**31 - 1)


def asked_conditions(request: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The values of the names that the priors are conditioned on; which values are allowed, the priors know.

    Raises:
        InputError: a condition that these priors were not trained with.
    """
    possible = {"position_mm", "age", "sex", *names}
    asked = {name: request[name] for name in sorted(possible) if request.get(name) not in (None, "")}
    unknown = sorted(set(asked) - set(names))
    if unknown:
        known = ", ".join(names) if names else "nothing"
        raise InputError(f"the served priors are conditioned on {known}, not on {', '.join(unknown)}: leave it out")
    return asked
