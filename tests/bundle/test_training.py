"""The training configurations: from slices to a model, its codes and its priors, by MONAI's own workflow."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import CODES, CONFIGS, REPOSITORY, TINY, run, trained_network, workflow, write_slices

from monai_vqgen.data import CodeStore
from monai_vqgen.files import read_json
from monai_vqgen.models import TrainedModel
from monai_vqgen.networks import HierarchicalVQVAE
from monai_vqgen.networks.architecture import architecture
from monai_vqgen.weights import fingerprint
from tools.designs import read_designs

DESIGNS = REPOSITORY / "configs" / "comparisons" / "autoencoder.yaml"


def test_training_leaves_a_model_its_curves_pictures_and_logs(trained):
    assert {path.name for path in trained.glob("[!.]*")} == {
        "model.pt", "model.json", "history.json", "images", "tensorboard", "train.log",
        "training_state.pt", "training_state.previous.pt",
    }  # fmt: skip
    history = json.loads((trained / "history.json").read_text())
    assert history["train"]["epoch"] == [1, 2]
    assert history["validation"]["epoch"] == [1, 2]
    for name in ("loss", "mse", "psnr", "usage_level0", "perplexity_level1"):
        assert len(history["train"][name]) == 2
    assert "training: epoch 2" in (trained / "train.log").read_text()
    for part, name in (("train", "loss"), ("train", "psnr"), ("validation", "mse")):
        (events,) = (trained / "tensorboard" / part).glob("events*")
        curves = EventAccumulator(str(events)).Reload()
        assert [point.value for point in curves.Scalars(name)] == pytest.approx(history[part][name], rel=1e-6)
        assert ("step_loss" in curves.Tags()["scalars"]) == (part == "train")


def test_codes_carry_the_fingerprint_of_the_weights_on_disk(trained, codes):
    store = CodeStore(codes)
    assert store.fingerprint == fingerprint(trained_network(trained))
    assert store.grids == ((2, 2), (4, 4))
    assert len(store.records("training")) == 16  # with the mirrored copies


def test_each_prior_says_what_it_was_trained_on(trained, codes, priors):
    for level in (0, 1):
        sidecar = read_json(priors / f"model_prior_level{level}.json")
        history = json.loads((priors / f"history_prior_level{level}.json").read_text())
        assert sidecar.pop("validation_bits_per_code") == min(history["validation"]["bits_per_code"])
        weights = TrainedModel.from_bundle(trained, priors_dir=priors).priors[level]
        assert sidecar.pop("fingerprint") == fingerprint(weights)
        assert sidecar.pop("architecture") == architecture(weights)
        assert sidecar == {
            "format_version": 1,
            "sampling": {"temperature": 1.0},
            "level": level,
            "grid": [2 * 2**level] * 2,
            "num_codes": CODES,
            "coarser": [CODES] * level,
            "autoencoder_fingerprint": CodeStore(codes).fingerprint,
            "condition": {"continuous": {"position_mm": [40.0, 47.0]}, "categorical": {}},
            "image_size": [16, 16],
            "plane": "coronal",
            "pixel_mm": 3.472,
        }
        assert torch.load(priors / f"model_prior_level{level}.pt", weights_only=True)
        assert (priors / "images" / f"samples_level{level}_epoch0002.png").is_file()


def test_a_resumed_training_equals_one_that_was_never_interrupted(slices, tmp_path):
    augmentation = {"mirror_probability": 0.5, "affine_probability": 0.5, "gamma_probability": 0.5}
    options = {"dataset_dir": slices, **augmentation, "ssim_weight": 0.1, "total_steps": 8}
    run("train", output_dir=tmp_path / "whole", **options, **{"train::trainer::max_epochs": 4})
    run("train", output_dir=tmp_path / "parts", **options, **{"train::trainer::max_epochs": 2})
    run("train", output_dir=tmp_path / "parts", **options, **{"train::trainer::max_epochs": 4}, resume=True)
    states = [torch.load(tmp_path / name / "training_state.pt", weights_only=True) for name in ("whole", "parts")]
    for name, tensor in states[0]["parts"]["objective"].items():
        assert torch.equal(tensor, states[1]["parts"]["objective"][name]), name
    whole, parts = (json.loads((tmp_path / name / "history.json").read_text()) for name in ("whole", "parts"))
    assert whole == parts


@pytest.mark.parametrize("name", ["train", "train_prior"])
def test_a_workflow_gives_its_network_where_there_is_no_data(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flow = workflow(name)
    flow.initialize()
    assert isinstance(flow.network_def, HierarchicalVQVAE)
    assert not list(tmp_path.iterdir())


def test_the_design_with_a_moving_average_keeps_and_judges_the_averaged_weights(slices, tmp_path):
    (design,) = [row for row in read_designs(DESIGNS) if row.name.startswith("moving average")]
    one_large_step = {"batch_size": 8, "max_epochs": 1, "learning_rate": 1.0}
    flow = workflow("train", dataset_dir=slices, output_dir=tmp_path, **one_large_step, **design.options)
    flow.initialize()
    objective = flow.parser.get_parsed_content("objective")
    first = {name: value.clone() for name, value in objective.autoencoder.named_parameters()}
    flow.run()
    kept, state = torch.load(tmp_path / "model.pt"), torch.load(tmp_path / "training_state.pt")
    for name, value in objective.autoencoder.named_parameters():
        assert not torch.equal(value, first[name])
        torch.testing.assert_close(kept[name], 0.995 * first[name] + 0.005 * value.detach())
        assert torch.equal(state["parts"]["moving_average"][f"autoencoder.{name}"], kept[name])


def test_ready_made_folders_without_positions_train_an_unconditional_prior(tmp_path):
    from PIL import Image

    random = np.random.default_rng(0)
    for split in ("train", "validate", "test"):
        (tmp_path / "png" / split).mkdir(parents=True)
        for i in range(4):
            pixels = random.integers(0, 255, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "png" / split / f"{i}.png")
    run("train", dataset_dir=tmp_path / "png", output_dir=tmp_path / "run", max_epochs=1)
    model = tmp_path / "run" / "model.pt"
    run("extract_codes", dataset_dir=tmp_path / "png", model=model, output_dir=tmp_path / "codes", kind=None)
    options = {"dataset_dir": tmp_path / "codes", "output_dir": tmp_path / "run", "max_epochs": 1}
    run("train_prior", condition_names=[], **options)
    sidecar = json.loads((tmp_path / "run" / "model_prior_level0.json").read_text())
    assert sidecar["condition"] == {"continuous": {}, "categorical": {}}
    assert (sidecar["image_size"], sidecar["plane"], sidecar["pixel_mm"]) == ([16, 16], None, None)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_overlays_begin_with_their_command_and_only_set_what_exists(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith("# python -m monai.bundle run")
    assert f"configs/{path.name}" in first
    configs = ("train.json", "train_prior.json")
    known = {name for config in configs for name in ConfigParser.load_config_file(CONFIGS / config)}
    text = path.read_text()
    for name in ConfigParser.load_config_file(path):
        item = name.lstrip("+").split("::")[0]
        assert item in known or f"@{item}" in text, name
    assert len(path.read_text().splitlines()) <= 25


@pytest.mark.parametrize(
    "quantizer",
    [{"_target_": "LookupFreeQuantizer", "dim": 4}, {"_target_": "ResidualQuantizer", "stage_codes": 4, "dim": 4}],
    ids=lambda quantizer: quantizer["_target_"],
)
def test_any_quantizer_is_named_in_the_config_and_its_priors_follow(quantizer, slices, tmp_path):
    named = {**quantizer, "_target_": f"monai_vqgen.networks.{quantizer['_target_']}"}
    network = {**TINY["network_def"], "quantizers": [named, named]}
    run("train", network_def=network, dataset_dir=slices, output_dir=tmp_path / "run", max_epochs=1)
    run("extract_codes", dataset_dir=slices, model=tmp_path / "run/model.pt", output_dir=tmp_path / "codes", kind=None)
    assert tuple(CodeStore(tmp_path / "codes").codebook_sizes) == (16, 16)
    for level in (0, 1):
        options = {
            "dataset_dir": tmp_path / "codes",
            "model": tmp_path / "run/model.pt",
            "output_dir": tmp_path / "run",
        }
        run("train_prior", level=level, max_epochs=1, **options)
    model = TrainedModel.from_bundle(tmp_path / "run")
    assert type(model.autoencoder.quantizers[0]).__name__ == quantizer["_target_"]
    assert model.sample(2, seed=1).images.shape == (2, 1, 16, 16)


@pytest.mark.parametrize(("system", "size"), [("system_a", 8), ("system_b", 16)])
def test_each_architecture_trains_for_one_step(system, size, tmp_path):
    """The real widths and depths on a tiny image: one batch of one epoch in both training stages."""
    write_slices(tmp_path / "slices", size)
    overlay = REPOSITORY / "configs" / f"{system}.yaml"
    run(
        "train", overlay=overlay, dataset_dir=tmp_path / "slices", output_dir=tmp_path / "run",
        batch_size=4, max_epochs=1, **{"train::trainer::epoch_length": 1},
    )  # fmt: skip
    flow = ConfigWorkflow(
        config_file=str(CONFIGS / "extract_codes.json"),
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type=None,
        device="$torch.device('cpu')",
        dataset_dir=str(tmp_path / "slices"),
        model=str(tmp_path / "run" / "model.pt"),
        output_dir=str(tmp_path / "codes"),
    )
    flow.initialize()
    flow.run()
    for level in range(CodeStore(tmp_path / "codes").num_levels):
        run(
            "train_prior", overlay=overlay, dataset_dir=tmp_path / "codes", output_dir=tmp_path / "run", level=level,
            batch_size=2, max_epochs=1, **{"train::trainer::epoch_length": 1},
        )  # fmt: skip
        assert (tmp_path / "run" / f"model_prior_level{level}.pt").is_file()
