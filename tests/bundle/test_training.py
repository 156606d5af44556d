"""The training configurations: from slices to a model, its codes and its priors, by MONAI's own workflow."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, verify_net_in_out

from monai_vqgen.apps.designs import read_designs
from monai_vqgen.data import CodeStore
from monai_vqgen.errors import CodesMismatchError, InputError, OutputExistsError, VQGenError
from monai_vqgen.networks import HierarchicalVQVAE, fingerprint

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "bundle" / "configs"
DESIGNS = REPOSITORY / "configs" / "comparisons" / "autoencoder.yaml"
CODES = 8
QUANTIZER = {"_target_": "monai_vqgen.networks.EMACodebook", "num_codes": CODES, "dim": 4}
PRIOR = {
    "_target_": "monai_vqgen.networks.GatedPixelCNN",
    "num_codes": CODES,
    "channels": 8,
    "num_layers": 1,
    "attention_every": 0,
    "condition_dim": "@condition_dim",
}
TINY = {
    "network_def": {
        "_target_": "monai_vqgen.networks.HierarchicalVQVAE",
        "channels": 8,
        "residual_channels": 4,
        "quantizers": [QUANTIZER, QUANTIZER],
    },
    "prior_defs": [PRIOR, {**PRIOR, "coarser_codes": [CODES]}],
    "batch_size": 4,
    "max_epochs": 2,
}


def write_slices(folder: Path, size: int = 16) -> None:
    """A disc of its own radius and brightness on each slice."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size] / size - 0.5
    datalist: dict = {"plane": "coronal", "image_size": [size, size], "pixel_mm": 3.472}
    (folder / "images").mkdir(parents=True)
    for split, count in {"training": 8, "validation": 4, "test": 2}.items():
        datalist[split] = []
        for i in range(count):
            disc = (rows**2 + columns**2 < random.uniform(0.05, 0.2)) * random.uniform(0.4, 1.0)
            name = f"images/{split}{i}.nii.gz"
            nib.save(nib.Nifti1Image(disc[:, :, None].astype(np.float32), np.eye(4)), folder / name)
            record = {"image": name, "subject": f"{split}{i}", "plane": "coronal", "position_mm": 40.0 + i}
            datalist[split].append(record)
    (folder / "datalist.json").write_text(json.dumps(datalist))


def workflow(name: str, *, overlay: Path | None = None, kind: str | None = "train", **options) -> ConfigWorkflow:
    files = [str(CONFIGS / f"{name}.json")] + ([str(overlay)] if overlay else [])
    tiny = {} if overlay else TINY
    if name == "extract_codes":
        tiny = {"network_def": TINY["network_def"], "batch_size": 3}
    return ConfigWorkflow(
        config_file=files,
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(REPOSITORY / "bundle"),
        device="$torch.device('cpu')",
        **{**tiny, **{key: str(value) if isinstance(value, Path) else value for key, value in options.items()}},
    )


def run(name: str, **options) -> ConfigWorkflow:
    flow = workflow(name, **options)
    flow.initialize()
    flow.run()
    flow.finalize()
    return flow


def start(name: str, **options) -> None:
    """All that a training does before its first step."""
    steps = ConfigParser.load_config_file(CONFIGS / f"{name}.json")["run"]
    assert steps[-1] == "$@train::trainer.run()"
    flow = workflow(name, run=steps[:-1], **options)
    flow.initialize()
    flow.run()


def own_error(error: BaseException | None) -> BaseException | None:
    while error is not None and not isinstance(error, VQGenError):
        error = error.__cause__
    return error


@pytest.fixture(scope="module")
def slices(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("slices")
    write_slices(folder)
    return folder


@pytest.fixture(scope="module")
def trained(slices, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    flow = workflow("train", dataset_dir=slices, output_dir=folder, image_interval=2)
    flow.initialize()
    assert flow.check_properties() == []
    flow.run()
    flow.finalize()
    return folder


@pytest.fixture(scope="module")
def codes(slices, trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("codes")
    run(
        "extract_codes",
        dataset_dir=slices,
        model=trained / "model.pt",
        output_dir=folder,
        mirror_training=True,
        kind=None,
    )
    return folder


@pytest.fixture(scope="module")
def priors(codes, trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("priors")
    for level in (0, 1):
        options = {"dataset_dir": codes, "output_dir": folder, "model": trained / "model.pt", "image_interval": 2}
        flow = workflow("train_prior", level=level, **options)
        flow.initialize()
        assert flow.check_properties() == []
        flow.run()
        flow.finalize()
    return folder


def trained_network(trained: Path) -> HierarchicalVQVAE:
    network = ConfigParser({"network": TINY["network_def"]}).get_parsed_content("network")
    network.load_state_dict(torch.load(trained / "model.pt", weights_only=True))
    return network


def test_training_leaves_a_model_its_curves_pictures_and_logs(trained):
    assert {path.name for path in trained.iterdir()} == {
        "model.pt", "history.json", "images", "tensorboard", "train.log", "training_state.pt",
    }  # fmt: skip
    history = json.loads((trained / "history.json").read_text())
    assert history["train"]["epoch"] == [1, 2]
    assert history["validation"]["epoch"] == [1, 2]
    for name in ("loss", "mse", "psnr", "usage_level0", "perplexity_level1"):
        assert len(history["train"][name]) == 2
    assert "training: epoch 2" in (trained / "train.log").read_text()
    assert list((trained / "tensorboard").rglob("events*"))


def test_codes_carry_the_fingerprint_of_the_weights_on_disk(trained, codes):
    store = CodeStore(codes)
    assert store.fingerprint == fingerprint(trained_network(trained))
    assert store.grids == ((2, 2), (4, 4))
    assert len(store.records("training")) == 16  # with the mirrored copies


def test_each_prior_says_what_it_was_trained_on(codes, priors):
    for level in (0, 1):
        sidecar = json.loads((priors / f"model_prior_level{level}.json").read_text())
        history = json.loads((priors / f"history_prior_level{level}.json").read_text())
        assert sidecar.pop("validation_bits_per_code") == min(history["validation"]["bits_per_code"])
        assert sidecar == {
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


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"level": 2}, InputError, r"levels 0 \(coarsest\) to 1"),
        ({"level": -1}, InputError, "does not exist"),
        ({"prior_defs": [{**PRIOR, "num_codes": 9}]}, CodesMismatchError, "num_codes=8"),
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
    torch.save(network.state_dict(), tmp_path / "other.pt")
    with pytest.raises(RuntimeError) as caught:
        run("train_prior", dataset_dir=codes, output_dir=tmp_path / "out", model=tmp_path / "other.pt")
    assert isinstance(own_error(caught.value), CodesMismatchError)


@pytest.mark.parametrize("name", ["train", "train_prior"])
def test_a_training_that_is_refused_leaves_earlier_results_as_they_were(name, codes, trained, priors, tmp_path):
    shutil.copytree(trained if name == "train" else priors, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    options: dict = {"output_dir": tmp_path / "run", "overwrite": True}
    if name == "train":
        options["dataset_dir"] = tmp_path / "nowhere"
    else:
        options |= {"dataset_dir": codes, "prior_defs": [{**PRIOR, "num_codes": 9}]}
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


@pytest.mark.parametrize("name", ["train", "train_prior"])
def test_a_workflow_gives_its_network_where_there_is_no_data(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flow = workflow(name)
    flow.initialize()
    assert isinstance(flow.network_def, HierarchicalVQVAE)
    assert not list(tmp_path.iterdir())


def test_the_design_with_a_moving_average_keeps_and_judges_the_averaged_weights(slices, tmp_path):
    handlers = ConfigParser.load_config_file(CONFIGS / "train.json")["train"]["handlers"]
    (design,) = [row for row in read_designs(DESIGNS) if row.name.startswith("moving average")]
    parts = design.options["train::handlers::13::parts"]
    assert handlers[8]["_target_"].endswith("ReconstructionImages")
    assert parts.items() > handlers[13]["parts"].items()

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


@pytest.mark.parametrize("knob", ["mirror_probability", "affine_probability", "gamma_probability"])
def test_each_augmentation_changes_training_slices_and_no_others(slices, tmp_path, knob):
    made = {}
    for value in (0.0, 1.0):
        loaded = workflow("train", dataset_dir=slices, output_dir=tmp_path / str(value), **{knob: value})
        loaded.initialize()
        made[value] = {
            split: torch.stack([item["image"] for item in loaded.parser.get_parsed_content(split)])
            for split in ("train::dataset", "validate::dataset")
        }
    before, after = made[0.0], made[1.0]
    assert torch.equal(before["validate::dataset"], after["validate::dataset"])
    assert not torch.equal(before["train::dataset"], after["train::dataset"])
    assert after["train::dataset"].shape == before["train::dataset"].shape
    assert float(after["train::dataset"].min()) >= 0
    assert float(after["train::dataset"].max()) <= 1
    assert float(after["train::dataset"].std()) > 0.5 * float(before["train::dataset"].std())


DOT = np.array([-18, 12])  # rows down and columns right of the pixel (32, 32) of 65


def write_dots(folder: Path) -> None:
    """One bright dot, a Gaussian of 2 pixels, on every slice."""
    write_slices(folder, 65)
    rows, columns = np.mgrid[:65, :65] - 32 - DOT[:, None, None]
    dot = np.exp(-(rows**2 + columns**2) / 8)
    for path in (folder / "images").iterdir():
        nib.save(nib.Nifti1Image(dot[:, :, None].astype(np.float32), np.eye(4)), path)


@pytest.fixture(scope="module")
def dots(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dots")
    write_dots(folder)
    return folder


def augmented(folder: Path, output: Path, draws: int = 60, **knobs: float) -> tuple[np.ndarray, np.ndarray]:
    """The first training slice (h, w) of a folder, and what augmentation makes of it at each draw."""
    made = []
    for name, options in {"plain": {}, "augmented": knobs}.items():
        flow = workflow("train", dataset_dir=folder, output_dir=output / name, **options)
        flow.initialize()
        dataset = flow.parser.get_parsed_content("train::dataset")
        dataset.transform.set_random_state(seed=0)
        made.append(np.stack([dataset[0]["image"][0].numpy() for _ in range(draws)]))
    assert (made[0] == made[0][0]).all()
    return made[0][0], made[1]


def dot_places(images: np.ndarray) -> np.ndarray:
    """Where the dot lies in each image: rows down and columns right of the middle."""
    grid = np.mgrid[:65, :65] - 32
    return np.stack([(image * grid).sum((1, 2)) / image.sum() for image in images])


@pytest.mark.parametrize("degrees", [None, 3.0])
def test_slices_are_turned_by_no_more_degrees_than_allowed(dots, tmp_path, degrees):
    given = {} if degrees is None else {"rotation_degrees": degrees}
    allowed = degrees or 8.0
    _, images = augmented(dots, tmp_path, affine_probability=1.0, scale_fraction=0.0, shift_pixels=0.0, **given)
    places = dot_places(images)
    angles = np.degrees(np.arctan2(places[:, 0], places[:, 1]) - np.arctan2(*DOT))
    np.testing.assert_allclose(np.hypot(*places.T), np.hypot(*DOT), atol=0.1)
    assert np.abs(angles).max() <= allowed + 0.3
    assert angles.max() > 0.8 * allowed
    assert angles.min() < -0.8 * allowed


def test_slices_are_scaled_by_no_more_than_allowed_each_axis_for_itself(dots, tmp_path):
    _, images = augmented(dots, tmp_path, affine_probability=1.0, rotation_degrees=0.0, shift_pixels=0.0)
    factors = dot_places(images) / DOT
    assert factors.min() >= 1 / 1.08 - 0.01
    assert factors.max() <= 1 / 0.92 + 0.01
    assert (factors.min(0) < 0.95).all()
    assert (factors.max(0) > 1.05).all()
    assert np.abs(factors[:, 0] - factors[:, 1]).max() > 0.05


def test_slices_are_moved_by_no_more_pixels_than_allowed_along_both_axes(dots, tmp_path):
    _, images = augmented(dots, tmp_path, affine_probability=1.0, rotation_degrees=0.0, scale_fraction=0.0)
    moves = dot_places(images) - DOT
    assert np.abs(moves).max() <= 4.1
    assert (moves.max(0) > 3).all()
    assert (moves.min(0) < -3).all()


def test_gamma_stays_within_its_range(dots, tmp_path):
    plain, images = augmented(dots, tmp_path, gamma_probability=1.0)
    grey = (plain > 0.2) & (plain < 0.8)
    gammas = np.log(images[:, grey]) / np.log(plain[grey])
    np.testing.assert_allclose(gammas, gammas[:, :1].repeat(grey.sum(), 1), rtol=1e-3)  # one power for all pixels
    assert 0.8 - 0.001 <= gammas.min() < 0.85
    assert 1.2 < gammas.max() <= 1.25 + 0.001


def test_mirroring_is_from_left_to_right(dots, tmp_path):
    plain, images = augmented(dots, tmp_path, draws=3, mirror_probability=1.0)
    assert all(np.array_equal(image, plain[:, ::-1]) for image in images)
    assert not np.array_equal(plain, plain[:, ::-1])


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
    after = {path for path in before if path.is_file() and path.suffix != ".log"}
    assert all("level1" in path.as_posix() for path in after) if kept else after == set()
    assert len(after) >= 3 * len(kept)  # the other level's results stay


@pytest.mark.parametrize("name", ["train", "extract_codes", "train_prior"])
def test_earlier_results_stop_a_stage_at_its_start(name, slices, trained, codes, priors):
    output = {"train": trained, "extract_codes": codes, "train_prior": priors}[name]
    data = codes if name == "train_prior" else slices
    with pytest.raises(RuntimeError) as caught:
        run(name, dataset_dir=data, output_dir=output, kind=None)
    assert isinstance(own_error(caught.value), OutputExistsError)


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
    known = ConfigParser.load_config_file(CONFIGS / "train_prior.json")
    assert set(ConfigParser.load_config_file(path)) <= set(known)
    assert len(path.read_text().splitlines()) <= 25


@pytest.mark.parametrize(("system", "size"), [("small_64", 16), ("system_a", 8), ("system_b", 16)])
def test_each_architecture_trains_for_one_step(system, size, tmp_path):
    """The real widths and depths on a tiny image: one batch of one epoch in both training stages."""
    write_slices(tmp_path / "slices", size)
    overlay = REPOSITORY / "configs" / f"{system}.yaml"
    run(
        "train", overlay=overlay, dataset_dir=tmp_path / "slices", output_dir=tmp_path / "run",
        batch_size=4, max_epochs=1, **{"train::trainer::epoch_length": 1},
    )  # fmt: skip
    flow = ConfigWorkflow(
        config_file=[str(CONFIGS / "extract_codes.json"), str(overlay)],
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


def test_metadata_describes_the_network_that_the_configuration_makes():
    options = {"network_def::channels": 8, "network_def::residual_channels": 4}
    files = {"config_file": str(CONFIGS / "train.json"), "meta_file": str(CONFIGS / "metadata.json")}
    verify_net_in_out(net_id="network_def", device="cpu", **files, **options)


def test_metadata_has_what_monai_asks_for_and_knows_its_version():
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    required = (
        "version monai_version pytorch_version numpy_version required_packages_version task description authors "
        "copyright network_data_format changelog name supported_apps"
    )
    assert set(required.split()) <= set(metadata)
    assert metadata["version"] in metadata["changelog"]
    import monai_vqgen

    assert metadata["version"] == monai_vqgen.__version__


def test_shared_blocks_are_equal_in_every_configuration():
    files = [json.loads(path.read_text()) for path in sorted(CONFIGS.glob("*.json"))]
    for content in files:
        for prior in content.get("prior_defs", []):
            prior.pop("_disabled_", None)  # what is the same may not be needed everywhere
    for block in ("network_def", "prior_defs", "load_transforms"):
        copies = [json.dumps(content[block], sort_keys=True) for content in files if block in content]
        assert len(set(copies)) == 1, block
