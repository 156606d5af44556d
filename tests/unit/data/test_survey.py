"""A folder is looked at as it is: voxels and brains in their place whatever the axis order, and what is unusable."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from factories import write_slices
from PIL import Image

from monai_vqgen.data import ScanOptions
from monai_vqgen.data.survey import MOST_SCANS, survey_folder
from monai_vqgen.errors import DatalistError, InputError


def write_box(path, spacing_mm, box_mm, *, codes="RAS"):
    """A bright box of some extent from left to right, back to front, bottom to top in a dark volume."""
    shape = [int(mm / s) + 10 for mm, s in zip(box_mm, spacing_mm, strict=True)]
    voxels = np.zeros(shape, np.int16)
    inside = tuple(slice(4, 4 + round(mm / s) + 1) for mm, s in zip(box_mm, spacing_mm, strict=True))
    voxels[inside] = np.random.default_rng(0).integers(500, 1000, voxels[inside].shape)
    image = nib.Nifti1Image(voxels, np.diag([*spacing_mm, 1.0]))
    change = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    nib.save(image.as_reoriented(change), path)


@pytest.mark.parametrize("codes", ["RAS", "PIL", "SAR"])
def test_spacing_and_extent_run_front_to_back_left_to_right_top_to_bottom(tmp_path, codes):
    for i in range(3):
        write_box(tmp_path / f"sub-{i}_T1w.nii.gz", (1.5, 2.0, 3.0), (60, 80, 90), codes=codes)
    survey = survey_folder(tmp_path)
    np.testing.assert_allclose(survey.spacing_mm, [[2.0, 1.5, 3.0]] * 3, atol=1e-5)
    np.testing.assert_allclose(survey.extent_mm, [[80, 60, 90]] * 3, atol=1e-4)
    assert (survey.training, survey.complete, len(survey.sizes)) == (1, True, 0)
    assert survey.summary.endswith("3 scans of 3 subjects")


def test_repeated_scans_of_training_subjects_all_count(tmp_path):
    for i in range(4):
        for session in range(2):
            write_box(tmp_path / f"sub-{i}_ses-{session}_T1w.nii.gz", (4, 4, 4), (40, 40, 40))
    assert survey_folder(tmp_path).training == 2 * 2
    named = survey_folder(tmp_path, scans=ScanOptions(subject_pattern="sub-._ses-."))
    assert "8 scans of 8 subjects" in named.summary


def test_what_cannot_be_read_is_listed_and_left_out(tmp_path):
    for i in range(4):
        write_box(tmp_path / f"sub-{i}_T1w.nii.gz", (4, 4, 4), (40, 40, 40))
    damaged, constant = (tmp_path / f"sub-{i}_T1w.nii.gz" for i in (1, 3))
    damaged.write_bytes(damaged.read_bytes()[:-60])
    nib.save(nib.Nifti1Image(np.ones((5, 5, 5), np.int16), np.eye(4)), constant)
    survey = survey_folder(tmp_path)
    assert [entry["file"] for entry in survey.skipped] == [damaged.name, constant.name]
    assert "truncated or damaged" in survey.skipped[0]["reason"]
    assert len(survey.spacing_mm) == 2
    for path in tmp_path.glob("*.nii.gz"):
        path.write_bytes(b"no scan")
    with pytest.raises(DatalistError, match=r"none of 4 files can be used, .*sub-0_T1w.nii.gz because of: unreadable"):
        survey_folder(tmp_path)


def test_of_many_scans_some_are_looked_at(tmp_path):
    write_box(tmp_path / "first.nii", (8, 8, 8), (40, 40, 40))
    for i in range(MOST_SCANS + 6):
        (tmp_path / f"sub-{i:03}.nii").hardlink_to(tmp_path / "first.nii")
    (tmp_path / "first.nii").unlink()
    survey = survey_folder(tmp_path)
    assert (len(survey.spacing_mm), survey.complete) == (MOST_SCANS, False)


def test_ready_slices_have_sizes_with_a_list_or_without(tmp_path):
    write_slices(tmp_path / "listed", (20, 24))
    listed = survey_folder(tmp_path / "listed")
    assert listed.sizes.tolist() == [[20, 24]] * 12
    assert (listed.training, listed.plane) == (8, "axial")
    for split, count in {"train": 3, "validate": 2}.items():
        (tmp_path / "plain" / split).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 255, (30 + i, 40), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "plain" / split / f"{i}.png")
    (tmp_path / "plain/train/2.png").write_bytes(b"no picture")
    plain = survey_folder(tmp_path / "plain")
    assert sorted(plain.sizes.tolist()) == [[30, 40], [30, 40], [31, 40], [31, 40]]
    assert (plain.training, plain.plane) == (3, None)
    assert [entry["file"] for entry in plain.skipped] == ["2.png"]


@pytest.mark.parametrize(("colored", "channels"), [((), 1), ((1,), 3), ((0, 1, 2, 3), 3)])
def test_one_picture_in_color_makes_all_of_them_colors(colored, channels, tmp_path):
    for i, split in enumerate(["train", "train", "train", "validate"]):
        (tmp_path / split).mkdir(exist_ok=True)
        pixels = np.full((30, 40, 3), (100, 50, 10 + i) if i in colored else 100 + i, np.uint8)
        Image.fromarray(pixels if i in colored else pixels[..., 0]).save(tmp_path / split / f"{i}.png")
    survey = survey_folder(tmp_path)
    assert (survey.channels, survey.sizes.tolist(), survey.skipped) == (channels, [[30, 40]] * 4, [])


def test_a_picture_with_transparency_is_skipped_for_its_own_reason(tmp_path):
    for split in ("train", "validate"):
        (tmp_path / split).mkdir()
        Image.fromarray(np.full((30, 40), 100, np.uint8)).save(tmp_path / split / "a.png")
    Image.fromarray(np.full((30, 40, 4), 100, np.uint8)).save(tmp_path / "train/b.png")
    survey = survey_folder(tmp_path)
    assert survey.channels == 1
    (skipped,) = survey.skipped
    assert "transparent" in skipped["reason"]


def test_a_folder_with_nothing_to_look_at_is_an_error(tmp_path):
    with pytest.raises(DatalistError, match="is not a folder"):
        survey_folder(tmp_path / "nowhere")
    with pytest.raises(DatalistError, match="holds no scans"):
        survey_folder(tmp_path)
    write_box(tmp_path / "sub-1_T1w.nii.gz", (8, 8, 8), (40, 40, 40))
    with pytest.raises(DatalistError, match="only 1 subject"):
        survey_folder(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="holds both"):
        survey_folder(tmp_path)
    (tmp_path / "datalist.json").write_text("{")
    with pytest.raises(DatalistError, match=r"datalist\.json"):
        survey_folder(tmp_path)


def test_dicom_series_are_scans(tmp_path, write_series):
    voxels = np.zeros((12, 14, 10), np.int16)
    voxels[2:10, 2:12, 2:8] = np.random.default_rng(0).integers(500, 1000, (8, 10, 6))
    for i in range(3):
        write_series(tmp_path / f"patient{i}", voxels, np.diag([2.0, 3.0, 4.0, 1.0]), series=str(i), patient=f"p{i}")
    survey = survey_folder(tmp_path)
    np.testing.assert_allclose(survey.spacing_mm, [[3.0, 2.0, 4.0]] * 3, atol=1e-5)
    np.testing.assert_allclose(survey.extent_mm, [[27, 14, 20]] * 3, atol=1e-4)


def test_volumes_that_were_cut_are_told_from_slices(tmp_path):
    write_slices(tmp_path)
    content = json.loads((tmp_path / "datalist.json").read_text())
    (tmp_path / "datalist.json").write_text(json.dumps({**content, "plane": None, "image_size": [16, 16, 16]}))
    with pytest.raises(DatalistError, match="holds volumes, and plans are of slices: train with --size volumes_64"):
        survey_folder(tmp_path)
