"""What a prior is conditioned on where nobody says it."""

from __future__ import annotations

import ast
import shlex

import pytest

from monai_vqgen.engines import known_conditions


class Store:
    """The records of a code store."""

    def __init__(self, training, validation):
        self.parts = {"training": training, "validation": validation}

    def records(self, split):
        return self.parts[split]


@pytest.mark.parametrize(
    ("training", "validation", "names", "told"),
    [
        ([{"position_mm": 4.0}, {}], [{}], ["position_mm"], "is conditioned on position_mm"),
        (
            [{"label": "a", "position_mm": 1.0}],
            [{"label": "a"}],
            ["position_mm", "label"],
            "is conditioned on position_mm and label",
        ),
        ([{"label": "a"}, {"label": "b"}], [{"label": "b"}, {"label": "c"}], ["label"], "is conditioned on label"),
        ([{"label": "a"}], [{"label": "b"}], [], "learns without conditions"),  # folders of subjects
        ([{"age": 40.0}], [{"age": 40.0}], [], "learns without conditions"),
    ],
)
def test_positions_and_labels_are_taken_where_they_are_known_and_said(training, validation, names, told, caplog):
    caplog.set_level("INFO")
    assert known_conditions(Store(training, validation)) == names
    assert f"The prior {told}" in caplog.text


@pytest.mark.parametrize(
    ("column", "offered"),
    [
        (list(range(20, 32)), True),
        (["f", "m"] * 6, True),
        ([f"site {i % 10}" for i in range(12)], True),
        ([f"site {i % 11}" for i in range(12)], False),  # more kinds than a condition should have
        ([3.0, *(f"remark {i}" for i in range(11))], False),
        (["a"] * 12, False),
        ([20, 21, 22, 23, 24, 25, *[None] * 6], False),
        ([20, 21, 22, 23, 24, 25, 26, *[None] * 5], True),
    ],
)
def test_what_a_table_says_of_subjects_is_offered_as_it_is_to_be_typed(column, offered, caplog):
    caplog.set_level("INFO")
    records = [
        {"subject": f"s{i}", "image": f"{i}.png", "position_mm": 40.0 + i, "it's $größe": value}
        for i, value in enumerate(column)
    ]
    assert known_conditions(Store(records, records)) == ["position_mm"]
    (told,) = caplog.messages
    typed = shlex.split(told.partition("--condition_names ")[2]) if offered else []
    assert [ast.literal_eval(word) for word in typed] == [["position_mm", "it's $größe"]] * offered
    assert offered or told == "The prior is conditioned on position_mm (see --condition_names)"
