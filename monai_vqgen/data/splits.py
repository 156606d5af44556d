"""Train, validation and test by subject: seeded, sorted, the same on every file system."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from monai_vqgen.errors import DatalistError, InputError

__all__ = ["SubjectSplit", "split_subjects"]


class SubjectSplit(NamedTuple):
    """Subjects of each part, sorted; the parts share none."""

    training: list[str]
    validation: list[str]
    test: list[str]


def split_subjects(
    subjects: Iterable[str], fractions: Sequence[float] = (0.75, 0.125, 0.125), *, seed: int = 0
) -> SubjectSplit:
    """Share subjects out. Repeat entries count once, order does not matter.

    Every part with a fraction above zero gets at least one subject; the rest follow the fractions.

    Args:
        subjects: names, as often and in any order.
        fractions: of training, validation and test; they sum to one.
        seed: of the shuffle.

    Raises:
        InputError: fractions that are not three shares of one.
        DatalistError: fewer subjects than parts that need one.

    Example:
        >>> split_subjects(["a", "b", "c", "d"], (0.5, 0.25, 0.25), seed=0)
        SubjectSplit(training=['a', 'c'], validation=['b'], test=['d'])
    """
    shares = np.asarray(list(fractions), dtype=float)
    if shares.shape != (3,) or not np.isfinite(shares).all() or (shares < 0).any() or abs(shares.sum() - 1) > 1e-6:
        raise InputError(f"fractions are {tuple(fractions)}; give three shares (training, validation, test) of one.")
    names = sorted(set(subjects))
    needed = int((shares > 0).sum())
    if len(names) < needed:
        found = f"only {len(names)} subject{'s' if len(names) != 1 else ''} ({', '.join(names) or 'none'})"
        raise DatalistError(
            f"{found} for {needed} parts: parts must not share a subject. Add scans of other subjects, "
            "set the fractions of the parts you do not need to 0, or say with subject_pattern whose scan is whose."
        )
    counts = np.where(shares > 0, np.maximum(1, np.floor(shares * len(names) + 1e-9)), 0).astype(int)
    while counts.sum() != len(names):  # a handful of steps: rounding, and parts lifted to one subject
        error = counts - shares * len(names)
        if counts.sum() < len(names):
            counts[int(np.argmin(np.where(shares > 0, error, np.inf)))] += 1
        else:
            counts[int(np.argmax(np.where(counts > 1, error, -np.inf)))] -= 1
    shuffled = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    ends = np.cumsum(counts)
    return SubjectSplit(
        sorted(shuffled[: ends[0]]), sorted(shuffled[ends[0] : ends[1]]), sorted(shuffled[ends[1] : ends[2]])
    )
