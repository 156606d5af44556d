"""What the MONAI Label app checks before it works, tested without MONAI Label."""

from __future__ import annotations

import gzip
import json
import tempfile
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from factories import POSITIONS, random_statistics, tiny_model
from PIL import Image

from monai_vqgen.anomaly import HealthySlices
from monai_vqgen.errors import CheckpointError, InputError, ScanError
from monai_vqgen.monailabel.anomaly import AnomalyMapTask, AnomalyTask, LatestScores
from monai_vqgen.monailabel.knobs import ReconstructionKnobs, SamplingKnobs, TrainingKnobs, asked_conditions
from monai_vqgen.monailabel.reconstruct import check_size
from monai_vqgen.monailabel.served_bundle import ServedBundle
from monai_vqgen.monailabel.synthesis import CompletionTask, SamplingTask, _from_file, _region
from monai_vqgen.monailabel.train import place_model


@pytest.fixture(autouse=True)
def answers(tmp_path, monkeypatch):
    """Answers, which a server removes when it has sent them, go where pytest cleans up."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.mark.parametrize("given", [10_000, -1, 1.5, "many", True, float("nan"), float("inf"), [1], {}, "1e400"])
def test_a_count_outside_its_range_or_no_count_is_refused_by_name(given):
    with pytest.raises(InputError, match="num_samples is"):
        SamplingKnobs.of({"num_samples": given})


def test_numbers_come_as_numbers_or_as_text_and_large_seeds_keep_every_digit():
    assert SamplingKnobs.of({"num_samples": "64"}).num_samples == 64
    assert SamplingKnobs.of({"num_samples": 4.0}).num_samples == 4
    assert SamplingKnobs.of({"num_samples": "", "seed": None}).num_samples == 1
    assert SamplingKnobs.of({"seed": 2**63 - 2}).seed == 2**63 - 2
    assert SamplingKnobs.of({"seed": str(2**63 - 2)}).seed == 2**63 - 2
    assert SamplingKnobs.of({"temperature": "0.5"}).temperature == 0.5
    with pytest.raises(InputError, match=r"temperature is -1; it should be greater than or equal to 0\.01"):
        SamplingKnobs.of({"temperature": -1})
    with pytest.raises(InputError, match=r"temperature is nan"):
        SamplingKnobs.of({"temperature": float("nan")})


def test_settings_that_are_left_out_are_the_recorded_ones():
    assert SamplingKnobs.of({"image": "x"}).settings() == {"temperature": None, "top_k": None, "top_p": None}
    assert SamplingKnobs.defaults()["temperature"] == ""


def test_words_and_flags_are_one_of_those_allowed():
    assert ReconstructionKnobs.of({"plane": "axial"}).plane == "axial"
    flags = [TrainingKnobs.of({"replace": given}).replace for given in (True, "True", "false", None)]
    assert flags == [True, True, False, False]
    for wrong in ({"plane": ["axial"]}, {"intensity": "loud"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            ReconstructionKnobs.of(wrong)
    with pytest.raises(InputError, match="replace is 7"):
        TrainingKnobs.of({"replace": 7})


def test_conditions_that_the_priors_were_not_trained_with_are_refused_and_empty_ones_left_out():
    assert asked_conditions({"sex": "F", "age": "", "seed": 3}, ["sex", "age"]) == {"sex": "F"}
    with pytest.raises(InputError, match="conditioned on position_mm, not on age"):
        asked_conditions({"age": 30}, ["position_mm"])


def test_a_job_takes_the_defaults_and_refuses_what_is_out_of_range():
    assert TrainingKnobs.of({"max_epochs": "3"}).max_epochs == 3
    job = TrainingKnobs.of({}).model_dump()
    assert {name: "" if value is None else value for name, value in job.items()} == TrainingKnobs.defaults()
    for wrong in ({"max_epochs": 0}, {"learning_rate": 5}, {"plane": "oblique"}, {"max_minutes": -1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            TrainingKnobs.of(wrong)


def test_replaced_weights_are_served_and_the_earlier_ones_are_kept(tmp_path):
    served, new = tmp_path / "model.pt", tmp_path / "new.pt"
    served.write_bytes(b"earlier")
    new.write_bytes(b"new")
    beside = place_model(new, served, stamp="1", replace=False)
    assert (beside.name, beside.read_bytes(), served.read_bytes()) == ("model_trained_1.pt", b"new", b"earlier")
    assert place_model(new, served, stamp="2", replace=True) == served
    assert served.read_bytes() == b"new"
    assert (tmp_path / "model_before_2.pt").read_bytes() == b"earlier"


def test_weights_move_with_their_record(tmp_path):
    (tmp_path / "run").mkdir()
    for folder, text in ((tmp_path, "earlier"), (tmp_path / "run", "new")):
        (folder / "model.pt").write_text(text)
        (folder / "model.json").write_text(text)
    place_model(tmp_path / "run" / "model.pt", tmp_path / "model.pt", stamp="2", replace=True)
    assert (tmp_path / "model.json").read_text() == "new"
    assert (tmp_path / "model_before_2.json").read_text() == "earlier"


def test_sampling_needs_priors_beside_the_weights_that_draw_and_completion_beside_the_faithful_ones(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps({"version": "1"}))
    (tmp_path / "configs" / "inference.json").write_text("{}")
    tiny_model((16, 16), with_priors=False).save(tmp_path / "models")
    bundle = ServedBundle(tmp_path)
    sampling, completion = SimpleNamespace(bundle=bundle), SimpleNamespace(bundle=bundle)
    assert not SamplingTask.is_valid(sampling)
    tiny_model((16, 16)).save(tmp_path / "models" / "generative")
    assert SamplingTask.is_valid(sampling)
    assert not CompletionTask.is_valid(completion)


def test_a_mask_of_another_size_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    image = Image.fromarray(np.eye(8, dtype=np.uint8))
    image.save(tmp_path / "mask.png")
    nib.save(nib.Nifti1Image(np.eye(8, dtype=np.uint8)[..., None], np.eye(4)), tmp_path / "mask.nii.gz")
    for name in ("mask.png", "mask.nii.gz"):
        assert _region({"label": tmp_path / name}, (8, 8)).numpy().tolist() == np.eye(8, dtype=bool).tolist()

    def unpacked(*_, **__):
        raise AssertionError("unpacked")

    monkeypatch.setattr(Image.Image, "load", unpacked)
    monkeypatch.setattr("monai_vqgen.monailabel.synthesis.read_nifti", unpacked)
    for name in ("mask.png", "mask.nii.gz"):
        with pytest.raises(InputError, match=r"the mask has shape \(8, 8\), the slice \(8, 9\)"):
            _region({"label": tmp_path / name}, (8, 9))


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"metadata\.json is missing"):
        ServedBundle(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps({"version": "1"}))
    with pytest.raises(InputError, match=r"inference\.json is missing"):
        ServedBundle(tmp_path)


def test_a_mask_starts_no_program_and_unfolds_to_little_whatever_its_name_says(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: started.append("Ghostscript"))
    Image.new("L", (9, 8)).save(tmp_path / "page.eps")
    (tmp_path / "page.eps").rename(tmp_path / "eps.png")
    header = nib.Nifti1Image(np.zeros((8, 9, 1), dtype=np.uint8), np.eye(4)).header
    header["vox_offset"] = 2**30
    bomb = gzip.compress(header.binaryblock + bytes(2**28), 9)
    (tmp_path / "extensions.nii.gz").write_bytes(bomb)
    nib.save(nib.MGHImage(np.ones((8, 9, 1), dtype=np.uint8), np.eye(4)), tmp_path / "other.mgz")
    why = {"extensions.nii.gz": "announces 1.00 GiB, and .* are allowed", "missing.png": "no file", ".": "no file"}
    for name in ("eps.png", "other.mgz", *why):
        with pytest.raises(ScanError, match=rf"the mask cannot be read \(.*{why.get(name, '')}"):
            _from_file(tmp_path / name, (8, 9))
    assert not started
    scaled = nib.Nifti1Image(np.eye(8, 9)[..., None] * 0.5, np.eye(4))
    nib.save(scaled, tmp_path / "half.nii.gz")
    assert np.array_equal(_from_file(tmp_path / "half.nii.gz", (8, 9)), np.eye(8, 9) > 0)


def test_a_box_of_parts_of_pixels_or_without_end_is_refused():
    assert int(_region({"box": [0, 0.0, 4, "4"]}, (8, 9)).sum()) == 16
    for box in ([0.5, 0, 4, 4], [0, 0, float("inf"), 4], [0, 0, float("nan"), 4]):
        with pytest.raises(InputError, match=r"box is \[0.*; give four whole numbers"):
            _region({"box": box}, (8, 9))


def test_a_mask_that_lies_elsewhere_than_the_slice_is_refused(tmp_path):
    affine = np.array([[0, -2.0, 0, 60], [-2.0, 0, 0, 55], [0, 0, -4.0, 30], [0, 0, 0, 1]])
    flipped = affine @ np.array([[-1, 0, 0, 7], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    above, near = affine.copy(), affine.copy()
    above[2, 3] += 4
    near[:3, 3] += 0.1
    for name, mask_affine in {"same": affine, "near": near, "flipped": flipped, "above": above}.items():
        nib.save(nib.Nifti1Image(np.eye(8, 9, dtype=np.uint8)[..., None], mask_affine), tmp_path / f"{name}.nii.gz")
    for name in ("same", "near"):
        assert _region({"label": tmp_path / f"{name}.nii.gz"}, (8, 9), affine).sum() == 8
    for name in ("flipped", "above"):
        with pytest.raises(InputError, match="the mask lies elsewhere than the slice"):
            _region({"label": tmp_path / f"{name}.nii.gz"}, (8, 9), affine)
        assert _region({"label": tmp_path / f"{name}.nii.gz"}, (8, 9), np.eye(4)).sum() == 8  # a picture lies nowhere


def test_more_pixels_than_a_client_may_ask_for_are_refused():
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    for shape, pixel_mm in (
        ((512, 512, 512), 1.0),
        ((512, 512, 512), None),
        ((2048, 2048), None),
        ((2048, 1, 2048), 2),
    ):
        check_size(shape, affine, "axial", pixel_mm)
    check_size((16, 16, 512), affine, "coronal", 0.5)
    check_size((512, 512, 600), np.diag([-0.98, -0.98, 1.0, 1.0]), "axial", 1.736)  # a CT of the trunk
    for shape, plane, pixel_mm in (
        ((512, 512, 513), "axial", 1.0),
        ((2049, 2048), "axial", None),
        ((32, 32, 4), "axial", 0.01),
        ((16, 16, 512), "coronal", 0.05),
    ):
        with pytest.raises(InputError, match="give a larger pixel_mm"):
            check_size(shape, affine, plane, pixel_mm)


@pytest.fixture
def served(tmp_path):
    """A tiny bundle with statistics of healthy slices, and a request for a ball as the image."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps({"version": "1"}))
    (tmp_path / "configs" / "inference.json").write_text("{}")
    model = tiny_model((48, 48), condition=POSITIONS, num_layers=1)
    model.save(tmp_path / "models")
    random_statistics(model).save(tmp_path / "models" / "healthy.safetensors")
    axes = np.meshgrid(*(np.linspace(-1.2, 1.2, 40),) * 3, indexing="ij")
    ball = np.where(sum(x**2 for x in axes) < 1, 400 + 100 * np.sin(4 * axes[0]), 0).astype(np.float32)
    affine = np.array([[0, -3.0, 0, 5], [-3.0, 0, 0, 7], [0, 0, 3.0, -9], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(ball, affine), tmp_path / "ball.nii.gz")
    return ServedBundle(tmp_path), {"image": str(tmp_path / "ball.nii.gz"), "device": "cpu"}


def test_what_is_unusual_is_marked_in_the_studys_geometry_and_a_threshold_computes_nothing_anew(served, monkeypatch):
    bundle, request = served
    scores = LatestScores(bundle)
    task, maps = SimpleNamespace(scores=scores), SimpleNamespace(scores=scores)
    assert AnomalyTask.is_valid(task)
    image = nib.load(AnomalyMapTask.__call__(maps, request)[0])
    study = nib.load(request["image"])
    monkeypatch.setattr("monai_vqgen.monailabel.anomaly.anomaly_scan", None)
    for threshold in ("", 1.5, "4"):
        path, answer = AnomalyTask.__call__(task, {**request, "threshold": threshold})
        mask = nib.load(path)
        assert (mask.shape, mask.get_data_dtype()) == (study.shape, np.uint8)
        np.testing.assert_allclose(mask.affine, study.affine)
        assert answer["threshold"] == float(threshold or 3.0)
        np.testing.assert_array_equal(np.asarray(mask.dataobj), image.get_fdata() > answer["threshold"])
        assert 0 < answer["voxels"] == np.asarray(mask.dataobj).sum()


def test_other_intensities_or_another_scan_of_the_name_are_scored_anew(served):
    bundle, request = served
    scores = LatestScores(bundle)
    first = scores(request)[0].scores_s
    assert (scores({**request, "match": "false"})[0].scores_s != first).any()
    study = nib.load(request["image"])
    nib.save(nib.Nifti1Image(study.get_fdata(dtype=np.float32)[::-1] ** 2, study.affine), request["image"])
    assert (scores(request)[0].scores_s != first).any()


def test_statistics_that_are_missing_of_other_weights_or_without_a_threshold_are_told(served, tmp_path):
    bundle, request = served
    with pytest.raises(InputError, match="conditioned on nothing, not on position_mm"):
        LatestScores(bundle)({**request, "position_mm": 60})
    healthy = HealthySlices.load(bundle.statistics)
    healthy._replace(threshold=float("nan")).save(bundle.statistics)
    with pytest.raises(InputError, match="give threshold"):
        LatestScores(bundle)(request)
    assert LatestScores(bundle)({**request, "threshold": 2})[1]["threshold"] == 2
    healthy._replace(fingerprint="other").save(bundle.statistics)
    with pytest.raises(CheckpointError, match="other weights"):
        LatestScores(bundle)(request)
    bundle.statistics.unlink()
    assert not AnomalyTask.is_valid(SimpleNamespace(scores=LatestScores(bundle)))
    with pytest.raises(CheckpointError, match="no statistics"):
        LatestScores(bundle)(request)
