"""`evaluate_anomaly.json` measures and writes statistics; `anomaly.json` takes them and maps scans where they lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from factories import POSITIONS, random_statistics, tiny_model, write_slices
from scipy import ndimage

from monai_vqgen.anomaly import HealthySlices
from monai_vqgen.bundles import run_stage
from monai_vqgen.errors import CheckpointError, DatalistError, InputError, ScanError
from monai_vqgen.evaluation import AnomalyEvaluation
from monai_vqgen.evaluation.lesions import _mean_brain, _Slices
from monai_vqgen.models import TrainedModel, anomaly_names, anomaly_scan
from monai_vqgen.models.anomaly_scans import healthy_beside
from monai_vqgen.models.scan_slices import brain_extent, cut_scan

OBLIQUE = np.array([[0, -3.0, 0, 5], [-3.0, 0, 0, 7], [0, 0, 3.0, -9], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Untrained weights of slices of 48 pixels of 3 mm."""
    folder = tmp_path_factory.mktemp("run")
    tiny_model((48, 48), condition=POSITIONS, num_layers=1).save(folder)
    return folder / "model.pt"


def blob(size: int = 40) -> np.ndarray:
    """A ball of 100 mm with waves in it, of 3 mm voxels."""
    axes = np.meshgrid(*(np.linspace(-1.2, 1.2, size),) * 3, indexing="ij")
    waves = 400 + 100 * np.sin(4 * axes[0]) * np.cos(3 * axes[1]) + 50 * axes[2]
    return np.where(sum(x**2 for x in axes) < 1, waves, 0).astype(np.float32)


def write_scan(path: Path, voxels: np.ndarray, affine: np.ndarray = OBLIQUE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def test_what_was_cut_from_a_scan_comes_back_to_its_place(model):
    trained, voxels = TrainedModel.from_bundle(model), blob()
    cut = cut_scan(trained, voxels, OBLIQUE)
    assert cut.images_nhw.shape == (len(cut.positions_mm), 48, 48)
    assert cut.positions_mm == pytest.approx([42.0 + 3 * i for i in range(len(cut.positions_mm))])
    back = cut.back(cut.images_nhw, voxels.shape, OBLIQUE)
    seen = back.any(axis=(0, 1))
    assert 0 < seen.sum() == len(cut.planes) < len(seen)
    low, high = cut.prepared.window
    np.testing.assert_allclose(back[:, :, seen], np.clip((voxels[:, :, seen] - low) / (high - low), 0, 1), atol=0.02)
    assert cut.left_out == (voxels.any(axis=(0, 1)).sum()) - len(cut.planes)


def test_a_brain_of_another_size_is_cut_as_if_its_voxels_were_larger_and_comes_back_to_its_place(model):
    trained, voxels = TrainedModel.from_bundle(model), blob()
    plain = cut_scan(trained, voxels, OBLIQUE)
    extent = brain_extent(plain.images_nhw)
    assert extent == pytest.approx([100 / 3] * 2, abs=2)  # the ball of 100 mm in pixels of 3 mm
    cut = cut_scan(trained, voxels, OBLIQUE, brain_mm=1.2 * extent * plain.pixel_mm)
    assert cut.scaled == pytest.approx([1.2] * 3)
    larger = cut_scan(trained, voxels, OBLIQUE @ np.diag([1.2, 1.2, 1.2, 1]))
    assert cut.positions_mm == pytest.approx(larger.positions_mm)
    np.testing.assert_allclose(cut.images_nhw, larger.images_nhw, atol=1e-5)
    assert brain_extent(cut.images_nhw) == pytest.approx(1.2 * extent, abs=1)
    back = cut.back(cut.images_nhw, voxels.shape, OBLIQUE)
    seen = back.any(axis=(0, 1))
    low, high = cut.prepared.window
    away = np.abs(back[:, :, seen] - np.clip((voxels[:, :, seen] - low) / (high - low), 0, 1))
    inner = ndimage.binary_erosion(voxels[:, :, seen] > 0, np.ones((7, 7, 1)))  # two resamplings blur the edge
    assert 0 < np.mean(away[inner]) < 0.002  # half a voxel beside its place it is 0.017
    assert seen.sum() == len(cut.planes)


def test_factors_differ_between_rows_and_columns_and_none_is_beyond_what_brains_differ_by(model):
    trained = TrainedModel.from_bundle(model)
    plain = cut_scan(trained, blob(), OBLIQUE)
    own_mm = brain_extent(plain.images_nhw) * plain.pixel_mm
    for factors in ([1.1, 0.98], [1.34, 1.34], [0.98, 1.1], [1.0, 1.0]):
        cut = cut_scan(trained, blob(), OBLIQUE, brain_mm=own_mm * factors)
        assert cut.scaled == pytest.approx((*factors, np.sqrt(np.prod(factors))))
        assert not cut.kept
    for factors in ([1.36, 1.36], [0.73, 0.73], [1.1, 0.9], [0.9, 1.1]):
        kept = cut_scan(trained, blob(), OBLIQUE, brain_mm=own_mm * factors)
        assert kept.scaled == (1, 1, 1)
        assert "size is left as it is" in kept.kept
        np.testing.assert_array_equal(kept.images_nhw, plain.images_nhw)


def test_a_speck_beside_the_brain_does_not_change_its_size(model):
    trained, voxels = TrainedModel.from_bundle(model), blob()
    extent = brain_extent(cut_scan(trained, voxels, OBLIQUE).images_nhw)
    voxels[1:4, 1:4, 18:22] = 400
    assert brain_extent(cut_scan(trained, voxels, OBLIQUE).images_nhw).tolist() == extent.tolist()
    assert brain_extent(np.zeros((2, 8, 8))).tolist() == [0, 0]


def test_a_scan_that_would_have_no_slices_at_another_size_and_other_planes_are_left_as_they_are(model):
    trained = TrainedModel.from_bundle(model)
    slab = blob()
    slab[:, :, :21] = 0  # 16 planes, the lowest 45 mm below the top: 41 mm at 0.9 times its size
    plain = cut_scan(trained, slab, OBLIQUE)
    brain_mm = 0.85 * brain_extent(plain.images_nhw) * plain.pixel_mm
    cut = cut_scan(trained, slab, OBLIQUE, brain_mm=brain_mm)
    assert cut.scaled == (1, 1, 1)
    assert "no slice of the scan lies" in cut.kept
    for plane, kept in (("coronal", True), ("sagittal", True), ("axial", False), (None, False)):
        cut = cut_scan(trained, blob(), OBLIQUE, plane=plane, brain_mm=np.array([101.0, 101.0]))
        assert bool(cut.kept) is kept


def test_the_size_of_the_healthy_brains_is_used_unless_told_otherwise(model, tmp_path):
    trained = TrainedModel.from_bundle(model)
    plain = cut_scan(trained, blob(), OBLIQUE)
    healthy = random_statistics(trained, threshold=2.0)._replace(
        brain_mm=1.1 * brain_extent(plain.images_nhw) * plain.pixel_mm
    )
    scan = write_scan(tmp_path / "one.nii.gz", blob())
    assert anomaly_scan(trained, scan, healthy).scaled == pytest.approx([1.1] * 3)
    assert anomaly_scan(trained, scan, healthy, scale=False).scaled == (1, 1, 1)
    found = anomaly_scan(trained, scan, healthy._replace(brain_mm=3 * healthy.brain_mm))
    assert found.scaled == (1, 1, 1)
    assert any("the brain measures" in note for note in found.notes)


def test_the_mean_brain_is_that_of_subjects_and_unknown_without_them():
    images = np.zeros((3, 20, 20), dtype=np.float32)
    images[0, 5:10, 5:10] = images[1, 5:15, 5:10] = 1  # one subject: 10 rows, 5 columns
    images[2, 5:9, 2:17] = 1  # the other: 4 rows, 15 columns
    known = _Slices(images, [{"subject": name} for name in "aab"], images > 2)
    np.testing.assert_allclose(_mean_brain(known, 2.0), [14, 20])
    assert _mean_brain(known._replace(records=[{"subject": "a"}, {"subject": "a"}, {}]), 2.0) is None


@pytest.fixture(scope="module")
def measured(model, tmp_path_factory) -> tuple[Path, list]:
    """The folder of a finished `evaluate_anomaly.json`, and the sizes of the brain that it cut its patient with."""
    folder, sizes = tmp_path_factory.mktemp("measured"), []
    write_slices(folder / "slices", (48, 48), counts={"training": 6, "validation": 3, "test": 5})
    lesion = np.zeros(blob().shape, dtype=np.uint8)
    lesion[18:23, 18:22, 14:20] = 1
    write_scan(folder / "patients/a_T1.nii.gz", blob() + np.float32(300) * lesion)
    write_scan(folder / "patients/a_lesion.nii.gz", lesion)

    def cut_and_note(*given, **options):
        sizes.append(options["brain_mm"])
        return cut_scan(*given, **options)

    options = {"model": model, "dataset_dir": folder / "slices", "output_dir": folder, "scans": folder / "patients"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monai_vqgen.evaluation.lesions.cut_scan", cut_and_note)
        given = {name: str(path) for name, path in options.items()}
        run_stage("evaluate_anomaly", options={**given, "seeds": 2, "device": "cpu"})
    return folder, sizes


def test_every_map_is_measured_on_synthetic_lesions_and_on_patients_as_they_are_matched_and_scaled(measured, model):
    folder, sizes = measured
    metrics = json.loads((folder / "metrics.json").read_text())
    for part in ("synthetic", "scans", "scans_matched_alone", "scans_as_they_are"):
        methods = metrics[part]["methods"]
        assert {"anomaly_map", "bits", "position_z", "pca", "mean_image", "reconstruction_error"} <= methods.keys()
        for scores in methods.values():
            assert 0 <= scores["ap_interval"][0] <= scores["ap"] <= 1
            assert scores["dice"] <= scores["best_dice"]
    assert metrics["synthetic"]["slices"] == 10
    assert {"ap_dark", "ap_deformed", "ap_seed_0", "ap_seed_1"} <= metrics["synthetic"]["methods"]["bits"].keys()
    assert not any(name.startswith("ap_seed") for name in metrics["scans"]["methods"]["bits"])
    healthy = HealthySlices.load(folder / "healthy.safetensors", model=TrainedModel.from_bundle(model))
    assert np.isfinite(healthy.threshold)
    assert sizes[0] is None
    assert sizes[1:] == [pytest.approx(healthy.brain_mm)]
    parts = ("scans", "scans_matched_alone", "scans_as_they_are")
    scaled, matched, plain = (metrics[part]["methods"]["position_z"]["auroc"] for part in parts)
    assert len({scaled, matched, plain}) == 3


def test_the_maps_of_scans_lie_over_them_and_what_cannot_be_read_is_listed(measured, model, tmp_path):
    statistics, voxels = measured[0] / "healthy.safetensors", blob()
    write_scan(tmp_path / "scans/one.nii.gz", voxels)
    (tmp_path / "scans/broken.nii.gz").write_bytes(b"no scan")
    given = {"model": str(model), "device": "cpu", "dataset_dir": str(tmp_path / "scans")}
    run_stage(
        "anomaly",
        options={**given, "output_dir": str(tmp_path / "maps"), "healthy": str(statistics), "threshold": 0.5},
    )
    scores, lesions = (nib.load(tmp_path / f"maps/one_{kind}.nii.gz") for kind in ("anomaly", "lesions"))
    assert scores.shape == lesions.shape == voxels.shape
    np.testing.assert_allclose(scores.affine, OBLIQUE)
    assert lesions.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(lesions.dataobj), np.asarray(scores.dataobj) > 0.5)
    found = anomaly_scan(
        TrainedModel.from_bundle(model), tmp_path / "scans/one.nii.gz", HealthySlices.load(statistics), threshold=0.5
    )
    np.testing.assert_allclose(np.asarray(scores.dataobj), found.scores_s, atol=1e-3)
    assert found.scores_s.max() > 0
    told = {entry["scan"]: entry for entry in json.loads((tmp_path / "maps/anomalies.json").read_text())["scans"]}
    assert "left out" in told["one.nii.gz"]["notes"][0]
    assert "skipped" in told["broken.nii.gz"]


@pytest.mark.parametrize(("scale", "factors"), [(True, [1.1] * 3), (False, [1.0] * 3)])
def test_the_stage_scales_a_scan_unless_told_otherwise_and_lists_the_factors(model, tmp_path, scale, factors):
    trained = TrainedModel.from_bundle(model)
    plain = cut_scan(trained, blob(), OBLIQUE)
    sized = random_statistics(trained)._replace(brain_mm=1.1 * brain_extent(plain.images_nhw) * plain.pixel_mm)
    sized.save(tmp_path / "sized.safetensors")
    scan = write_scan(tmp_path / "one.nii.gz", blob())
    where = {
        "dataset_dir": str(scan),
        "output_dir": str(tmp_path / "maps"),
        "healthy": str(tmp_path / "sized.safetensors"),
    }
    run_stage("anomaly", options={"model": str(model), "device": "cpu", "scale": scale, **where})
    (told,) = json.loads((tmp_path / "maps/anomalies.json").read_text())["scans"]
    assert told["scaled"] == pytest.approx(factors)


def test_a_dicom_series_gets_its_segmentation_as_dicom_and_statistics_beside_weights_are_taken(
    model, tmp_path, write_series
):
    highdicom = pytest.importorskip("highdicom")
    for weights in model.parent.iterdir():
        shutil.copy(weights, tmp_path / weights.name)
    trained = TrainedModel.from_bundle(model)
    random_statistics(trained, threshold=2.0).save(tmp_path / "healthy.safetensors")
    write_series(tmp_path / "scans/series", blob(), OBLIQUE)
    options = {"model": str(tmp_path / "model.pt"), "device": "cpu", "dataset_dir": str(tmp_path / "scans")}
    run_stage("anomaly", options={**options, "output_dir": str(tmp_path / "maps")})
    image = nib.load(tmp_path / "maps/series_lesions.nii.gz")
    lesions = np.asarray(image.dataobj)
    found = highdicom.seg.segread(tmp_path / "maps/series_lesions.dcm").get_volume(combine_segments=True)
    marked = np.argwhere(found.array) @ found.affine[:3, :3].T + found.affine[:3, 3]
    expected = np.argwhere(lesions) @ image.affine[:3, :3].T + image.affine[:3, 3]
    assert 0 < lesions.sum() == len(marked) < lesions.size
    np.testing.assert_allclose(np.unique(np.round(marked * [-1, -1, 1]), axis=0), np.unique(np.round(expected), axis=0))
    told = json.loads((tmp_path / "maps/anomalies.json").read_text())["scans"]
    assert told[0]["threshold"] == 2.0
    assert not [note for note in told[0]["notes"] if "segmentation" in note]


@pytest.mark.parametrize(("spacing", "count"), [(0.7, 60), (0.868, 101), (1.1, 63)])
def test_every_plane_of_the_brain_is_mapped_or_counted_as_left_out(model, spacing, count):
    voxels = np.repeat(blob()[:, :, 20:21], count, axis=2)  # count * spacing is a little more in floats
    cut = cut_scan(TrainedModel.from_bundle(model), voxels, np.diag([3.0, 3.0, spacing, 1.0]))
    assert cut.left_out + len(cut.planes) == count
    assert len({plane.number for plane in cut.planes}) == len(cut.planes)


def test_more_slices_than_are_looked_at_are_refused(model, monkeypatch):
    monkeypatch.setattr("monai_vqgen.models.scan_slices.MOST_SLICES", 5)
    with pytest.raises(ScanError, match=r"slices 3 mm apart; at most 5 are looked at"):
        cut_scan(TrainedModel.from_bundle(model), blob(), np.diag([3.0, 3.0, 3.0, 1.0]))


def test_statistics_beside_the_autoencoder_are_not_those_of_priors_elsewhere(tmp_path):
    assert healthy_beside("faithful") is not None
    assert healthy_beside("faithful", tmp_path) is None


def test_brain_beyond_the_models_size_is_told(model, tmp_path):
    trained = TrainedModel.from_bundle(model)
    wide = np.diag([6.0, 3.0, 3.0, 1.0])  # 200 mm across, and the model sees 144
    cut = cut_scan(trained, blob(), wide)
    assert 0 < cut.cropped < len(cut.planes), "the ball is small where it ends"
    found = anomaly_scan(trained, write_scan(tmp_path / "wide.nii.gz", blob(), wide))
    assert f"{cut.cropped} slices show more than the model's (48, 48) pixels" in " ".join(found.notes)
    assert not cut_scan(trained, blob(), OBLIQUE).cropped


@pytest.mark.parametrize(
    ("mask", "message"),
    [(np.zeros((40, 40, 40)), "mark nothing"), (np.ones((40, 40, 39)), "resample the mask")],
    ids=["empty", "of another size"],
)
def test_masks_that_cannot_be_used_are_refused_before_anything_is_measured(model, tmp_path, mask, message):
    write_scan(tmp_path / "a_T1.nii.gz", blob())
    write_scan(tmp_path / "a_lesion.nii.gz", mask.astype(np.uint8))
    unread = {split: [None] for split in ("training", "validation", "test")}
    evaluation = AnomalyEvaluation(TrainedModel.from_bundle(model), unread, output_dir=tmp_path / "out", scans=tmp_path)
    with pytest.raises(ScanError, match=message):
        evaluation.run()


@pytest.mark.parametrize("option", [{"seeds": 0}, {"draws": -1}, {"share": 98}])
def test_numbers_out_of_range_are_refused_at_once(option, tmp_path):
    unread = {split: [None] for split in ("training", "validation", "test")}
    with pytest.raises(InputError, match=f"{next(iter(option))} is"):
        AnomalyEvaluation(None, unread, output_dir=tmp_path, **option)


def test_without_statistics_the_scores_are_bits_and_nothing_is_called_a_lesion(model, tmp_path):
    found = anomaly_scan(TrainedModel.from_bundle(model), write_scan(tmp_path / "one.nii.gz", blob()))
    assert found.lesions_s is None
    assert found.scores_s.max() > 1


def test_statistics_of_other_weights_and_scans_that_cannot_be_used_are_refused(model, tmp_path):
    write_scan(tmp_path / "scans/low.nii.gz", blob(10))
    options = {"model": str(model), "dataset_dir": str(tmp_path / "scans"), "output_dir": str(tmp_path / "out")}
    with pytest.raises(ScanError, match="none of the 1 scans could be used: no slice of the scan lies 40 to 97 mm"):
        run_stage("anomaly", options=options)
    assert not list((tmp_path / "out").glob("*.nii.gz"))
    with pytest.raises(CheckpointError, match="no statistics"):
        run_stage("anomaly", options={**options, "healthy": str(model)})
    with pytest.raises(DatalistError, match="several scans are named low"):
        anomaly_names([{"image": "a/low.nii.gz"}, {"image": "b/low.nii"}])
