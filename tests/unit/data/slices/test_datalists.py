"""Lists of slices, from a datalist or from folders."""

from __future__ import annotations

import itertools
import json

import pytest

from monai_vqgen.data import load_datalist
from monai_vqgen.data.slices.datalists import evenly_spaced
from monai_vqgen.errors import DatalistError, InputError


def test_a_datalist_gives_absolute_paths_and_keeps_the_rest(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.nii.gz").touch()
    item = {"image": "images/a.nii.gz", "subject": "sub-01", "position_mm": 40.0}
    (tmp_path / "datalist.json").write_text(json.dumps({"training": [item], "validation": []}))
    assert load_datalist(tmp_path, "training") == [{**item, "image": str(tmp_path / "images/a.nii.gz")}]
    with pytest.raises(DatalistError, match="no validation slices"):
        load_datalist(tmp_path, "validation")
    with pytest.raises(DatalistError, match="'test'"):
        load_datalist(tmp_path, "test")
    (tmp_path / "images" / "a.nii.gz").unlink()
    with pytest.raises(DatalistError, match="missing"):
        load_datalist(tmp_path, "training")


@pytest.mark.parametrize("names", [("train", "validate", "test"), ("keras_png_slices_train", "x_val", "x_test")])
def test_ready_made_folders_and_their_synonyms(tmp_path, names):
    for name in names:
        (tmp_path / name).mkdir()
        for file in ("b.png", "a.nii.gz", "readme.txt", ".hidden.png"):
            (tmp_path / name / file).touch()
    for split, name in zip(("training", "validation", "test"), names, strict=True):
        expected = [{"image": str(tmp_path / name / file)} for file in ("a.nii.gz", "b.png")]
        assert load_datalist(tmp_path, split) == expected
    assert load_datalist(tmp_path, "val") == load_datalist(tmp_path, "validation")


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(DatalistError, match=r"neither datalist\.json nor a folder"):
        load_datalist(tmp_path, "training")
    with pytest.raises(DatalistError, match="is not a folder"):
        load_datalist(tmp_path / "gone", "training")
    with pytest.raises(InputError, match="'holdout'"):
        load_datalist(tmp_path, "holdout")
    (tmp_path / "datalist.json").write_text("{")
    with pytest.raises(DatalistError, match="not a datalist"):
        load_datalist(tmp_path, "training")


@pytest.mark.parametrize(("count", "among"), [(1, 1), (3, 10), (7, 8), (8, 8), (12, 5), (4, 1000), (3, 0)])
def test_picks_are_evenly_spaced_from_first_to_last(count, among):
    picks = evenly_spaced(count, among)
    assert len(picks) == len(set(picks)) == min(count, among)
    assert picks == sorted(picks)
    if len(picks) > 1:
        assert (picks[0], picks[-1]) == (0, among - 1)
        steps = [after - before for before, after in itertools.pairwise(picks)]
        assert max(steps) - min(steps) <= 1
