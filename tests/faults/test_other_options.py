"""A resumed run is the run it was: what decides the result must match, what may differ is rescaled and said."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from tiny_training import QUANTIZER, TINY, run, write_slices
from torch.optim.optimizer import register_optimizer_step_pre_hook

from monai_vqgen.engines import warmup_cosine
from monai_vqgen.errors import CheckpointError, InputError, root_cause
from monai_vqgen.weights import read_state

AUTOENCODER, PRIOR = "train", "train_prior"


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    """Slices, codes, and a run of two epochs of each training."""
    folder = tmp_path_factory.mktemp("half")
    write_slices(folder / "slices")
    run(AUTOENCODER, dataset_dir=folder / "slices", output_dir=folder / "run")
    options = {"dataset_dir": folder / "slices", "model": folder / "run" / "model.pt", "kind": None}
    run("extract_codes", output_dir=folder / "codes", **options)
    run(PRIOR, dataset_dir=folder / "codes", output_dir=folder / "run")
    return folder


def resume(name: str, half: Path, copy: Path, **options):
    if not copy.exists():
        shutil.copytree(half / "run", copy)
    data = half / ("slices" if name == AUTOENCODER else "codes")
    return run(name, **{"dataset_dir": data, "output_dir": copy, "max_epochs": 4, "resume": True, **options})


def content(folder: Path) -> dict[str, bytes]:
    """Of the results: weights, records, states and curves."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".pt", ".json")}


def other_decay(decay: float) -> dict:
    return {**TINY["network_def"], "quantizers": [QUANTIZER, {**QUANTIZER, "decay": decay}]}


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        (AUTOENCODER, {"batch_size": 2}, "global_batch_size 4 there and 2 here"),
        (AUTOENCODER, {"seed": 1}, "seed 0 there and 1 here"),
        (AUTOENCODER, {"learning_rate": 0.5}, "learning_rate 0.002 there and 0.5 here"),
        (AUTOENCODER, {"l1_weight": 0.5}, "l1_weight 0.0 there and 0.5 here"),
        (AUTOENCODER, {"objective::codebook_weight": 2.0}, "codebook_weight 1.0 there and 2.0 here"),
        (AUTOENCODER, {"network_def": other_decay(0.5)}, "architecture.quantizers.1.decay 0.99 there and 0.5 here"),
        (AUTOENCODER, {"mirror_probability": 0.5}, "mirror_probability 0.0 there and 0.5 here"),
        (AUTOENCODER, {"augmentation::rotation_degrees": 5.0}, "augmentation.rotation_degrees 8.0 there and 5.0 here"),
        (AUTOENCODER, {"optimizer::_target_": "torch.optim.AdamW"}, "optimizer 'Adam' there and 'AdamW' here"),
        (AUTOENCODER, {"optimizer::betas": [0.5, 0.9]}, "optimizer.betas [0.9, 0.999] there and [0.5, 0.9] here"),
        (AUTOENCODER, {"gradient_norm": 1.0}, "gradient_norm 0.0 there and 1.0 here"),
        (AUTOENCODER, {"image_size": [24, 24]}, "image_size [16, 16] there and [24, 24] here"),
        (PRIOR, {"batch_size": 3}, "global_batch_size 4 there and 3 here"),
        (PRIOR, {"weight_decay": 0.5}, "weight_decay 0.01 there and 0.5 here"),
        (PRIOR, {"prior_def::dropout": 0.5}, "architecture.dropout"),
        (PRIOR, {"condition_names": []}, "condition.continuous"),
        (PRIOR, {"from_codebooks": False}, "from_codebooks True there and False here"),
    ],
)
def test_an_option_that_decides_the_result_is_refused_by_name_with_both_values(name, options, told, half, tmp_path):
    with pytest.raises(RuntimeError) as caught:
        resume(name, half, tmp_path / "run", **options)
    error = root_cause(caught.value)
    assert isinstance(error, CheckpointError)
    assert told in str(error)
    assert content(tmp_path / "run") == content(half / "run")


def test_another_split_is_refused_and_a_moved_folder_is_not(half, tmp_path):
    shutil.copytree(half / "slices", tmp_path / "slices")
    resume(AUTOENCODER, half, tmp_path / "moved", dataset_dir=tmp_path / "slices")
    datalist = json.loads((half / "slices" / "datalist.json").read_text())
    datalist["training"][0], datalist["validation"][0] = datalist["validation"][0], datalist["training"][0]
    (tmp_path / "slices" / "datalist.json").write_text(json.dumps(datalist))
    with pytest.raises(RuntimeError) as caught:
        resume(AUTOENCODER, half, tmp_path / "run", dataset_dir=tmp_path / "slices")
    message = str(root_cause(caught.value))
    assert "training_list '8 records, sha256 " in message
    assert "validation_list '4 records, sha256 " in message
    assert content(tmp_path / "run") == content(half / "run")


def test_a_slice_with_other_pixels_is_refused(half, tmp_path):
    shutil.copytree(half / "slices", tmp_path / "slices")
    datalist = json.loads((half / "slices" / "datalist.json").read_text())
    names = [datalist[part][0]["image"] for part in ("training", "validation")]
    shutil.copyfile(half / "slices" / names[0], tmp_path / "slices" / names[1])
    with pytest.raises(RuntimeError) as caught:
        resume(AUTOENCODER, half, tmp_path / "run", dataset_dir=tmp_path / "slices")
    message = str(root_cause(caught.value))
    assert "validation_list '4 records, sha256 " in message
    assert "training_list" not in message
    assert content(tmp_path / "run") == content(half / "run")


def test_codes_of_another_autoencoder_are_refused(half, tmp_path):
    run(AUTOENCODER, dataset_dir=half / "slices", output_dir=tmp_path / "other", seed=5, max_epochs=1)
    options = {"dataset_dir": half / "slices", "model": tmp_path / "other" / "model.pt", "kind": None}
    run("extract_codes", output_dir=tmp_path / "codes", **options)
    with pytest.raises(RuntimeError) as caught:
        resume(PRIOR, half, tmp_path / "run", dataset_dir=tmp_path / "codes")
    message = str(root_cause(caught.value))
    mine = json.loads((half / "codes" / "codes.json").read_text())["fingerprint"]
    theirs = json.loads((tmp_path / "codes" / "codes.json").read_text())["fingerprint"]
    assert f"autoencoder_fingerprint '{mine}' there and '{theirs}' here" in message
    assert content(tmp_path / "run") == content(half / "run")


def test_what_may_differ_is_said_and_the_rate_is_that_of_the_longer_schedule(half, tmp_path, caplog):
    rates: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    with caplog.at_level(logging.INFO), hook:
        resume(AUTOENCODER, half, tmp_path / "run", max_epochs=8, num_workers=1, patience=50)
    for change in ("max_epochs 2 there and 8 here", "patience 0 there and 50 here"):
        assert f"Resuming with a change: {change}" in caplog.text
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter], lr=0.002)
    schedule, expected = warmup_cosine(optimizer, 16), []
    for _ in range(16):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(expected[4:])  # two steps an epoch: of sixteen, four were done
    assert read_state(tmp_path / "run" / "training_state.pt")["place"] == {"epoch": 8, "iteration": 16}


def test_fewer_epochs_than_are_done_are_refused_and_as_many_train_nothing(half, tmp_path):
    with pytest.raises(RuntimeError) as caught:
        resume(AUTOENCODER, half, tmp_path / "run", max_epochs=1)
    assert isinstance(root_cause(caught.value), InputError)
    assert "max_epochs=1, and 2 epochs are done" in str(root_cause(caught.value))
    resume(AUTOENCODER, half, tmp_path / "run", max_epochs=2)
    assert content(tmp_path / "run") == content(half / "run")


def test_what_only_the_weights_record_says_may_differ(half, tmp_path):
    resume(PRIOR, half, tmp_path / "run", sampling={"temperature": 0.5})
    assert read_state(tmp_path / "run" / "training_state_prior_level0.pt")["place"]["epoch"] == 4


def test_a_run_whose_minutes_are_over_trains_nothing_more_unless_it_gets_more(half, tmp_path):
    options = {"max_epochs": 8, "budget_clock": 1.0}  # a second a step, two steps an epoch
    resume(AUTOENCODER, half, tmp_path / "run", max_minutes=2.5 / 60, **options)
    over = content(tmp_path / "run")
    assert read_state(tmp_path / "run" / "training_state.pt")["place"] == {"epoch": 4, "iteration": 7}
    resume(AUTOENCODER, half, tmp_path / "run", max_minutes=2.5 / 60, **options)
    assert content(tmp_path / "run") == over
    resume(AUTOENCODER, half, tmp_path / "run", max_minutes=4.5 / 60, **options)
    assert read_state(tmp_path / "run" / "training_state.pt")["place"]["iteration"] > 7


def test_a_state_of_an_earlier_version_is_taken_with_a_warning(half, tmp_path, caplog):
    shutil.copytree(half / "run", tmp_path / "run")
    path = tmp_path / "run" / "training_state.pt"
    state = read_state(path)
    del state["run"]
    state["parts"]["time_budget"] = {}
    torch.save(state, path)
    with caplog.at_level(logging.WARNING):
        resume(AUTOENCODER, half, tmp_path / "run", seed=1)
    assert "its options are not compared" in caplog.text
    assert read_state(path)["place"]["epoch"] == 4
