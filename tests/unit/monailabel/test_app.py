"""What the MONAI Label app checks before it works, tested without MONAI Label."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from monai_vqgen.errors import InputError
from monai_vqgen.monailabel.complete import code_masks
from monai_vqgen.monailabel.parameters import choice, conditions, flag, number, whole
from monai_vqgen.monailabel.served_bundle import ServedBundle
from monai_vqgen.monailabel.train import TrainingJob, place_model


@pytest.mark.parametrize("given", [10_000, -1, 1.5, "many", True, float("nan"), float("inf"), [1], {}, "1e400"])
def test_a_count_outside_its_range_or_no_count_is_refused_by_name(given):
    with pytest.raises(InputError, match="num_samples is"):
        whole({"num_samples": given}, "num_samples", 1, low=1, high=64)


def test_numbers_come_as_numbers_or_as_text_and_large_seeds_keep_every_digit():
    assert whole({"n": "64"}, "n", 1, low=1, high=64) == 64
    assert whole({"n": 4.0}, "n", 1, low=1, high=64) == 4
    assert whole({"n": ""}, "n", 7, low=1, high=64) == 7
    assert whole({"seed": 2**63 - 2}, "seed", 0, low=0, high=2**63 - 1) == 2**63 - 2
    assert number({"t": "0.5"}, "t", 1.0, low=0.01, high=10) == 0.5
    assert number({}, "t", None, low=0.01, high=10) is None
    with pytest.raises(InputError, match=r"t is -1; give a number from 0\.01 to 10"):
        number({"t": -1}, "t", 1.0, low=0.01, high=10)


def test_words_and_flags_are_one_of_those_allowed():
    assert choice({"plane": "axial"}, "plane", "coronal", options=["axial", "coronal"]) == "axial"
    assert [flag({"f": given}, "f", False) for given in (True, "True", "false", None)] == [True, True, False, False]
    for check in (
        lambda: choice({"plane": ["axial"]}, "plane", "axial", options=["axial"]),
        lambda: flag({"f": 1}, "f", False),
    ):
        with pytest.raises(InputError):
            check()


def test_conditions_that_the_priors_do_not_know_are_refused_and_empty_ones_left_out():
    assert conditions({"sex": "F", "age": "", "seed": 3}, ["sex", "age"]) == {"sex": "F"}
    with pytest.raises(InputError, match="know nothing of age"):
        conditions({"age": 30}, ["position_mm"])


def test_a_code_is_drawn_where_any_of_its_pixels_is_masked():
    rng = np.random.default_rng(0)
    mask_hw = rng.random((30, 21)) < 0.02
    for (rows, columns), masks in zip(
        [(4, 3), (8, 6)],
        code_masks(torch.from_numpy(mask_hw), [(4, 3), (8, 6)], image_size=(32, 24)),
        strict=True,
    ):
        height, width = 32 // rows, 24 // columns
        expected = [
            [mask_hw[r * height : (r + 1) * height, c * width : (c + 1) * width].any() for c in range(columns)]
            for r in range(rows)
        ]
        assert masks.tolist() == expected


def test_a_job_takes_the_defaults_and_refuses_what_is_out_of_range():
    assert TrainingJob.of({"max_epochs": "3"}).max_epochs == 3
    assert TrainingJob.of({}).replace is False
    for wrong in ({"max_epochs": 0}, {"learning_rate": 5}, {"plane": "oblique"}, {"max_minutes": -1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            TrainingJob.of(wrong)


def test_replaced_weights_are_served_and_the_earlier_ones_are_kept(tmp_path):
    served, new = tmp_path / "model.pt", tmp_path / "new.pt"
    served.write_bytes(b"earlier")
    new.write_bytes(b"new")
    beside = place_model(new, served, stamp="1", replace=False)
    assert (beside.name, beside.read_bytes(), served.read_bytes()) == ("model_trained_1.pt", b"new", b"earlier")
    assert place_model(new, served, stamp="2", replace=True) == served
    assert served.read_bytes() == b"new"
    assert (tmp_path / "model_before_2.pt").read_bytes() == b"earlier"


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"metadata\.json is missing"):
        ServedBundle(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps({"version": "1"}))
    with pytest.raises(InputError, match=r"inference\.json is missing"):
        ServedBundle(tmp_path)
