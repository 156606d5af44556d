"""Splits: by subject, seeded, whatever the order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from monai_vqgen.data import SubjectSplit, read_split, split_subjects
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


def test_too_few_subjects_are_reported_with_what_to_do():
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


def written(folder, content):
    path = folder / "split.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_split_decided_before_is_taken_as_it_is(tmp_path, caplog):
    path = written(tmp_path, {"description": "ours", "training": ["d", "a"], "validation": [], "test": ["b", "c"]})
    assert read_split(path, ["c", "a", "a", "d", "of nobody listed"]) == SubjectSplit(["a", "d"], [], ["c"])
    assert "no usable scan of b" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a readable JSON"),
        ({"training": ["a"]}, "lists of subjects are missing"),
        ({"training": ["a", 3], "validation": [], "test": []}, "lists of subjects are missing"),
        ({"training": ["a"], "validation": ["a"], "test": ["b"]}, "a listed more than once"),
        ({"training": ["z"], "validation": ["a"], "test": ["b"]}, r"none of its training subjects has a scan .z."),
        ({"training": ["a"], "validation": ["b"], "test": ["y", "z"]}, r"none of its test subjects has a scan .y, z."),
    ],
)
def test_a_split_that_cannot_be_taken_is_refused_by_name(tmp_path, content, message):
    with pytest.raises(DatalistError, match=message) as caught:
        read_split(written(tmp_path, content), ["a", "b"])
    assert "split.json" in str(caught.value)


def test_the_published_split_has_48_8_and_8_subjects_and_shares_none():
    path = Path(__file__).parents[4] / "configs" / "splits" / "ds002748.json"
    listed = [name for part in SubjectSplit._fields for name in json.loads(path.read_text())[part]]
    split = read_split(path, listed)
    assert [len(names) for names in split] == [48, 8, 8]
    assert len(set(listed)) == 64
