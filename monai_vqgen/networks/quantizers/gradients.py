"""How gradients pass the step from a latent vector to its code's vector.

Shape suffixes: n vectors, d code dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monai_vqgen.errors import InputError

__all__ = ["ESTIMATORS", "check_estimator", "pass_gradient"]

ESTIMATORS = ("straight_through", "rotation")
_EPSILON = 1e-6  # keeps the rotation defined for vectors of length zero


def check_estimator(name: str) -> str:
    """Return ``name`` if it is a known gradient estimator, else raise InputError."""
    if name not in ESTIMATORS:
        raise InputError(f"gradient_estimator={name!r} is not known: choose one of {', '.join(ESTIMATORS)}")
    return name


def pass_gradient(latents_nd: Tensor, chosen_nd: Tensor, estimator: str) -> Tensor:
    """Return the values of ``chosen_nd`` with a gradient to ``latents_nd``.

    ``straight_through`` copies the gradient (van den Oord et al. 2017, section 3.2). ``rotation`` sends it through
    the rotation and scaling that carry the latent onto its code, held constant (Fifty et al. 2024, equation 4).

    Args:
        latents_nd: the encoder's vectors.
        chosen_nd: the code's vector of each.
        estimator: one of :data:`ESTIMATORS`.
    """
    chosen_nd = chosen_nd.detach()
    if not (torch.is_grad_enabled() and latents_nd.requires_grad):
        return chosen_nd
    if estimator == "straight_through":
        passed: Tensor = _StraightThrough.apply(latents_nd, chosen_nd)
        return passed
    return _rotate_onto(latents_nd, chosen_nd)


class _StraightThrough(torch.autograd.Function):
    """The second argument forwards, the identity to the first backwards: no arithmetic, so no rounding."""

    @staticmethod
    def forward(ctx: Any, latents_nd: Tensor, chosen_nd: Tensor) -> Tensor:
        return chosen_nd.view_as(chosen_nd)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _rotate_onto(latents_nd: Tensor, chosen_nd: Tensor) -> Tensor:
    length = latents_nd.detach().norm(dim=1, keepdim=True).clamp_min(_EPSILON)
    target = chosen_nd.norm(dim=1, keepdim=True).clamp_min(_EPSILON)
    source_unit = latents_nd.detach() / length
    target_unit = chosen_nd / target
    between = torch.nn.functional.normalize(source_unit + target_unit, dim=1)
    rotated = (
        latents_nd
        - 2 * between * (latents_nd * between).sum(1, keepdim=True)
        + 2 * target_unit * (latents_nd * source_unit).sum(1, keepdim=True)
    )
    scaled = rotated * (target / length)
    return scaled + (chosen_nd - scaled).detach()  # the value is the code's own, free of rounding
