"""Splits: by subject, seeded, whatever the order."""

from __future__ import annotations

import numpy as np
import pytest

from monai_vqgen.data import split_subjects
from monai_vqgen.errors import DatalistError, InputError

SUBJECTS = [f"sub-{i:02d}" for i in range(40)]


def test_no_subject_is_shared_and_none_is_lost():
    for seed in range(20):
        split = split_subjects(SUBJECTS * 3, seed=seed)
        assert sorted([*split.training, *split.validation, *split.test]) == SUBJECTS
        assert [len(part) for part in split] == [30, 5, 5]


def test_order_and_repeats_do_not_matter_but_the_seed_does():
    shuffled = np.random.default_rng(0).permutation(SUBJECTS * 2).tolist()
    assert split_subjects(shuffled, seed=3) == split_subjects(SUBJECTS, seed=3)
    assert split_subjects(SUBJECTS, seed=4) != split_subjects(SUBJECTS, seed=3)


@pytest.mark.parametrize("count", range(3, 30))
def test_every_part_gets_at_least_one_subject(count):
    sizes = [len(part) for part in split_subjects(SUBJECTS[:count])]
    assert sum(sizes) == count
    assert min(sizes) >= 1
    assert max(sizes) == sizes[0]


def test_too_few_subjects_say_so_and_how_to_mend():
    with pytest.raises(DatalistError, match=r"only 1 subject \(sub-00\).*fractions"):
        split_subjects(["sub-00", "sub-00"])
    with pytest.raises(DatalistError, match="only 2 subjects"):
        split_subjects(SUBJECTS[:2])
    assert split_subjects(["sub-00"], (0, 0, 1)).test == ["sub-00"]
    assert [len(p) for p in split_subjects(SUBJECTS[:2], (0.9, 0.1, 0))] == [1, 1, 0]


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.5, 0.4, 0.2), (1.5, -0.5, 0), (float("nan"), 0.5, 0.5)])
def test_fractions_that_are_no_shares_are_refused(fractions):
    with pytest.raises(InputError, match="three shares"):
        split_subjects(SUBJECTS, fractions)
