"""The prior of a level."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from monai_vqgen.errors import InputError

__all__ = ["pick_prior"]


def pick_prior(priors: Sequence[nn.Module], level: int) -> nn.Module:
    """Return the prior of a level, 0 = coarsest.

    Raises:
        InputError: the level does not exist; the message names those that do.

    Example:
        >>> pick_prior([nn.Identity()], 0)
        Identity()
    """
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < len(priors):
        levels = ", ".join(str(known) for known in range(len(priors)))
        raise InputError(f"level={level!r} does not exist: prior_defs has the levels {levels} (0 is the coarsest).")
    return priors[level]
