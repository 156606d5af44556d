"""The overlay that trains a decoder on what the priors draw: what stays, what changes, what it resumes and refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from tiny_training import CONFIGS, own_error, run

from monai_vqgen.errors import CodesMismatchError, InputError
from monai_vqgen.models import TrainedModel, hand_down_priors
from monai_vqgen.networks import GenerativeVQVAE, HierarchicalVQVAE

OVERLAYS = [CONFIGS / "train_generative.json", CONFIGS / "train_decoder.json"]
TINY = {
    "discriminator_def::widths": [8, 8, 8],
    "batch_size": 4,
    "max_epochs": 2,
    "num_drawn": 6,
    "adversarial_start": 0,
    "adversary::ramp": 0,
    "average_decay": 0.9,  # no power of two: the mean of equal numbers is not always that number
    "learning_rate": 0.01,
}


@pytest.fixture(scope="module")
def trained(slices, tmp_path_factory):
    """A tiny generative model with a prior."""
    folder = tmp_path_factory.mktemp("trained")
    network = {"strides": [4], "widths": [8, 8, 8], "num_codes": 8, "code_dim": 4, "blank_margin": 0}
    autoencoder = {f"network_def::{name}": value for name, value in network.items()}
    adversary = {"discriminator_def::channels": 4, "discriminator_def::num_layers_d": 1, "adversarial_start": 1}
    run(
        "train", overlay=OVERLAYS[0], dataset_dir=slices, output_dir=folder, batch_size=4, max_epochs=1,
        **autoencoder, **adversary,
    )  # fmt: skip
    run("extract_codes", dataset_dir=slices, model=folder / "model.pt", output_dir=folder / "codes", kind=None)
    run("train_prior", dataset_dir=folder / "codes", output_dir=folder, max_epochs=1)
    return folder


def train(trained, slices, output_dir, **options):
    return run(
        "train", overlay=OVERLAYS, dataset_dir=slices, model=trained / "model.pt", output_dir=output_dir,
        **{**TINY, **options},
    )  # fmt: skip


def changed_parts(before: TrainedModel, after: TrainedModel) -> set[str]:
    was = before.autoencoder.state_dict()
    return {n.split(".")[0] for n, value in after.autoencoder.state_dict().items() if not torch.equal(value, was[n])}


def test_only_the_decoder_changes_and_the_priors_come_along(trained, slices, tmp_path):
    train(trained, slices, tmp_path)
    before, after = TrainedModel.from_bundle(trained), TrainedModel.from_bundle(tmp_path)
    assert changed_parts(before, after) == {"upsamplers"}
    ours, theirs = before.sample(3, seed=1, position_mm=41.0), after.sample(3, seed=1, position_mm=41.0)
    assert torch.equal(ours.codes[0], theirs.codes[0])
    assert not torch.equal(ours.images, theirs.images)
    history = json.loads((tmp_path / "history.json").read_text())["train"]
    assert min(history["drawn_loss"]) > 0
    assert min(history["discriminator_loss"]) > 0


@pytest.mark.slow
def test_two_processes_train_one_decoder_and_one_of_them_writes_the_priors(trained, slices, tmp_path):
    overlay = tmp_path / "tiny.json"
    overlay.write_text(json.dumps({key: value for key, value in TINY.items() if key != "batch_size"}))
    files = [CONFIGS / "train.json", *OVERLAYS, overlay, CONFIGS / "multi_gpu_train.json"]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle", "run"]
    command += ["training", "--config_file", str([str(file) for file in files]), "--bundle_root", str(CONFIGS.parent)]
    command += [
        "--dataset_dir",
        str(slices),
        "--model",
        str(trained / "model.pt"),
        "--output_dir",
        str(tmp_path / "run"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *command, "--batch_size", "2"], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    after = TrainedModel.from_bundle(tmp_path / "run")
    assert changed_parts(TrainedModel.from_bundle(trained), after) == {"upsamplers"}
    assert after.sample(2, seed=1, position_mm=41.0).images.shape == (2, 1, 16, 16)


def test_a_resumed_training_equals_one_that_was_never_interrupted(trained, slices, tmp_path):
    options = {"total_steps": 8}
    train(trained, slices, tmp_path / "whole", **options, **{"train::trainer::max_epochs": 4})
    train(trained, slices, tmp_path / "parts", **options, **{"train::trainer::max_epochs": 2})
    train(trained, slices, tmp_path / "parts", **options, **{"train::trainer::max_epochs": 4}, resume=True)
    whole, parts = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_a_model_without_priors_is_refused_before_any_training(trained, slices, tmp_path):
    for name in ("model.pt", "model.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    with pytest.raises(RuntimeError) as caught:
        train(tmp_path, slices, tmp_path / "run")
    assert "has no priors" in str(own_error(caught.value))
    assert not (tmp_path / "run" / "model.pt").exists()


def test_priors_are_not_handed_down_to_weights_that_write_other_codes(trained, tmp_path):
    model = TrainedModel.from_bundle(trained)
    network = GenerativeVQVAE(strides=(4,), widths=(8, 8, 8), num_codes=8, code_dim=4, blank_margin=0)
    TrainedModel(network, record=model.record._replace(fingerprint="")).save(tmp_path)
    with pytest.raises(CodesMismatchError, match="other codes than the priors know"):
        hand_down_priors(model, tmp_path / "model.pt")
    assert not list(tmp_path.glob("model_prior*"))


def test_of_several_levels_only_the_last_decoder_is_trained_for_the_coarser_ones_shape_the_codes():
    from monai_vqgen.engines import DecoderObjective

    torch.manual_seed(0)
    network, images = HierarchicalVQVAE(channels=8, residual_channels=4), torch.rand(2, 1, 32, 32)
    objective = DecoderObjective(network)
    before = network.encode(images)
    assert {name[:13] for name, value in network.named_parameters() if value.requires_grad} == {"upsamplers.1."}
    optimizer = torch.optim.SGD([value for value in network.parameters() if value.requires_grad], 10.0)
    objective(images)["loss"].backward()
    optimizer.step()
    assert all(map(torch.equal, before, network.encode(images)))
    with torch.no_grad():
        next(network.upsamplers[0].parameters()).mul_(-5)
    assert not all(map(torch.equal, before, network.encode(images)))  # as training it would


def test_priors_are_not_handed_down_where_a_coarser_decoder_has_changed(tmp_path):
    from factories import tiny_model

    model, other = tiny_model(), tiny_model()
    with torch.no_grad():
        other.autoencoder.upsamplers[1][0].weight.add_(1)
        TrainedModel(other.autoencoder, record=other.record._replace(fingerprint="")).save(tmp_path / "last")
        other.autoencoder.upsamplers[0][0].weight.add_(1)
    TrainedModel(other.autoencoder, record=other.record._replace(fingerprint="")).save(tmp_path / "both")
    hand_down_priors(model, tmp_path / "last/model.pt")
    assert len(TrainedModel.from_bundle(tmp_path / "last").priors) == 2
    with pytest.raises(CodesMismatchError, match="other codes than the priors know"):
        hand_down_priors(model, tmp_path / "both/model.pt")


def test_priors_of_another_grid_are_refused(trained, slices, tmp_path):
    with pytest.raises(RuntimeError) as caught:
        train(trained, slices, tmp_path / "run", image_size=[32, 32])
    assert "grids [(8, 8)], the drawn codes are [(4, 4)]: set image_size" in str(own_error(caught.value))


def test_an_autoencoder_without_a_decoder_of_its_own_is_refused():
    from monai_vqgen.engines import DecoderObjective

    with pytest.raises(InputError, match="has no upsamplers"):
        DecoderObjective(torch.nn.Linear(1, 1))
    network = HierarchicalVQVAE(channels=8, residual_channels=4)
    with pytest.raises(InputError, match="1 levels of drawn codes for 2"):
        DecoderObjective(network, network.encode(torch.zeros(1, 1, 16, 16))[:1])
