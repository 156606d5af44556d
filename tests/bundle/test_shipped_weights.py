"""The weights that ship work with the bundle's defaults, belong together, and are what the model card says."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from skimage.metrics import structural_similarity

from monai_vqgen.anomaly.healthy import model_fingerprint
from monai_vqgen.bundles import bundle_root, run_stage
from monai_vqgen.data import SliceOptions, extract_slices
from monai_vqgen.models import TrainedModel, healthy_beside
from monai_vqgen.weights import fingerprint

MODELS = bundle_root() / "models"
WEIGHTS = sorted(path.relative_to(MODELS).as_posix() for path in MODELS.rglob("*.pt"))
LARGEST_FILE = 25 * 2**20  # bytes; the Model Zoo's README


@pytest.mark.parametrize("name", WEIGHTS)
def test_they_are_plain_tensors_in_a_file_of_the_zoos_size(name):
    assert (MODELS / name).stat().st_size <= LARGEST_FILE
    weights = torch.load(MODELS / name, weights_only=True)
    assert all(type(value) is torch.Tensor for value in weights.values())
    assert all(bool(torch.isfinite(value).all()) for value in weights.values() if value.is_floating_point())


def test_the_priors_are_of_the_autoencoder_that_ships():
    parser = ConfigParser()
    parser.read_config(str(bundle_root() / "configs" / "inference.json"))
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(MODELS / "model.pt", weights_only=True))
    for level in (0, 1):
        sidecar = json.loads((MODELS / f"model_prior_level{level}.json").read_text())
        assert sidecar["autoencoder_fingerprint"] == fingerprint(network)
        assert set(sidecar["condition"]["continuous"]) == {"position_mm", "age"}
        assert set(sidecar["condition"]["categorical"]) == {"sex"}


def test_each_purpose_has_weights_of_its_own_and_their_name_finds_them():
    assert WEIGHTS == [
        "denoising/model.pt",
        "generative/model.pt",
        "generative/model_prior_level0.pt",
        "model.pt",
        "model_prior_level0.pt",
        "model_prior_level1.pt",
    ]
    faithful, generative = TrainedModel.from_bundle("faithful"), TrainedModel.from_bundle("generative")
    assert faithful.record.fingerprint == TrainedModel.from_bundle().record.fingerprint != generative.record.fingerprint
    assert (faithful.grids, generative.grids) == (((16, 16), (32, 32)), ((14, 12),))
    assert generative.record.image_size == (112, 96)
    denoising = TrainedModel.from_bundle("denoising")
    assert (denoising.priors, denoising.record.license) == ((), faithful.record.license)
    assert denoising.record.fingerprint not in (faithful.record.fingerprint, generative.record.fingerprint)


def test_the_statistics_of_healthy_slices_are_of_the_weights_beside_them_and_cover_their_positions():
    healthy, model = healthy_beside("faithful"), TrainedModel.from_bundle("faithful")
    assert healthy is not None
    assert healthy.fingerprint == model_fingerprint(model)
    assert healthy.mean_pnhw.shape[2:] == model.record.image_size
    low, high = model.condition.continuous["position_mm"]
    assert low <= healthy.positions_p.min() <= low + 3
    assert high - 3 <= healthy.positions_p.max() <= high
    assert np.isfinite(healthy.threshold)
    assert healthy.deviation_pnhw.min() > 0
    assert (MODELS / "healthy.safetensors").stat().st_size < 7 * 2**20
    assert healthy_beside("generative") is None


def test_blank_cells_of_the_generative_weights_have_one_code():
    model = TrainedModel.from_bundle("generative")
    images = torch.zeros(1, 1, 112, 96)
    images[:, :, 48:56, 40:48] = 0.5  # one cell, and the eight around it are not blank
    (codes,) = model.encode(images)
    assert int((codes == 1024).sum()) == 14 * 12 - 9
    again = model.decode([codes])
    assert again[..., :32, :].mean() < 0.2 * again[..., 48:56, 40:48].mean()


def test_the_model_card_names_data_licence_command_and_use():
    card = (bundle_root() / "docs" / "README.md").read_text()
    for word in ("ds002748", "CC0", "make reproduce", "not for diagnosis"):
        assert word in card


def test_samples_come_with_position_sex_and_age_and_nothing_else_to_set(tmp_path):
    given = {"position_mm": 65, "sex": "f", "age": 30}
    run_stage("sample", options={"output_dir": str(tmp_path / "out"), "num_samples": 2, "seed": 5, **given})
    content = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert [entry["condition"] for entry in content["samples"]] == [given | {"position_mm": 65.0, "age": 30.0}] * 2
    images = [nib.load(tmp_path / "out" / entry["image"]).get_fdata() for entry in content["samples"]]
    assert all(image.shape == (112, 96, 1) for image in images)
    for image in images:  # a brain in the middle of darkness
        assert image[32:80, 24:72].mean() > 0.3
        assert max(image[:2].mean(), image[-2:].mean(), image[:, :2].mean(), image[:, -2:].mean()) < 0.05
    assert np.abs(images[0] - images[1]).mean() > 0.01, "two samples are two brains"


@pytest.mark.real
def test_slices_of_test_subjects_come_back_as_the_card_says(tmp_path, real_data):
    split = json.loads((bundle_root().parent / "configs" / "splits" / "ds002748.json").read_text())
    for subject in split["test"][:4]:
        (scan,) = (real_data / "ds002748").rglob(f"{subject}_T1w.nii.gz")
        (tmp_path / "scans").mkdir(exist_ok=True)
        (tmp_path / "scans" / scan.name).symlink_to(scan)
    slices = SliceOptions(positions=[50.0, 65.0, 80.0], image_size=128, pixel_mm=1.736, on_trim="warn")
    extract_slices(tmp_path / "scans", tmp_path / "slices", slices=slices, num_workers=0, progress=False)
    folder = tmp_path / "slices" / "images"  # by itself: no datalist, every slice is reconstructed
    run_stage("inference", options={"dataset_dir": str(folder), "output_dir": str(tmp_path / "out"), "pixel_mm": None})
    paths = sorted(folder.glob("*.nii.gz"))
    assert len(paths) == 12
    similarities, decibels = [], []
    for path in paths:
        image = nib.load(path).get_fdata()[:, :, 0]
        pred = nib.load(tmp_path / "out" / f"{path.name.removesuffix('.nii.gz')}_recon.nii.gz").get_fdata()[:, :, 0]
        options = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        similarities.append(structural_similarity(image, pred, **options))
        decibels.append(-10 * np.log10(np.square(image - pred).mean()))
    assert np.mean(decibels) > 32
    assert np.mean(similarities) > 0.95
