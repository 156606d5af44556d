"""The overlay of train.json that trains against a discriminator: what it leaves, resumes from and refuses."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tiny_training import CONFIGS, own_error, run, workflow

from monai_vqgen.data import CodeStore
from monai_vqgen.engines import AdversarialUpdate
from monai_vqgen.errors import InputError
from monai_vqgen.models import TrainedModel
from monai_vqgen.networks import GenerativeVQVAE
from monai_vqgen.weights import fingerprint

CODES = 8
OVERLAY = CONFIGS / "train_generative.json"
TINY = {
    "network_def::strides": [4],
    "network_def::widths": [8, 8, 8],
    "network_def::num_codes": CODES,
    "network_def::code_dim": 4,
    "network_def::blank_margin": 0,
    "discriminator_def::channels": 4,
    "discriminator_def::num_layers_d": 1,
    "batch_size": 4,
    "max_epochs": 2,
    "adversarial_start": 1,
    "adversary::ramp": 2,
    "average_decay": 0.9,
}


def train(**options):
    return run("train", overlay=OVERLAY, **{**TINY, **options})


@pytest.fixture(scope="module")
def generative(slices, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generative")
    train(dataset_dir=slices, output_dir=folder)
    return folder


def test_it_leaves_the_newest_averaged_weights_their_record_and_the_adversarys_curves(generative):
    state = torch.load(generative / "training_state.pt", weights_only=True)["parts"]
    kept = torch.load(generative / "model.pt", weights_only=True)
    for name, value in kept.items():
        assert torch.equal(value, state["moving_average"][f"autoencoder.{name}"]), name
    assert any(not torch.equal(value, state["objective"][f"autoencoder.{name}"]) for name, value in kept.items())
    record = json.loads((generative / "model.json").read_text())
    assert record["architecture"]["_target_"] == "monai_vqgen.networks.GenerativeVQVAE"
    assert record["image_size"] == [16, 16]
    history = json.loads((generative / "history.json").read_text())
    for name in ("adversarial_loss", "feature_loss", "discriminator_loss", "codebook_loss", "usage_level0"):
        assert len(history["train"][name]) == 2
    assert min(history["train"]["discriminator_loss"]) > 0


def test_its_codes_and_priors_know_the_blank_code_and_samples_are_drawn(generative, slices, tmp_path):
    run("extract_codes", dataset_dir=slices, model=generative / "model.pt", output_dir=tmp_path / "codes", kind=None)
    store = CodeStore(tmp_path / "codes")
    assert store.codebook_sizes == (CODES + 1,)
    assert (store.codes("training", 0) == CODES).any()
    run("train_prior", dataset_dir=tmp_path / "codes", output_dir=tmp_path / "priors", max_epochs=1)
    model = TrainedModel.from_bundle(generative, priors_dir=tmp_path / "priors")
    assert isinstance(model.autoencoder, GenerativeVQVAE)
    assert store.fingerprint == fingerprint(model.autoencoder)
    assert model.priors[0].num_codes == CODES + 1
    assert model.sample(2, seed=0, position_mm=41.0).images.shape == (2, 1, 16, 16)


def test_a_resumed_training_equals_one_that_was_never_interrupted(slices, tmp_path):
    options = {"dataset_dir": slices, "total_steps": 8, "mirror_probability": 0.5}
    train(output_dir=tmp_path / "whole", **options, **{"train::trainer::max_epochs": 4})
    train(output_dir=tmp_path / "parts", **options, **{"train::trainer::max_epochs": 2})
    train(output_dir=tmp_path / "parts", **options, **{"train::trainer::max_epochs": 4}, resume=True)
    whole, parts = (torch.load(tmp_path / name / "training_state.pt", weights_only=True) for name in ("whole", "parts"))
    assert_equal(whole["parts"], parts["parts"])
    assert_equal(*(torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("whole", "parts")))
    assert (tmp_path / "whole/history.json").read_text() == (tmp_path / "parts/history.json").read_text()


def assert_equal(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if name != "time_budget":
                assert_equal(value, other[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_equal(*pair)
    else:
        assert one == other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adversarial_weight": 0.5}, "adversary.terms.adversarial_loss 0.4 there and 0.5 here"),
        ({"adversary::r1_every": 8}, "adversary.r1_every 4 there and 8 here"),
        ({"average_decay": 0.5}, "average_decay 0.9 there and 0.5 here"),
        ({"optimizer::betas": [0.9, 0.99]}, r"optimizer.betas [0.5, 0.99] there and [0.9, 0.99] here"),
    ],
)
def test_a_training_is_not_resumed_against_another_adversary(generative, slices, tmp_path, options, message):
    shutil.copytree(generative, tmp_path / "run")
    with pytest.raises(RuntimeError) as caught:
        train(dataset_dir=slices, output_dir=tmp_path / "run", resume=True, **options)
    assert message in str(own_error(caught.value))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adversarial_weight": 0.0, "feature_weight": 0.0}, "one of the first two must be positive"),
        ({"r1_weight": -1.0}, "none may be negative"),
        ({"adversarial_start": 4}, "after 4 iterations .* has 4"),
        ({"accumulation_steps": 2}, "accumulation_steps=2"),
        ({"discriminator_def::num_layers_d": 4}, "cannot take images of shape"),
        ({"network_def::widths": [8, 8]}, "give 3 multiples of 8"),
        ({"objective::smooth_l1_weight": 0.0}, "smooth_l1_weight"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(slices, tmp_path, options, message):
    with pytest.raises(RuntimeError) as caught:
        train(dataset_dir=slices, output_dir=tmp_path / "out", **options)
    own = own_error(caught.value)
    with pytest.raises(InputError, match=message):
        raise own
    assert not (tmp_path / "out").exists()


def test_it_trains_volumes(tmp_path):
    """Only the networks' dimensions change: slices of a datalist are loaded as they are."""
    flow = workflow("train", overlay=OVERLAY, **{**TINY, "network_def::spatial_dims": 3, "total_steps": 10})
    flow.initialize()
    update = flow.parser.get_parsed_content("adversary")
    assert isinstance(update, AdversarialUpdate)
    update.check((1, 16, 16, 16))
    images = torch.rand(2, 1, 16, 16, 16)
    result = flow.parser.get_parsed_content("objective").train()(images)
    assert result["reconstruction"].shape == images.shape
