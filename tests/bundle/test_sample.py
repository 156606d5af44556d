"""`sample.json` draws slices that belong to their priors, reproducibly, and refuses what cannot work."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from factories import tiny_autoencoder, tiny_model
from PIL import Image

from monai_vqgen.bundles import run_stage
from monai_vqgen.errors import CheckpointError, CodesMismatchError, InputError, OutputExistsError
from monai_vqgen.files import read_json, write_json
from monai_vqgen.inferers import AncestralSampler
from monai_vqgen.models import SamplingSettings, TrainedModel, draw_conditions, sample_files
from monai_vqgen.models.samples import sample_affines
from monai_vqgen.networks import ConditionEncoder
from monai_vqgen.transforms.geometry import PLANES

CODES, SIZE = 12, (24, 32)


def write_run(folder: Path, condition: ConditionEncoder | None, image_size=SIZE, **options) -> TrainedModel:
    """A tiny, untrained but complete model in a folder."""
    model = tiny_model(image_size, autoencoder=tiny_autoencoder(CODES), condition=condition, **options)
    model.save(folder, overwrite=True)
    return model


@pytest.fixture(scope="module")
def conditioned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("conditioned")
    write_run(folder, ConditionEncoder({"position_mm": (40.0, 97.0)}, {"sex": ["F", "M"]}))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    write_run(folder, None)
    return folder


def sample(run: Path, output: Path, **options) -> dict:
    where = {"model": str(run / "model.pt"), "priors_dir": str(run), "output_dir": str(output)}
    run_stage("sample", options={**where, "num_samples": 3, "seed": 7, **options})
    return json.loads((output / "samples.json").read_text())


def test_samples_are_written_as_nifti_png_and_one_picture(tmp_path, conditioned):
    content = sample(conditioned, tmp_path, position_mm=65, pixel_mm=2.0)
    assert (content["seed"], content["num_samples"], content["temperature"]) == (7, 3, [1.0, 1.0])
    assert len(content["samples"]) == 3
    for entry in content["samples"]:
        assert entry["synthetic"] is True
        assert entry["condition"]["position_mm"] == 65
        image = nib.load(tmp_path / entry["image"])
        assert image.shape == (24, 32, 1)
        assert nib.aff2axcodes(image.affine) == PLANES["axial"]
        np.testing.assert_allclose(image.header.get_zooms()[:2], 2.0)
        picture = np.asarray(Image.open(tmp_path / entry["picture"]))
        np.testing.assert_array_equal(picture, np.round(image.get_fdata()[..., 0] * 255))
        described = Image.open(tmp_path / entry["picture"]).text["Description"]
        assert described.startswith("Synthetic: seed 7, temperature 1.0")
        assert "; 65 mm" in described
    assert np.asarray(Image.open(tmp_path / "samples.png")).shape[0] >= 48


def test_the_picture_of_all_samples_has_a_caption_each_and_says_how_they_were_drawn(tmp_path, conditioned, monkeypatch):
    drawn = {}
    monkeypatch.setattr(sample_files, "save_grid", lambda images, path, **told: drawn.update(told, name=path.name))
    sample(conditioned, tmp_path, position_mm=65)
    assert drawn["name"] == "samples.png"
    assert len(drawn["marks"]) == 3
    assert all(mark.startswith("65 mm") for mark in drawn["marks"])
    assert drawn["title"].startswith("Synthetic: seed 7, temperature 1.0")


def test_captures_of_samples_say_that_they_are_nobodys_scans(tmp_path, conditioned):
    pydicom = pytest.importorskip("pydicom")
    sample(conditioned, tmp_path, position_mm=65, dicom=True)
    for number in range(3):
        (path,) = (tmp_path / "dicom" / f"sample_{number:04d}").iterdir()
        capture = pydicom.dcmread(path)
        assert capture.PatientID == f"SYNTHETIC-7-{number:04d}"
        assert capture.DerivationDescription.startswith("Synthetic, not a scan. Seed 7")
        assert capture.SeriesDescription == "SYNTHETIC (monai_vqgen)"
        gray = capture.pixel_array * float(capture.RescaleSlope) + float(capture.RescaleIntercept)
        image = nib.load(tmp_path / "images" / f"sample_{number:04d}.nii.gz").get_fdata()[:, :, 0]
        assert np.abs(gray - image).max() <= 1 / 65535


def test_samples_have_the_size_plane_and_pixels_of_the_slices_that_the_priors_learned_from(tmp_path):
    (tmp_path / "run").mkdir()
    write_run(tmp_path / "run", None, (20, 30), record={"plane": "coronal", "pixel_mm": 3.472})
    content = sample(tmp_path / "run", tmp_path / "out", num_samples=1)
    image = nib.load(tmp_path / "out" / content["samples"][0]["image"])
    assert image.shape == (20, 30, 1)
    assert nib.aff2axcodes(image.affine) == PLANES["coronal"]
    np.testing.assert_allclose(image.header.get_zooms()[:2], 3.472)
    assert (content["plane"], content["pixel_mm"]) == ("coronal", 3.472)
    given = sample(tmp_path / "run", tmp_path / "given", num_samples=1, plane="sagittal", pixel_mm=2.0)
    image = nib.load(tmp_path / "given" / given["samples"][0]["image"])
    assert nib.aff2axcodes(image.affine) == PLANES["sagittal"]
    np.testing.assert_allclose(image.header.get_zooms()[:2], 2.0)


def test_priors_whose_grids_are_not_their_slices_are_refused(tmp_path):
    (tmp_path / "run").mkdir()
    write_run(tmp_path / "run", None)
    for level in (0, 1):
        path = tmp_path / "run" / f"model_prior_level{level}.json"
        write_json(path, {**read_json(path), "image_size": [40, 30]}, sealed=True)
    with pytest.raises(CheckpointError, match=r"\(40, 30\)"):
        sample(tmp_path / "run", tmp_path / "out")


def test_a_position_counts_wherever_it_is_given(tmp_path, conditioned):
    for name, options in {"own": {"position_mm": 50}, "condition": {"condition": {"position_mm": 50}}}.items():
        content = sample(conditioned, tmp_path / name, **options)
        assert [entry["condition"]["position_mm"] for entry in content["samples"]] == [50] * 3
    with pytest.raises(InputError, match="position_mm is given twice"):
        sample(conditioned, tmp_path / "both", position_mm=50, condition={"position_mm": 60})


def test_samples_are_the_samplers_codes_decoded(tmp_path, plain):
    content = sample(plain, tmp_path, temperature=0.7, top_k=5)
    model = TrainedModel.from_bundle(plain)
    codes = AncestralSampler(model.priors, temperature=0.7, top_k=5).sample([(3, 4), (6, 8)], num_samples=3, seed=7)
    expected = model.autoencoder.decode(codes).detach().clamp(0, 1)[:, 0].numpy()
    for index, entry in enumerate(content["samples"]):
        np.testing.assert_allclose(nib.load(tmp_path / entry["image"]).get_fdata()[..., 0], expected[index], atol=1e-5)


def test_the_recorded_settings_are_used_unless_others_are_given(tmp_path):
    recorded = SamplingSettings((0.5, 0.9), (3, None), (None, 0.95))
    model = write_run(tmp_path / "run", None, settings=recorded)
    content = sample(tmp_path / "run", tmp_path / "out")
    assert [content[name] for name in recorded._fields] == [list(values) for values in recorded]
    codes = AncestralSampler(model.priors, temperature=[0.5, 0.9], top_k=[3, None], top_p=[None, 0.95]).sample(
        [(3, 4), (6, 8)], num_samples=3, seed=7
    )
    for image, entry in zip(model.decode(codes), content["samples"], strict=True):
        np.testing.assert_allclose(nib.load(tmp_path / "out" / entry["image"]).get_fdata()[..., 0], image[0], atol=1e-5)
    other = sample(tmp_path / "run", tmp_path / "other", temperature=[1.0, 0.9])
    assert (other["temperature"], other["top_k"]) == ([1.0, 0.9], [3, None])


def test_a_sample_depends_on_seed_and_index_alone(tmp_path, conditioned):
    def images(name: str, **options) -> list[np.ndarray]:
        content = sample(conditioned, tmp_path / name, **options)
        return [nib.load(tmp_path / name / entry["image"]).get_fdata() for entry in content["samples"]]

    first, again = images("first"), images("again", num_samples=2, batch_size=1)
    other = images("other", seed=8)
    for index in range(2):
        np.testing.assert_allclose(again[index], first[index], atol=1e-5)
    assert not np.allclose(other[0], first[0])


def test_positions_not_given_are_drawn_from_the_trained_range(tmp_path, conditioned):
    content = sample(conditioned, tmp_path, condition={"sex": "F"})
    positions = [entry["condition"]["position_mm"] for entry in content["samples"]]
    assert len(set(positions)) == 3
    assert all(40 <= position <= 97 for position in positions)
    assert {entry["condition"]["sex"] for entry in content["samples"]} == {"F"}


def test_conditions_cover_the_range_evenly(conditioned):
    encoder = TrainedModel.from_bundle(conditioned).condition
    drawn = draw_conditions(encoder, 2000, seed=1)
    positions = np.array([values["position_mm"] for values in drawn])
    counts = np.histogram(positions, bins=4, range=(40, 97))[0]
    assert counts.min() > 430
    assert 900 < sum(values["sex"] == "F" for values in drawn) < 1100
    assert draw_conditions(encoder, 3, seed=1) == drawn[:3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 1.5}, "top_p"),
        ({"position_mm": 10}, "position_mm"),
        ({"condition": {"age": 30}}, "age"),
    ],
)
def test_arguments_that_cannot_work_are_named(tmp_path, conditioned, options, message):
    with pytest.raises(InputError, match=message):
        sample(conditioned, tmp_path, **options)
    assert not (tmp_path / "samples.json").exists()


def test_a_condition_for_unconditional_priors_is_refused(tmp_path, plain):
    with pytest.raises(InputError, match="position_mm"):
        sample(plain, tmp_path, position_mm=65)


def test_priors_of_another_autoencoder_are_refused(tmp_path, plain):
    tiny_model(SIZE, autoencoder=tiny_autoencoder(CODES, seed=99), with_priors=False).save(tmp_path)
    for file in plain.glob("model_prior_level*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CodesMismatchError, match="another autoencoder"):
        sample(tmp_path, tmp_path / "out")


def test_a_missing_level_and_a_damaged_sidecar_are_named(tmp_path, plain):
    for file in plain.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model_prior_level1.json").unlink()
    with pytest.raises(CheckpointError, match="level 1"):
        sample(tmp_path, tmp_path / "out")
    (tmp_path / "model_prior_level1.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        sample(tmp_path, tmp_path / "out")


def test_earlier_samples_are_not_overwritten_silently(tmp_path, plain, caplog):
    sample(plain, tmp_path)
    with pytest.raises(OutputExistsError, match=r"samples\.json"):
        sample(plain, tmp_path)
    (tmp_path / "samples.json").unlink()  # as after a kill
    with pytest.raises(OutputExistsError, match=r"images/sample_0000"):
        sample(plain, tmp_path)
    with caplog.at_level("INFO"):
        sample(plain, tmp_path, overwrite=True, num_samples=1)
    assert "1 samples in" in caplog.text
    assert ".partial." not in caplog.text  # where they were until they replaced the earlier ones
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["sample_0000.nii.gz", "sample_0000.png"]


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_the_affine_of_a_sample_places_its_middle_at_its_position(plane):
    affine = sample_affines(plane, (20, 30), 1.5, [65.0])[0].numpy()
    assert nib.aff2axcodes(affine) == PLANES[plane]
    middle = affine @ [9.5, 14.5, 0, 1]
    axis = {"axial": 2, "coronal": 1, "sagittal": 0}[plane]
    towards = {"axial": -1, "coronal": -1, "sagittal": 1}[plane]
    expected = np.zeros(3)
    expected[axis] = towards * 65.0
    np.testing.assert_allclose(middle[:3], expected, atol=1e-9)
