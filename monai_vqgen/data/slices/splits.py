"""Training, validation and test by subject: seeded, sorted, the same on every file system."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from monai_vqgen.errors import DatalistError, InputError
from monai_vqgen.files import read_json

__all__ = ["SplitOptions", "SubjectSplit", "read_split", "split_subjects"]

logger = logging.getLogger(__name__)


class SubjectSplit(NamedTuple):
    """Subjects of each part, sorted; the parts share none."""

    training: list[str]
    validation: list[str]
    test: list[str]


class SplitOptions(NamedTuple):
    """How subjects are divided among training, validation and test.

    Attributes:
        fractions: of subjects in training, validation and test; they sum to 1.
        seed: of the shuffle.
        file: a split made earlier, see `read_split`; used instead of `fractions` and `seed`.
    """

    fractions: Sequence[float] = (0.75, 0.125, 0.125)
    seed: int = 0
    file: str | Path | None = None

    def choose(self, subjects: Iterable[str]) -> SubjectSplit:
        """Split these subjects; raises as `read_split` or `split_subjects` does."""
        if self.file:
            return read_split(self.file, subjects)
        return split_subjects(subjects, self.fractions, seed=self.seed)


def split_subjects(
    subjects: Iterable[str], fractions: Sequence[float] = (0.75, 0.125, 0.125), *, seed: int = 0
) -> SubjectSplit:
    """Divide subjects among the parts. Repeated entries count once, order does not matter.

    Every part with a fraction above zero gets at least one subject; the rest follow the fractions.

    Args:
        subjects: names, repeated or not, in any order.
        fractions: of training, validation and test; they sum to one.
        seed: of the shuffle.

    Raises:
        InputError: fractions that are not three shares of one.
        DatalistError: fewer subjects than parts that need one.

    Examples:
        >>> split_subjects(["a", "b", "c", "d"], (0.5, 0.25, 0.25), seed=0)
        SubjectSplit(training=['a', 'c'], validation=['b'], test=['d'])
    """
    shares = np.asarray(list(fractions), dtype=float)
    if shares.shape != (3,) or not np.isfinite(shares).all() or (shares < 0).any() or abs(shares.sum() - 1) > 1e-6:
        raise InputError(f"fractions are {tuple(fractions)}; give three shares of 1 (training, validation, test)")
    names = sorted(set(subjects))
    needed = int((shares > 0).sum())
    if len(names) < needed:
        found = f"only {len(names)} subject{'s' if len(names) != 1 else ''} ({', '.join(names) or 'none'})"
        raise DatalistError(
            f"{found} for {needed} parts: parts must not share a subject. Add scans of other subjects, "
            "set the fractions of parts you do not need to 0, or name the subjects with subject_pattern"
        )
    counts = np.where(shares > 0, np.maximum(1, np.floor(shares * len(names) + 1e-9)), 0).astype(int)
    while counts.sum() != len(names):  # a few steps: rounding, and parts raised to one subject
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


def read_split(path: str | Path, subjects: Iterable[str]) -> SubjectSplit:
    """A split made earlier, from a JSON file with three lists: training, validation and test.

    Subjects that no part lists are left out. Listed subjects without a scan are logged.

    Args:
        path: the file.
        subjects: those with scans, repeated or not, in any order.

    Raises:
        DatalistError: no such file, no such lists, a subject in two of them, or a part none of whose subjects
            has a scan.
    """
    try:
        content = read_json(Path(path))
    except (OSError, ValueError) as error:
        raise DatalistError(f"{path}: not a readable JSON file ({error}); give a split as {_SPLIT_FORM}") from error
    lists = [content.get(part) for part in SubjectSplit._fields]
    if any(not isinstance(names, list) or any(not isinstance(name, str) for name in names) for names in lists):
        raise DatalistError(f"{path}: lists of subjects are missing; give a split as {_SPLIT_FORM}")
    listed = [name for names in lists for name in names or ()]
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if twice:
        raise DatalistError(f"{path}: {', '.join(twice)} listed more than once; a subject belongs to one part")
    found = set(subjects)
    missing = sorted(set(listed) - found)
    split = SubjectSplit(*(sorted(found & set(names or ())) for names in lists))
    for part, names in zip(SubjectSplit._fields, lists, strict=True):
        if not getattr(split, part) and (names or part == "training"):
            some = ", ".join((names or ["none listed"])[:5])
            raise DatalistError(
                f"{path}: none of its {part} subjects has a scan ({some}); give the split of these scans"
            )
    if missing:
        logger.warning("%s: no usable scan of %s", path, ", ".join(missing))
    return split


_SPLIT_FORM = '{"training": ["sub-01", ...], "validation": [...], "test": [...]}'
