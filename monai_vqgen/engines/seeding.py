"""Randomness as a function of seed and epoch, so that a resumed run draws what the uninterrupted one would have."""

from __future__ import annotations

from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from ignite.utils import manual_seed

from monai_vqgen.engines.distributed import process_rank
from monai_vqgen.errors import InputError

__all__ = ["EpochSeeding", "check_seed", "seed_everything"]


def check_seed(seed: int) -> None:
    """Refuse what numpy's generators cannot start from.

    Raises:
        InputError: the seed is negative or no whole number.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed is {seed}; give a whole number of at least 0")


def seed_everything(*key: int) -> int:
    """Seed Python, NumPy and torch from a sequence of integers, for example (seed, epoch, rank); returns the seed.

    Raises:
        InputError: one of them is negative or no whole number.
    """
    for number in key:
        check_seed(number)
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    manual_seed(seed)
    return seed


class EpochSeeding:
    """Reseed everything from (seed, epoch, rank) when an epoch starts.

    Augmentation, dropout and restarts of codes then do not depend on how the epoch was reached. MONAI's random
    transforms keep a state of their own: give the data set, and its ``transform`` is seeded too. Does not reach
    workers that outlive the epoch (``persistent_workers``).

    Args:
        seed: The run's seed.
        dataset: A data set whose ``transform`` is random, or None.

    Examples:
        >>> EpochSeeding(7).attach(Engine(lambda engine, batch: None))
    """

    def __init__(self, seed: int, dataset: Any = None) -> None:
        self.seed = seed
        self.transform: Any = getattr(dataset, "transform", None)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed for the epoch that starts now."""
        seed = seed_everything(self.seed, engine.state.epoch, process_rank())
        if hasattr(self.transform, "set_random_state"):
            self.transform.set_random_state(seed)
