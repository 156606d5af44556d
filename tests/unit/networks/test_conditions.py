from __future__ import annotations

import json
import math

import pytest
import torch

from monai_vqgen.errors import InputError
from monai_vqgen.networks.conditions import ConditionEncoder

ENCODER = ConditionEncoder({"position_mm": (20.0, 60.0), "age": (50, 50)}, {"sex": ["F", "M"]})


def test_features_are_scaled_values_known_flags_and_one_hot_categories():
    vectors = ENCODER.encode([{"position_mm": 50, "age": "50", "sex": "M"}, {"position_mm": 20.0}])
    assert vectors.dtype == torch.float32
    assert vectors.tolist() == [[0.5, 1, 0, 1, 0, 1], [-1, 1, 0, 0, 0, 0]]
    assert ENCODER.dim == 6


@pytest.mark.parametrize("missing", [None, "n/a", "", "N/A"])
def test_an_unknown_value_differs_from_the_middle_of_its_range(missing):
    assert ENCODER.encode({"position_mm": missing}).tolist() == [[0.0] * 6]
    assert ENCODER.encode({"position_mm": 40}).tolist() != [[0.0] * 6]


@pytest.mark.parametrize("value", [19.99, 61, math.nan, math.inf, "forty", True])
def test_a_number_outside_its_range_or_no_number_is_refused_with_the_range(value):
    with pytest.raises(InputError, match=r"position_mm=.*between 20 and 60"):
        ENCODER.encode({"position_mm": value})


def test_unknown_names_and_categories_are_refused_with_what_is_allowed():
    with pytest.raises(InputError, match=r"\['height'\].*\['position_mm', 'age', 'sex'\]"):
        ENCODER.encode({"height": 180})
    with pytest.raises(InputError, match=r"sex='X'.*\['F', 'M'\]"):
        ENCODER.encode({"sex": "X"})


def test_the_description_survives_json_and_makes_the_same_vectors():
    again = ConditionEncoder.from_dict(json.loads(json.dumps(ENCODER.to_dict())))
    record = {"position_mm": 33.3, "age": 50, "sex": "F"}
    assert torch.equal(again.encode(record), ENCODER.encode(record))


def test_fit_takes_ranges_from_numbers_and_sorted_values_from_words():
    records = [
        {"position_mm": 41.0, "sex": "M", "age": "63"},
        {"position_mm": 39.5, "sex": "F", "age": "n/a", "image": "x"},
        {"position_mm": 40.0, "sex": None, "age": "21"},
    ]
    encoder = ConditionEncoder.fit(records, ["position_mm", "sex", "age"])
    assert encoder.continuous == {"position_mm": (39.5, 41.0), "age": (21.0, 63.0)}
    assert encoder.categorical == {"sex": ("F", "M")}
    assert encoder.select(records[1]) == {"position_mm": 39.5, "age": "n/a", "sex": "F"}
    with pytest.raises(InputError, match="'weight'"):
        ConditionEncoder.fit(records, ["weight"])


def test_no_names_make_an_empty_vector():
    assert ConditionEncoder().encode([{}, {}]).shape == (2, 0)


@pytest.mark.parametrize(
    ("continuous", "categorical"),
    [
        ({"a": (2, 1)}, {}),
        ({"a": (0, math.nan)}, {}),
        ({}, {"a": []}),
        ({}, {"a": [1, "1"]}),
        ({"a": (0, 1)}, {"a": ["x"]}),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(continuous, categorical):
    with pytest.raises(InputError):
        ConditionEncoder(continuous, categorical)


def test_a_label_is_a_category_even_where_it_is_written_in_digits():
    encoder = ConditionEncoder.fit([{"label": "3", "age": "40"}, {"label": "10", "age": 60}], ["label", "age"])
    assert encoder.to_dict() == {"continuous": {"age": [40.0, 60.0]}, "categorical": {"label": ["10", "3"]}}
    assert encoder.encode({"label": 3}).tolist() == [[0.0, 0.0, 0.0, 1.0]]


def test_one_word_among_numbers_is_refused_and_does_not_make_them_names():
    records = [{"age": 30.0}, {"age": 40}, {"age": "x"}]
    with pytest.raises(InputError, match="condition 'age' is 'x' in a record and a number in most"):
        ConditionEncoder.fit(records, ["age"])
    records[2]["age"] = "n/a"
    assert ConditionEncoder.fit(records, ["age"]).continuous == {"age": (30, 40)}
    words = [{"group": 1.0}, {"group": "control"}]
    assert ConditionEncoder.fit(words, ["group"]).categorical == {"group": ("1.0", "control")}


def test_a_range_wider_than_any_number_is_refused():
    with pytest.raises(InputError, match="give two finite numbers"):
        ConditionEncoder({"age": (-1e308, 1e308)})
