"""Sizes are read as they stand, refused with file and key, and complete in the wheel's list of packages."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
import yaml

from monai_vqgen.demo import sizes
from monai_vqgen.demo.run import run_demo
from monai_vqgen.demo.sizes import read_size, size_names, with_split
from monai_vqgen.demo.stages import bundle_stages
from monai_vqgen.errors import DatalistError, InputError

ROOT = Path(__file__).parents[3]


def written(path: Path, **sections: object) -> Path:
    path.write_text(yaml.safe_dump({"priors": [{"max_epochs": 1}], **sections}))
    return path


def test_the_sizes_that_come_with_the_package_are_those_of_the_documents():
    assert size_names() == [
        "quick_128",
        "release_128",
        "small",
        "standard",
        "tiny",
        "volumes",
        "volumes_64",
        "volumes_tiny",
    ]
    with pytest.raises(
        InputError, match=r"'huge' is unknown; choose one of quick_128, .*volumes_tiny, or give a YAML file"
    ):
        read_size("huge")


def test_the_first_line_of_a_size_is_a_command_that_uses_it():
    for name in size_names():
        line = (ROOT / "configs/sizes" / f"{name}.yaml").read_text().splitlines()[0]
        words = shlex.split(line, comments=False)
        assert words[:3] == ["#", "python", "-m"], name
        assert words[-2:] == ["--size", name]


def test_nested_options_get_the_path_that_a_command_line_takes(tmp_path):
    size = read_size(written(tmp_path / "mine.yaml", autoencoder={"network_def": {"channels": 24}, "batch_size": 3}))
    assert size.name == "mine"
    assert size.autoencoder == {"network_def::channels": 24, "batch_size": 3}


@pytest.mark.parametrize("levels", [1, 3])
def test_there_is_one_prior_a_level_however_many(tmp_path, levels):
    priors = [{"prior_def": {"dropout": 0.1 * level}} for level in range(levels)]
    size = read_size(written(tmp_path / "mine.yaml", priors=priors))
    stages = bundle_stages(size, scans=tmp_path, output=tmp_path / "out", seed=1)
    trainings = [stage.command for stage in stages if "train_prior.json" in stage.command]
    assert len(trainings) == levels
    for level, command in enumerate(trainings):
        assert f"--level {level} " in command
        assert f"--prior_def::dropout {0.1 * level}" in command


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"autoencoders": {}}, "unknown section 'autoencoders'"),
        ({"autoencoder": {"epochs": 3}}, "autoencoder has no option 'epochs'"),
        ({"autoencoder": [3]}, "'autoencoder' must give values by name"),
        ({"autoencoder": {"output_dir": "x"}}, "sets 'output_dir', which every run sets itself"),
        ({"sampling": {"codecs": True}}, "sampling has no option 'codecs'"),
        ({"phantoms": {"count": 3}}, "phantoms has no option 'count'"),
        ({"priors": []}, "'priors' must be a list"),
        ({"priors": {"max_epochs": 1}}, "'priors' must be a list"),
        ({"autoencoder": {"network_def": {"strides": [8, 4]}}}, "1 priors for the 2 levels"),
    ],
)
def test_a_size_that_cannot_work_is_refused_by_file_and_key(tmp_path, sections, message):
    path = written(tmp_path / "mine.yaml", **sections)
    with pytest.raises(InputError, match=message) as error:
        read_size(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["[", "7", "\xff"])
def test_a_file_that_is_no_size_is_refused(tmp_path, text):
    (tmp_path / "mine.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"mine\.yaml"):
        read_size(tmp_path / "mine.yaml")


def test_bfloat16_is_for_machines_that_are_fast_with_it(monkeypatch):
    assert read_size("standard").autoencoder["amp"]
    monkeypatch.setattr(sizes, "fast_bfloat16", lambda: False)
    slow = read_size("standard").for_this_machine()
    assert [slow.autoencoder["amp"], *(prior["amp"] for prior in slow.priors)] == [False, False, False]
    monkeypatch.setattr(sizes, "fast_bfloat16", lambda: True)
    assert read_size("standard").for_this_machine() == read_size("standard")


@pytest.mark.parametrize(
    ("told", "fast"),
    [({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({"amx_bf16": False}, False), (None, False)],
)
def test_bfloat16_is_fast_where_torch_tells_of_instructions_for_it(monkeypatch, told, fast):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    if told is None:  # torch 2.10
        monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert sizes.fast_bfloat16() == fast


def test_a_split_is_found_in_the_repository_and_checked_against_the_scans():
    size = read_size("release_128")
    with pytest.raises(DatalistError):
        with_split(size, [])
    with pytest.raises(InputError, match=r"nowhere.json is missing"):
        with_split(size._replace(slices={"split_file": "nowhere.json"}), [])
    assert with_split(read_size("small"), []) == read_size("small")


def test_a_demo_refuses_a_release_and_a_size_without_phantoms_before_it_makes_anything(tmp_path):
    with pytest.raises(InputError, match="is a release"):
        run_demo(output=tmp_path / "out", size="release_128")
    with pytest.raises(InputError, match="how many phantoms"):
        run_demo(output=tmp_path / "out", size=str(written(tmp_path / "mine.yaml")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kept", [0, 1])
def test_the_levels_of_a_plan_are_those_of_its_priors(tmp_path, kept):
    network = {"_target_": "monai_vqgen.networks.HierarchicalVQVAE", "strides": [8, 4]}
    content = {"network_def": network, "priors": [{}] * (kept + 1)}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(content))
    if kept:
        assert len(read_size(tmp_path / "plan.yaml").priors) == 2
    else:
        with pytest.raises(InputError, match="1 priors for the 2 levels"):
            read_size(tmp_path / "plan.yaml")
