"""Pictures without positions, in color and with labels, through every stage."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import QUANTIZER, TINY, own_error, run

from monai_vqgen.bundles import run_stage
from monai_vqgen.errors import InputError, VQGenError
from monai_vqgen.models import TrainedModel
from monai_vqgen.transforms import LoadSlice

RGB = {**TINY["network_def"], "in_channels": 3, "quantizers": [QUANTIZER, QUANTIZER]}


def write_pictures(folder, *, colors: bool = True, labels: bool = True, count: int = 16) -> None:
    """Red discs and blue squares."""
    folder.mkdir(parents=True)
    rows, columns = np.mgrid[:16, :16] / 16 - 0.5
    table = ["image,label"]
    for i in range(count):
        shape = rows**2 + columns**2 < 0.1 if i % 2 else np.maximum(abs(rows), abs(columns)) < 0.3
        picture = shape[..., None] * np.array([0.2, 0.1, 0.9] if i % 2 else [0.9, 0.1, 0.2]) * (1 - i / 40)
        pixels = (255 * (picture if colors else picture.max(-1))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        table.append(f"{i}.png,{'disc' if i % 2 else 'square'}")
    if labels:
        (folder / "labels.csv").write_text("\n".join(table))


def train_all(folder, **network) -> None:
    """All stages up to the priors."""
    places = {"dataset_dir": folder / "set", "output_dir": folder / "run"}
    run("train", max_epochs=20, learning_rate=0.01, image_interval=20, **places, **network)
    places = {"dataset_dir": folder / "set", "output_dir": folder / "codes", "model": folder / "run" / "model.pt"}
    run("extract_codes", kind=None, **places)
    for level in (0, 1):
        places = {"dataset_dir": folder / "codes", "output_dir": folder / "run", "model": folder / "run"}
        run("train_prior", level=level, image_interval=1, **places)


def stage(name, folder, output, **options) -> None:
    run_stage(name, options={"model": str(folder / "run" / "model.pt"), "output_dir": str(output), **options})


def colors(path) -> tuple[int, ...]:
    return np.asarray(Image.open(path)).shape


@pytest.fixture(scope="module")
def rgb(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rgb")
    write_pictures(folder / "set")
    train_all(folder, network_def=RGB)
    return folder


def test_a_network_of_three_channels_reconstructs_three_and_says_so(rgb):
    recorded = json.loads((rgb / "run" / "model.json").read_text())["architecture"]
    assert (recorded["in_channels"], recorded["out_channels"]) == (3, 3)
    for name in ("reconstructions_epoch0020", "samples_level1_epoch0001"):
        assert colors(rgb / "run" / "images" / f"{name}.png")[2:] == (3,)


def test_samples_of_a_class_are_color_pictures(rgb, tmp_path):
    stage("sample", rgb, tmp_path / "out", num_samples=3, condition={"label": "disc"})
    listed = json.loads((tmp_path / "out" / "samples.json").read_text())["samples"]
    assert [sample["condition"] for sample in listed] == [{"label": "disc"}] * 3
    for sample in listed:
        assert colors(tmp_path / "out" / sample["picture"]) == (16, 16, 3)
        image = LoadSlice(channels=3)(tmp_path / "out" / sample["image"])
        assert nib.load(tmp_path / "out" / sample["image"]).shape == (16, 16, 1, 3)
        shown = np.asarray(Image.open(tmp_path / "out" / sample["picture"])) / 255
        np.testing.assert_allclose(shown, image.numpy().transpose(1, 2, 0), atol=1 / 255)
    assert colors(tmp_path / "out" / "samples.png")[2] >= 3


def test_a_label_that_was_not_in_training_is_refused(rgb, tmp_path):
    with pytest.raises(InputError, match=r"condition label='cone' is not one of \['disc', 'square'\]"):
        stage("sample", rgb, tmp_path / "out", condition={"label": "cone"})
    with pytest.raises(InputError, match="DICOM takes one channel, and the samples have 3"):
        stage("sample", rgb, tmp_path / "dicom", dicom=True)


def test_pictures_come_back_as_pictures_of_the_same_colors(rgb, tmp_path):
    stage("inference", rgb, tmp_path / "out", dataset_dir=str(rgb / "set"))
    names = {path.name for path in (tmp_path / "out").iterdir() if path.name[0] != "."}
    assert names == {f"{i}_recon.png" for i in range(16)}
    model = TrainedModel.from_bundle(rgb / "run", with_priors=False)
    for i in (0, 7):
        given = torch.from_numpy(np.asarray(Image.open(rgb / "set" / f"{i}.png")) / 255).permute(2, 0, 1)[None]
        expected = model.decode(model.encode(given))[0].permute(1, 2, 0).numpy()
        found = np.asarray(Image.open(tmp_path / "out" / f"{i}_recon.png")) / 255
        np.testing.assert_allclose(found, expected, atol=0.5 / 255 + 1e-5)
        assert abs(expected[..., 0] - expected[..., 1]).max() > 0.05, "no gray"


def test_one_picture_is_reconstructed_as_a_folder_of_them(rgb, tmp_path):
    for source, output in ((rgb / "set", "all"), (rgb / "set" / "3.png", "one")):
        stage("inference", rgb, tmp_path / output, dataset_dir=str(source))
    assert (tmp_path / "one" / "3_recon.png").read_bytes() == (tmp_path / "all" / "3_recon.png").read_bytes()


@pytest.mark.parametrize("kind", ["[H, W, C]", "[H, W, 1, C]"])
def test_slices_of_several_channels_are_reconstructed_however_they_are_stored(rgb, tmp_path, kind):
    given_hwc = np.asarray(Image.open(rgb / "set" / "3.png"), dtype=np.float32) / 255
    stored = given_hwc if kind == "[H, W, C]" else given_hwc[:, :, None]
    (tmp_path / "set" / "test").mkdir(parents=True)
    nib.save(nib.Nifti1Image(stored, np.diag([2.0, 2.0, 2.0, 1.0])), tmp_path / "set" / "test" / "a.nii.gz")
    for source, output in ((tmp_path / "set", "folder"), (tmp_path / "set" / "test" / "a.nii.gz", "file")):
        stage("inference", rgb, tmp_path / output, dataset_dir=str(source))
        (path,) = (tmp_path / output).rglob("a_recon.nii.gz")
        found = LoadSlice(channels=3)(path)
        model = TrainedModel.from_bundle(rgb / "run", with_priors=False)
        expected = model.decode(model.encode(LoadSlice(channels=3)(tmp_path / "set/test/a.nii.gz")[None]))[0]
        np.testing.assert_allclose(found.as_tensor(), expected, atol=1e-5)
        assert nib.load(path).shape == (16, 16, 1, 3)
        np.testing.assert_array_equal(nib.load(path).affine, np.diag([2.0, 2.0, 2.0, 1.0]))


def test_evaluation_scores_all_channels_and_refuses_what_takes_one(rgb, tmp_path):
    stage("evaluate", rgb, tmp_path / "out", dataset_dir=str(rgb / "set"), num_samples=4)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["reconstruction"]["psnr"] > metrics["reconstruction"]["baselines"]["all_black"]["psnr"]
    with pytest.raises(InputError, match="codecs and sample_report take one channel, and the images have 3"):
        stage("evaluate", rgb, tmp_path / "codecs", dataset_dir=str(rgb / "set"), codecs=True)


def test_color_pictures_for_a_network_of_one_channel_are_refused_with_the_option(rgb, tmp_path):
    with pytest.raises(RuntimeError) as caught:
        run("train", dataset_dir=rgb / "set", output_dir=tmp_path / "run")
    assert isinstance(own_error(caught.value), VQGenError)
    assert "give --network_def::in_channels 3" in str(own_error(caught.value))
    assert not (tmp_path / "run").exists()


def test_pictures_without_labels_train_priors_without_conditions_which_they_say(tmp_path, caplog):
    caplog.set_level("INFO")
    write_pictures(tmp_path / "set", colors=False, labels=False)
    train_all(tmp_path)
    assert caplog.text.count("The prior learns without conditions: no record has any") == 2
    assert "conditions: none" in (tmp_path / "run" / "model_prior_level1.log").read_text()
    assert json.loads((tmp_path / "run" / "model_prior_level1.json").read_text())["condition"]["categorical"] == {}
    stage("sample", tmp_path, tmp_path / "out", num_samples=2)
    assert colors(tmp_path / "out" / "images" / "sample_0001.png") == (16, 16)
    with pytest.raises(InputError, match="these priors take no condition, but label was given"):
        stage("sample", tmp_path, tmp_path / "no", condition={"label": "disc"})
