"""A segmentation of what is unusual, fetched from the server: it lies over its study, and so does its map."""

from __future__ import annotations

import shutil

import nibabel as nib
import numpy as np
import pytest

from monai_vqgen import TrainedModel
from monai_vqgen.anomaly import HealthySlices
from monai_vqgen.models import anomaly_scan


def test_the_server_offers_a_segmentation_with_its_label_and_a_map(client):
    models = client.info()["models"]
    assert (models["anomaly"]["type"], models["anomaly"]["dimension"]) == ("segmentation", 3)
    assert models["anomaly"]["labels"] == {"unusual": 1}
    assert models["anomaly_map"]["type"] == "others"
    for name in ("anomaly", "anomaly_map"):
        assert models[name]["config"] == {"threshold": "", "match": True, "scale": True, "age": "", "sex": ""}


@pytest.mark.parametrize("storage", ["axial", "coronal", "sagittal"])
def test_a_segmentation_lies_over_its_study_and_is_its_map_above_the_threshold(client, bundle, studies, storage):
    study = nib.load(studies / f"{storage}.nii.gz")
    path, answer = client.infer("anomaly", storage, {})
    segmentation = nib.load(path)
    assert segmentation.get_data_dtype() == np.uint8
    image, about = client.infer("anomaly_map", storage, {})
    scores = nib.load(image)
    for result in (segmentation, scores):
        assert result.shape == study.shape
        np.testing.assert_allclose(result.affine, study.affine, atol=1e-5)
    marked = np.asarray(segmentation.dataobj)
    assert answer["threshold"] == about["threshold"] == 3.0
    np.testing.assert_array_equal(marked, scores.get_fdata() > 3.0)
    assert 0 < marked.sum() == answer["voxels"] < marked.size
    assert answer["label_names"] == {"unusual": 1}
    assert answer["synthetic"] is False
    assert "outside the trained positions" in answer["notes"][0]
    healthy = HealthySlices.load(bundle / "models" / "healthy.safetensors")
    expected = anomaly_scan(TrainedModel.from_bundle(bundle), studies / f"{storage}.nii.gz", healthy)
    np.testing.assert_allclose(scores.get_fdata(), expected.scores_s, atol=1e-3)


def test_a_higher_threshold_marks_a_part_and_knobs_change_the_scores(client):
    def marked(**knobs):
        return np.asarray(nib.load(client.infer("anomaly", "axial", knobs)[0]).dataobj) > 0

    low, high = marked(threshold=2), marked(threshold=4.0)
    assert not (high & ~low).any()
    assert 0 < high.sum() < low.sum()
    assert (marked(match=False) != marked()).any()
    assert (marked(sex="F", age=65) != marked()).any()


def test_a_corrected_segmentation_is_kept_as_the_studys_label(client, studies, tmp_path):
    segmentation = nib.load(client.infer("anomaly", "coronal", {})[0])
    corrected = np.asarray(segmentation.dataobj).copy()
    corrected[: len(corrected) // 2] = 0
    nib.save(nib.Nifti1Image(corrected, segmentation.affine), tmp_path / "corrected.nii.gz")
    client.save_label("coronal", str(tmp_path / "corrected.nii.gz"), "original")  # "final" is no study to train on
    kept = nib.load(client.download_label("coronal", "original"))
    np.testing.assert_array_equal(np.asarray(kept.dataobj), corrected)
    np.testing.assert_allclose(kept.affine, nib.load(studies / "coronal.nii.gz").affine, atol=1e-5)


def test_a_volume_that_the_client_sends_is_answered_and_a_picture_is_refused(client, studies, tmp_path):
    shutil.copy(studies / "axial.nii.gz", tmp_path / "sent.nii.gz")
    sent, _ = client.infer("anomaly", "", {}, file=str(tmp_path / "sent.nii.gz"))
    stored, _ = client.infer("anomaly", "axial", {})
    np.testing.assert_array_equal(np.asarray(nib.load(sent).dataobj), np.asarray(nib.load(stored).dataobj))
    with pytest.raises(Exception, match="is a picture, not a volume"):
        client.infer("anomaly", "", {}, file=str(studies / "slices" / "picture.png"))
