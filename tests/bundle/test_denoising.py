"""The overlay that trains on noise, and `inference.json` with shifts: what is seen, compared and written."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from factories import tiny_model
from ignite.engine import Events
from tiny_training import REPOSITORY, TINY, own_error, run, workflow

from monai_vqgen import bundles
from monai_vqgen.__main__ import main
from monai_vqgen.errors import CheckpointError, InputError
from monai_vqgen.models import TrainedModel

OVERLAY = REPOSITORY / "configs" / "denoising.yaml"
DENOISING = {**TINY, "mirror_probability": 0.0, "network_def::finer_dropout": 0.0}
DENOISING.pop("prior_def")


def train(slices, output_dir, **options):
    return run("train", overlay=OVERLAY, dataset_dir=slices, output_dir=output_dir, **{**DENOISING, **options})


def test_slices_are_seen_with_rician_noise_where_they_are_not_black(slices, tmp_path):
    flow = workflow("train", overlay=OVERLAY, dataset_dir=slices, output_dir=tmp_path, noise_sigma=0.2, **DENOISING)
    flow.initialize()
    dataset = flow.parser.get_parsed_content("train::dataset")
    dataset.transform.set_random_state(seed=0)
    plain = workflow("train", dataset_dir=slices, output_dir=tmp_path / "plain")
    plain.initialize()
    clean = torch.stack([item["image"] for item in plain.parser.get_parsed_content("train::dataset")])
    images, seen = (
        torch.stack([item[name] for _ in range(40) for item in dataset]).reshape(40, *clean.shape).double()
        for name in ("image", "seen")
    )
    assert torch.equal(images, clean.double().expand_as(images))
    black = clean == 0
    assert black.any()
    assert not seen[:, black].any()
    added = torch.stack(  # E[m^2] = a^2 + 2 sigma^2
        [
            (noisy[:, i > 0].square() - i[i > 0].square()).mean(1) / 2
            for i, noisy in zip(clean, seen.unbind(1), strict=True)
        ]
    )
    assert added.mean().item() == pytest.approx(0.2**2 / 3, rel=0.2), "sigma is uniform on [0, 0.2]"
    assert (added.std(1) > 0.005).all(), "every look has a sigma of its own"


def test_validation_has_the_same_noise_each_time_and_compares_with_the_clean_slice(slices, tmp_path):
    flow = train(slices, tmp_path)
    evaluator = flow.parser.get_parsed_content("validate::evaluator")
    shown: list = []
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: shown.append(engine.state.batch))
    evaluator.run()
    evaluator.run()
    (seen, images), (again, _) = (
        [torch.stack([torch.as_tensor(item[name]) for item in batch]) for name in ("seen", "image")] for batch in shown
    )
    assert torch.equal(seen, again)
    assert not torch.equal(seen, images)
    network = flow.parser.get_parsed_content("network").eval()
    with torch.no_grad():
        error = (network(seen) - images).square().mean()
    assert evaluator.state.metrics["loss"] == pytest.approx(float(error), rel=1e-4)


def test_a_tiny_training_learns_to_leave_noise_out(slices, tmp_path):
    train(slices, tmp_path, max_epochs=20, learning_rate=0.01)
    model = TrainedModel.from_bundle(tmp_path)
    assert model.record.plane == "coronal"
    losses = json.loads((tmp_path / "history.json").read_text())["validation"]["loss"]
    assert min(losses) < 0.6 * losses[0]


def test_another_noise_is_no_resumption(slices, tmp_path):
    train(slices, tmp_path)
    with pytest.raises(RuntimeError) as refused:
        train(slices, tmp_path, resume=True, max_epochs=3, noise_sigma=0.3)
    assert isinstance(own_error(refused.value), CheckpointError | InputError)
    assert "noise_sigma" in str(own_error(refused.value))


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    grid = np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in (19, 22, 9)), indexing="ij")
    affine = nib.affines.from_matvec(np.array([[0.1, -0.9, 0.05], [1.1, 0.1, 0.1], [0.1, 0.05, -2.0]]), [1, -2, 5])
    path = tmp_path_factory.mktemp("scans") / "sub-01_T1w.nii.gz"
    voxels = np.where(sum(x**2 for x in grid) < 1, 400 + 100 * grid[0], 0)
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), affine), path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model((16, 16), with_priors=False, record={"plane": "axial", "pixel_mm": 1.5}).save(folder)
    return folder


@pytest.mark.filterwarnings("ignore:parsing config_file")
def test_the_verb_writes_what_python_gives_in_the_scans_geometry(scan, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["denoise", str(scan), "--model", str(model / "model.pt")]) == 0
    assert "--shifts 4 --output_postfix denoised" in capsys.readouterr().out
    written = nib.load(tmp_path / "out/denoised/sub-01_T1w_denoised.nii.gz")
    trained = TrainedModel.from_bundle(model)
    expected = trained.reconstruct(scan, shifts=4)
    np.testing.assert_allclose(written.affine, nib.load(scan).affine, atol=1e-5)
    np.testing.assert_allclose(written.get_fdata(), expected[0].numpy(), rtol=1e-3, atol=1e-2)
    assert not np.allclose(written.get_fdata(), trained.reconstruct(scan)[0].numpy(), atol=1)


def test_too_many_shifts_are_refused_before_anything_is_written(scan, model, tmp_path):
    given = {"model": str(model / "model.pt"), "dataset_dir": str(scan), "output_dir": str(tmp_path / "out")}
    with pytest.raises(InputError, match="whole number from 1 to 64"):
        bundles.run_stage("inference", options={**given, "shifts": 65})
    assert not list((tmp_path / "out").rglob("*.nii.gz"))
