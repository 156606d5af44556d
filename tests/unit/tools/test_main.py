"""The tools' command line hands on what it is told."""

from __future__ import annotations

import pytest

from monai_vqgen.errors import InputError
from tools.__main__ import build_parser, main
from tools.compare import Comparison

# verb -> the function it calls, and the arguments that it cannot do without
VERBS = {
    "reproduce": ("tools.reproduce.reproduce", ["--data", "SCANS"]),
    "compare": ("tools.compare.compare", ["--data", "SCANS"]),
    "bitstream": ("tools.bitstream.measure_bitstream", ["--slices", "SLICES"]),
    "blank_cells": ("tools.blank_cells.add_blank_cells", ["--slices", "SLICES", "--output", "WEIGHTS"]),
    "denoising": ("tools.denoising.measure_denoising", ["--slices", "SLICES"]),
    "whole_volumes": ("tools.whole_volumes.measure_whole_volumes", ["--data", "SCANS"]),
    "package_bundle": ("tools.package_bundle.package_bundle", []),
    "imagenet_features": ("tools.imagenet_features.write_imagenet_features", []),
    "fuzz": ("tools.fuzz.fuzz", []),
    "soak": ("tools.soak.soak", []),
}


def test_these_are_all_verbs():
    assert set(build_parser()._subparsers._group_actions[0].choices) == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_not_given_is_what_the_function_takes_by_default(verb, call_of):
    path, needed = VERBS[verb]
    call = call_of(main, [verb, *needed], path)
    assert call.given == call.defaults | {name: call.given[name] for name in call.required}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "reproduce --data a --output b --seed 3 --size c --results d --pictures e --models f",
            {"data": "a", "output": "b", "seed": 3, "size": "c", "results": "d", "pictures": "e", "models": "f"},
        ),
        (
            "compare --data a --designs b --output c --steps 50 --jobs 2 --seed 3 --size d --split test --results e",
            {"data": "a", "output": "c", "jobs": 2, "results": "e"}
            | {"comparison": Comparison("b", steps=50, size="d", split="test", seed=3)},
        ),
        (
            "bitstream --slices a --output b --model c --split d --subjects 3 --no_codecs",
            {"slices": "a", "output": "b", "model": "c", "split": "d", "subjects": 3, "codecs": False},
        ),
        (
            "denoising --slices a --output b --model c --split d --sigmas 0.2 --shifts 2 3 --every 4 --seed 5",
            {"slices": "a", "output": "b", "model": "c", "split": "d", "sigmas": [0.2], "shifts": [2, 3]}
            | {"every": 4, "seed": 5},
        ),
        (
            "whole_volumes --data a --output b --split_file c --split d --model e --shifts 2 3",
            {"data": "a", "output": "b", "split_file": "c", "split": "d", "model": "e", "shifts": [2, 3]},
        ),
        ("package_bundle --output a", {"output_dir": "a"}),
        (
            "fuzz --output a --targets b c --count 5 --seed 3",
            {"output": "a", "targets": ["b", "c"], "count": 5, "seed": 3},
        ),
        (
            "soak --output a --minutes 2 --within 3 --epochs 4 --seed 5",
            {"output": "a", "minutes": 2.0, "within": 3.0, "epochs": 4, "seed": 5},
        ),
    ],
)
def test_every_option_reaches_the_function(line, expected, call_of):
    words = line.split()
    assert call_of(main, words, VERBS[words[0]][0]).given == expected


@pytest.mark.parametrize("verb", ["reproduce", "compare"])
def test_without_scans_there_is_nothing_to_do(verb, capsys):
    with pytest.raises(SystemExit) as status:
        main([verb])
    assert status.value.code == 2
    assert "--data" in capsys.readouterr().err


def test_an_error_of_ours_is_one_line_and_a_status(monkeypatch, capsys):
    def fail(*_, **__):
        raise InputError("no such folder")

    monkeypatch.setattr("tools.package_bundle.package_bundle", fail)
    assert main(["package_bundle"]) == 2
    assert capsys.readouterr().err == "error: no such folder\n"
