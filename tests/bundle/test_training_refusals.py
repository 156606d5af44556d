"""What the training configurations refuse, and that it loses nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import traceback

import numpy as np
import pytest
import torch
from factories import tiny_model
from tiny_training import CONFIGS, PRIOR, own_error, run, start, trained_network

from monai_vqgen.errors import CodesMismatchError, InputError, OutputExistsError


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"level": 2}, InputError, r"levels 0 \(coarsest\) to 1"),
        ({"level": -1}, InputError, "does not exist"),
        ({"prior_def": {**PRIOR, "num_codes": 9}}, CodesMismatchError, "num_codes=8"),
        ({"condition_names": ["age"]}, InputError, "age"),
        ({"dataset_dir": "nowhere"}, InputError, r"extract_codes\.json"),
    ],
)
def test_what_cannot_work_is_refused_before_training(codes, tmp_path, options, error, message):
    with pytest.raises(RuntimeError) as caught:
        run("train_prior", **{"dataset_dir": codes, "output_dir": tmp_path, **options})
    own = own_error(caught.value)
    assert isinstance(own, error)
    with pytest.raises(error, match=message):
        raise own
    assert not list(tmp_path.iterdir())


def test_codes_of_another_autoencoder_are_refused(codes, trained, tmp_path):
    network = trained_network(trained)
    torch.nn.init.zeros_(next(network.parameters()))
    other = tiny_model(autoencoder=network, with_priors=False).save(tmp_path / "other")
    with pytest.raises(RuntimeError) as caught:
        run("train_prior", dataset_dir=codes, output_dir=tmp_path / "out", model=other / "model.pt")
    assert isinstance(own_error(caught.value), CodesMismatchError)


@pytest.mark.parametrize("name", ["train", "train_prior"])
def test_a_training_that_is_refused_leaves_earlier_results_as_they_were(name, codes, trained, priors, tmp_path):
    shutil.copytree(trained if name == "train" else priors, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    options: dict = {"output_dir": tmp_path / "run", "overwrite": True}
    if name == "train":
        options["dataset_dir"] = tmp_path / "nowhere"
    else:
        options |= {"dataset_dir": codes, "prior_def": {**PRIOR, "num_codes": 9}}
    with pytest.raises(RuntimeError) as caught:
        run(name, **options)
    assert own_error(caught.value) is not None
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["train", "train_prior"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": -1.0}, "Invalid learning rate"),
        ({"max_minutes": -1.0}, "max_minutes is -1.0"),
        ({"budget_clock": "sun"}, "the budget's clock is 'sun'"),
    ],
)
def test_options_that_no_training_can_follow_leave_earlier_results_as_they_were(
    name, slices, codes, trained, priors, tmp_path, wrong, message
):
    source, data = (trained, slices) if name == "train" else (priors, codes)
    shutil.copytree(source, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(RuntimeError) as caught:
        run(name, dataset_dir=data, output_dir=tmp_path / "run", overwrite=True, **wrong)
    assert message in "".join(traceback.format_exception(caught.value))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_sagittal_slices_are_never_mirrored_by_training(slices, tmp_path):
    shutil.copytree(slices, tmp_path / "slices")
    datalist = json.loads((slices / "datalist.json").read_text())
    (tmp_path / "slices" / "datalist.json").write_text(json.dumps({**datalist, "plane": "sagittal"}))
    with pytest.raises(RuntimeError) as caught:
        run("train", dataset_dir=tmp_path / "slices", output_dir=tmp_path / "run", mirror_probability=0.5)
    assert "front to back" in str(own_error(caught.value))


def test_slices_of_different_sizes_are_refused_before_training_with_the_mend(tmp_path):
    from PIL import Image

    for split, sizes in {"train": [16, 16, 24], "validate": [16]}.items():
        (tmp_path / split).mkdir()
        for i, size in enumerate(sizes):
            Image.fromarray(np.full((size, size), 200, np.uint8)).save(tmp_path / split / f"{i}.png")
    with pytest.raises(RuntimeError) as caught:
        run("train", dataset_dir=tmp_path, output_dir=tmp_path / "run")
    assert isinstance(own_error(caught.value), InputError)
    assert "--image_size" in str(own_error(caught.value))
    assert not (tmp_path / "run").exists()
    start("train", dataset_dir=tmp_path, output_dir=tmp_path / "run", image_size=[24, 24])


@pytest.mark.parametrize("name", ["train", "train_prior"])
def test_a_training_that_overwrites_leaves_nothing_of_the_earlier_one(name, slices, trained, codes, priors, tmp_path):
    source, kept = (trained, set()) if name == "train" else (priors, {"1"})
    shutil.copytree(source, tmp_path / "run")
    before = {path for path in (tmp_path / "run").rglob("*") if path.is_file()}
    data = slices if name == "train" else codes
    options = {"dataset_dir": data, "output_dir": tmp_path / "run", "overwrite": True}
    start(name, **options, **({} if name == "train" else {"level": 0}))  # and there it is killed
    after = {path for path in before if path.is_file() and path.suffix not in (".log", ".lock")}
    assert all("level1" in path.as_posix() for path in after) if kept else after == set()
    assert len(after) >= 3 * len(kept)  # the other level's results stay


@pytest.mark.parametrize("name", ["train", "extract_codes", "train_prior"])
def test_earlier_results_stop_a_stage_at_its_start(name, slices, trained, codes, priors):
    output = {"train": trained, "extract_codes": codes, "train_prior": priors}[name]
    data = codes if name == "train_prior" else slices
    with pytest.raises(RuntimeError) as caught:
        run(name, dataset_dir=data, output_dir=output, kind=None)
    assert isinstance(own_error(caught.value), OutputExistsError)


@pytest.mark.slow
def test_a_misspelt_option_ends_the_command_with_one_clear_line(tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", str(CONFIGS / "train.json")]
    options = ["--dataset_dir", str(tmp_path), "--output_dir", str(tmp_path / "run"), "--max_epoch", "3"]
    result = subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("InputError: --max_epoch is no option")
    assert "--max_epochs" in last
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
