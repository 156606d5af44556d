"""Conditions are drawn from the trained range, and masks of pixels become masks of codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_vqgen.errors import InputError
from monai_vqgen.models.samples import asked_for, code_masks, draw_conditions, encode_conditions, sample_affines
from monai_vqgen.networks import ConditionEncoder

ENCODER = ConditionEncoder({"age": (20.0, 60.0)}, {"sex": ["f", "m"]})


@pytest.mark.parametrize("size", [(30, 21), (30, 21, 13)])
def test_a_code_is_drawn_where_any_of_its_pixels_is_masked(size):
    rng = np.random.default_rng(0)
    masks_np = rng.random((2, *size)) < 0.02
    padded_size = [-(-n // 8) * 8 for n in size]
    padded = np.zeros((2, *padded_size), dtype=bool)
    padded[(slice(None), *(slice(n) for n in size))] = masks_np
    grids = [tuple(n // stride for n in padded_size) for stride in (8, 4)]
    for stride, mask in zip((8, 4), code_masks(torch.from_numpy(masks_np), grids, image_size=padded_size), strict=True):
        expected = np.zeros(mask.shape, dtype=bool)
        for b, *where in zip(*np.nonzero(padded), strict=True):
            expected[(b, *(n // stride for n in where))] = True
        np.testing.assert_array_equal(mask.numpy(), expected)


def test_values_are_one_for_all_or_one_each_and_unknown_where_left_out():
    features = encode_conditions(ENCODER, 2, {"age": [20.0, 60.0], "sex": "m"})
    assert torch.equal(features, ENCODER.encode([{"age": 20.0, "sex": "m"}, {"age": 60.0, "sex": "m"}]))
    assert torch.equal(encode_conditions(ENCODER, 2, {}), ENCODER.encode([{}, {}]))
    assert encode_conditions(None, 2, {}) is None
    with pytest.raises(InputError, match="take no condition, but age"):
        encode_conditions(None, 2, {"age": 30})


def test_records_outside_the_trained_ranges_are_moved_into_them():
    encoder = ConditionEncoder({"age": (20.0, 60.0)}, {"sex": ("f", "m")})
    drawn = draw_conditions(encoder, 3, like=[{"age": 71.0, "sex": "unknown", "subject": "sub-01"}])
    assert drawn == [{"age": 60.0, "sex": None}] * 3


def test_draws_like_records_keep_the_values_of_a_record_together():
    records = [{"age": 25.0, "sex": "f", "subject": "a"}, {"age": 55.0, "sex": "m", "subject": "b"}]
    drawn = draw_conditions(ENCODER, 40, seed=3, like=records)
    assert {(row["age"], row["sex"]) for row in drawn} == {(25.0, "f"), (55.0, "m")}
    assert draw_conditions(ENCODER, 10, seed=3, like=records) == drawn[:10]
    assert all(row["sex"] == "m" for row in draw_conditions(ENCODER, 10, given={"sex": "m"}, like=records))


def test_the_mark_of_a_sample_begins_with_its_position_and_loses_no_small_value():
    assert asked_for({"sex": "f", "position_mm": 65.04, "age": 30}) == "65 mm f 30"
    assert asked_for({"volume_ml": 0.0041, "sex": None}) == "0.0041"
    assert asked_for({}) == ""


def test_volumes_lie_with_their_middle_at_the_origin_and_their_axes_to_right_front_and_top():
    (affine,) = sample_affines("volume", (4, 6, 5), 2.5, [None]).numpy()
    np.testing.assert_allclose(affine @ [1.5, 2.5, 2, 1], [0, 0, 0, 1])
    np.testing.assert_allclose(affine @ [2.5, 3.5, 3, 1], [2.5, 2.5, 2.5, 1])
