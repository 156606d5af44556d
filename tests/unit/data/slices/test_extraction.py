"""From a folder of scans to a folder of slices."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from PIL import Image
from scipy.ndimage import map_coordinates

from monai_vqgen.data import (
    ScanOptions,
    SliceOptions,
    SplitOptions,
    extract_slices,
    load_datalist,
    make_phantoms,
    read_slice_geometry,
)
from monai_vqgen.errors import DatalistError, InputError, OutputExistsError
from monai_vqgen.transforms import LoadSlice
from monai_vqgen.transforms.foreground import foreground_window

QUICK = {"positions": [40.0, 64.0, 88.0]}


def extract(scans, output_dir, *, num_workers=0, overwrite=False, **options):
    """`extract_slices` with the fields of its options in one list."""
    parts = {}
    for name, kind in {"split": SplitOptions, "scans": ScanOptions, "slices": SliceOptions}.items():
        fields = {field: options.pop(field) for field in kind._fields if field in options}
        parts[name] = kind(**fields)
    assert not options
    return extract_slices(scans, output_dir, **parts, num_workers=num_workers, overwrite=overwrite, progress=False)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    make_phantoms(folder, 4, voxel_mm=4.0, progress=False)
    return folder


def test_every_pixel_is_the_scans_value_at_that_place(scans, tmp_path):
    report = extract(scans, tmp_path / "slices", pixel_mm=None, image_size=96, **QUICK)
    assert report.num_slices == {"training": 6, "validation": 3, "test": 3}
    for item in load_datalist(tmp_path / "slices", "test"):
        image = LoadSlice()(item["image"])
        scan = nib.load(scans / f"{item['subject']}_T1w.nii.gz")
        values = scan.get_fdata()
        low, high = foreground_window(values)
        grid = np.stack(np.meshgrid(range(96), range(96), [0], indexing="ij"), axis=-1)[:, :, 0]
        voxels = apply_affine(np.linalg.inv(scan.affine) @ image.affine.numpy(), grid)
        expected = map_coordinates(values, voxels.transpose(2, 0, 1), order=1, mode="constant", cval=low)
        np.testing.assert_allclose(image[0].numpy(), np.clip((expected - low) / (high - low), 0, 1), atol=2e-3)
        assert image.meta["position_mm"] == item["position_mm"]


def test_datalist_splits_by_subject_with_columns_and_contact_sheet(scans, tmp_path):
    report = extract(scans, tmp_path / "s", **QUICK, source="phantoms")
    content = json.loads(report.datalist.read_text())
    subjects = [{item["subject"] for item in content[part]} for part in ("training", "validation", "test")]
    assert sum(map(len, subjects)) == len(set.union(*subjects)) == 4
    item = content["training"][0]
    assert set(item) == {"image", "subject", "plane", "position_mm", "age", "sex"}
    assert item["image"] == f"images/{item['subject']}_axial_{item['position_mm']:06.2f}mm.nii.gz"
    assert (content["image_size"], content["pixel_mm"], content["source"]) == ([128, 128], 1.736, "phantoms")
    assert nib.load(tmp_path / "s" / item["image"]).shape == (128, 128, 1)
    with Image.open(tmp_path / "s" / "contact_sheet.png") as sheet:
        assert np.asarray(sheet).std() > 20
    assert not list(tmp_path.rglob("*.partial*"))
    assert content["seal"].startswith("sha256:")


def test_the_datalist_comes_after_all_that_it_says_is_there(scans, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("monai_vqgen.data.slices.extraction.write_contact_sheet", full)
    with pytest.raises(OSError, match="No space left"):
        extract(scans, tmp_path / "s", **QUICK)
    assert len(list((tmp_path / "s" / "images").iterdir())) == 12
    assert not (tmp_path / "s" / "datalist.json").exists()


def test_the_datalist_states_the_pixel_size_that_the_slices_have(tmp_path):
    voxels = np.zeros((40, 44, 38), dtype=np.int16)
    voxels[4:36, 4:40, 4:34] = np.arange(1, 31) * 10
    (tmp_path / "scans").mkdir()
    for index in range(3):
        nib.save(nib.Nifti1Image(voxels, np.diag([4.0, 4.0, 4.0, 1])), tmp_path / "scans" / f"sub-{index}.nii.gz")
    for pixel_mm, stated in ((2.5, 2.5), (None, 4.0)):
        report = extract(tmp_path / "scans", tmp_path / str(pixel_mm), pixel_mm=pixel_mm, **QUICK)
        content = json.loads(report.datalist.read_text())
        assert (content["plane"], content["pixel_mm"], content["image_size"]) == ("axial", stated, [128, 128])
        affine = nib.load(tmp_path / str(pixel_mm) / content["test"][0]["image"]).affine
        np.testing.assert_allclose(np.linalg.norm(affine[:3, :2], axis=0), stated, rtol=1e-5)


def test_scans_of_several_pixel_sizes_left_as_they_are_have_none_in_common(scans, tmp_path):
    report = extract(scans, tmp_path / "s", pixel_mm=None, **QUICK)
    assert json.loads(report.datalist.read_text())["pixel_mm"] is None


def test_a_set_without_training_slices_is_complete(scans, tmp_path):
    report = extract(scans, tmp_path, **QUICK, fractions=(0, 0, 1))
    assert report.num_slices == {"training": 0, "validation": 0, "test": 12}
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert np.asarray(sheet).std() > 20


def test_one_position_needs_no_list(scans, tmp_path):
    report = extract(scans, tmp_path, **{**QUICK, "positions": 65})
    assert sum(report.num_slices.values()) == 4
    assert json.loads(report.datalist.read_text())["description"] == "axial slices at 65 mm from brain_edge"


def test_two_processes_write_the_same_bytes(scans, tmp_path):
    for workers in (0, 2):
        extract(scans, tmp_path / str(workers), **{**QUICK, "num_workers": workers})
    files = sorted(
        p.relative_to(tmp_path / "0") for p in (tmp_path / "0").rglob("*") if p.is_file() and p.suffix != ".lock"
    )
    assert len(files) == 14
    for file in files:
        assert (tmp_path / "0" / file).read_bytes() == (tmp_path / "2" / file).read_bytes(), file


def test_bad_scans_are_logged_skips_that_the_datalist_lists(scans, tmp_path, caplog):
    folder = tmp_path / "scans"
    shutil.copytree(scans, folder)
    content = bytearray((folder / "sub-01_T1w.nii.gz").read_bytes())
    (folder / "cut.nii.gz").write_bytes(content[:5000])
    content[len(content) // 2] ^= 16
    (folder / "flip.nii.gz").write_bytes(content)
    nib.save(nib.Nifti1Image(np.ones((50, 60), dtype=np.float32), np.eye(4)), folder / "flat.nii.gz")
    nib.save(nib.Nifti1Image(np.full((60, 60, 99), 7, dtype=np.int16), np.eye(4)), folder / "constant.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((60, 60, 99), dtype=np.int16), np.eye(4)), folder / "empty.nii.gz")
    nan = np.full((60, 60, 99), np.nan, dtype=np.float32)
    nib.save(nib.Nifti1Image(nan, np.eye(4)), folder / "nan.nii.gz")
    with caplog.at_level("WARNING"):
        report = extract(folder, tmp_path / "s", **{**QUICK, "positions": [64.0, 500.0]})
    reasons = {entry["file"]: entry["reason"] for entry in report.skipped if "500 mm" not in entry["reason"]}
    for name, fault in {
        "cut": "damaged",
        "flip": "damaged",
        "flat": "3-D volume",
        "constant": "constant",
        "empty": "empty",
        "nan": "no voxel is a number",
    }.items():
        assert fault in reasons[f"{name}.nii.gz"]
    assert len(reasons) == 6
    assert sum("lies outside 0.0 to" in entry["reason"] for entry in report.skipped) == 4
    assert sum(report.num_slices.values()) == 4
    assert json.loads(report.datalist.read_text())["skipped"] == report.skipped
    assert "10 skips in 10 of 10 scans" in caplog.text


def test_names_without_a_subject_are_warned_of_once_and_a_pattern_names_them(scans, tmp_path, caplog):
    folder = tmp_path / "scans"
    folder.mkdir()
    for index, name in enumerate(("x1_a", "x1_b", "x2_a", "x3_a")):
        shutil.copy(scans / f"sub-{index + 1:02d}_T1w.nii.gz", folder / f"{name}.nii.gz")
    extract(folder, tmp_path / "a", **QUICK)
    assert caplog.text.count("--subject_pattern") == 1
    caplog.clear()
    report = extract(folder, tmp_path / "b", subject_pattern=r"(x\d)_", **QUICK)
    assert "--subject_pattern" not in caplog.text
    assert report.num_subjects == {"training": 1, "validation": 1, "test": 1}
    content = json.loads(report.datalist.read_text())
    parts = {item["subject"]: part for part in report.num_subjects for item in content[part]}
    assert set(parts) == {"x1", "x2", "x3"}
    assert len([i for i in content[parts["x1"]] if i["subject"] == "x1"]) == 6, "both scans of x1 in one part"


def test_positions_that_fall_on_one_plane_are_written_once(scans, tmp_path):
    report = extract(scans, tmp_path / "s", **{**QUICK, "positions": [64.0, 64.2]})
    assert sum(report.num_slices.values()) == 4
    assert all("already taken" in entry["reason"] for entry in report.skipped)


def test_a_brain_that_does_not_fit_is_skipped_or_cropped_with_a_warning(scans, tmp_path, caplog):
    with pytest.raises(DatalistError, match="does not fit into 48 x 48"):
        extract(scans, tmp_path / "a", image_size=48, **QUICK)
    with caplog.at_level("WARNING"):
        extract(scans, tmp_path / "b", image_size=48, on_trim="warn", **{**QUICK, "positions": [60.0, 64.0, 68.0]})
    told = [record.getMessage() for record in caplog.records if "does not fit" in record.getMessage()]
    cropped = [line for line in told if line.startswith("cropped: ")]
    assert len(cropped) == 4, "one warning for each scan, not one for each slice"
    assert any(line.endswith(" more of this scan)") for line in cropped)


def test_earlier_results_are_kept_unless_told_otherwise(scans, tmp_path):
    extract(scans, tmp_path, **QUICK)
    before = (tmp_path / "datalist.json").read_bytes()
    told = r"datalist\.json, contact_sheet\.png, (images/\S+,? ){3}and 9 more; .*overwrite"
    with pytest.raises(OutputExistsError, match=told):
        extract(scans, tmp_path, **{**QUICK, "positions": [50.0]})
    assert (tmp_path / "datalist.json").read_bytes() == before
    extract(scans, tmp_path, **{**QUICK, "positions": [50.0]}, overwrite=True)
    assert len(list((tmp_path / "images").iterdir())) == 4


def test_overwriting_takes_the_slices_of_any_plane_away_but_no_other_file_nor_a_link_to_them(scans, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "images").symlink_to(tmp_path / "disk")
    extract(scans, tmp_path / "s", **QUICK)
    users = {"notes.txt", "mask_axial.nii.gz", "sub-01_coronal_mm.nii.gz"}
    for name in users:
        (tmp_path / "disk" / name).write_text("mine")
    path = tmp_path / "s" / "datalist.json"
    content = json.loads(path.read_text())
    content["test"] += [{"image": "images/notes.txt"}, {"image": "../disk/notes.txt"}]
    del content["seal"]
    path.write_text(json.dumps(content))
    extract(scans, tmp_path / "s", plane="coronal", positions=[50.0], overwrite=True)
    assert (tmp_path / "s" / "images").is_symlink()
    left = {item.name for item in (tmp_path / "disk").iterdir()} - users
    assert len(left) == 4
    assert all("_coronal_" in name for name in left)
    extract(scans, tmp_path / "s", plane="axial", positions=[50.0], overwrite=True)
    assert users < {item.name for item in (tmp_path / "disk").iterdir()}
    assert not list((tmp_path / "disk").glob("*_coronal_0*"))


def test_folders_and_options_that_cannot_work(scans, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(DatalistError, match="holds no scans"):
        extract(tmp_path / "none", tmp_path / "s")
    (tmp_path / "one").mkdir()
    shutil.copy(scans / "sub-01_T1w.nii.gz", tmp_path / "one")
    with pytest.raises(DatalistError, match="only 1 subject"):
        extract(tmp_path / "one", tmp_path / "s")
    for options in (
        {"plane": "oblique"},
        {"reference": "nose"},
        {"positions": []},
        {"positions": "here"},
        {"positions": [None]},
        {"pixel_mm": -1},
        {"image_size": (0, 4)},
        {"on_trim": "maybe"},
        {"lower": 99, "upper": 1},
        {"step_mm": 0},
        {"start_mm": 100, "stop_mm": 40},
    ):
        with pytest.raises(InputError):
            extract(scans, tmp_path / "s", **options)
    assert not (tmp_path / "s").exists(), "nothing is written before the options are sound"


@pytest.mark.real
def test_real_volumes_of_every_geometry_go_through(real_data, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    paths = sorted((real_data / "volumes").glob("*.nii.gz"))
    for path in [paths[2], *paths[3:6]]:  # oblique LAS, 0.8 mm RAS, full heads of 3 mm
        (folder / path.name).symlink_to(path)
    for plane, position in (("axial", 65.0), ("coronal", 80.0), ("sagittal", 50.0)):
        report = extract(folder, tmp_path / plane, plane=plane, **{**QUICK, "positions": [position]})
        assert not report.skipped
        assert sum(report.num_slices.values()) == 4
        for file in (tmp_path / plane / "images").iterdir():
            image = LoadSlice()(file)
            assert image.shape == (1, 128, 128)
            assert float(image.max()) == pytest.approx(1, abs=0.2)
            np.testing.assert_allclose(np.linalg.norm(image.affine[:3, :2], axis=0), 1.736, rtol=1e-5)


def test_one_bad_scan_is_one_skip_and_the_others_are_cut(scans, tmp_path, monkeypatch):
    folder = tmp_path / "scans"
    shutil.copytree(scans, folder)
    image = nib.load(scans / "sub-01_T1w.nii.gz")
    for name, unit, factor in (("micron", "micron", 1000), ("liar", "mm", 1000)):
        other = nib.Nifti1Image(np.asarray(image.dataobj), np.diag([factor] * 3 + [1]) @ image.affine)
        other.header.set_xyzt_units(unit)
        nib.save(other, folder / f"{name}.nii.gz")
    shutil.copy(scans / "sub-01_T1w.nii.gz", folder / f"{'x' * 240}.nii.gz")
    (folder / "gone.nii.gz").symlink_to(".git/annex/gone")
    (folder / "b").mkdir()
    shutil.copy(scans / "sub-01_T1w.nii.gz", folder / "b" / "c.nii.gz")
    real = nib.Nifti1Header.get_best_affine

    def fails_once(header):  # in a way that nobody has thought of
        if header["descrip"].tobytes().startswith(b"odd"):
            raise RecursionError("odd")
        return real(header)

    odd = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)
    odd.header["descrip"] = b"odd"
    nib.save(odd, folder / "odd.nii.gz")
    monkeypatch.setattr(nib.Nifti1Header, "get_best_affine", fails_once)
    report = extract(folder, tmp_path / "s", positions=[64.0])
    reasons = {entry["file"]: entry["reason"] for entry in report.skipped}
    assert set(reasons) == {"liar.nii.gz", "gone.nii.gz", "b", "odd.nii.gz"}
    assert "fix the spacing (or its unit)" in reasons["liar.nii.gz"]
    assert "liar.nii.gz: pixels of " in reasons["liar.nii.gz"]
    assert "git annex get" in reasons["gone.nii.gz"]
    assert "RecursionError" in reasons["odd.nii.gz"]
    assert str(tmp_path) not in report.datalist.read_text(), "a list that is sent on tells no place"
    content = json.loads(report.datalist.read_text())
    assert content["skipped"] == report.skipped
    items = [item for part in report.num_subjects for item in content[part]]
    assert len(items) == 6
    same = {item["subject"]: LoadSlice()(tmp_path / "s" / item["image"]) for item in items}
    np.testing.assert_allclose(same["micron"].numpy(), same["sub-01"].numpy(), atol=1e-3)
    np.testing.assert_allclose(same["micron"].affine, same["sub-01"].affine, atol=1e-3)


def test_every_voxel_of_a_volume_is_the_scans_value_at_that_place(scans, tmp_path):
    size = (60, 72, 64)
    report = extract(scans, tmp_path / "v", dimensions=3, pixel_mm=None, image_size=size)
    assert report.num_slices == {"training": 2, "validation": 1, "test": 1}
    for split in ("training", "test"):
        (item, *_) = load_datalist(tmp_path / "v", split)
        image = LoadSlice(dimensions=3)(item["image"])
        assert image.shape == (1, *size)
        assert nib.aff2axcodes(image.affine.numpy()) == ("R", "A", "S")
        assert not {"plane", "position_mm"} & set(item)
        scan = nib.load(scans / f"{item['subject']}_T1w.nii.gz")
        values = scan.get_fdata()
        low, high = foreground_window(values)
        grid = np.moveaxis(np.indices(size), 0, -1)
        voxels = apply_affine(np.linalg.inv(scan.affine) @ image.affine.numpy(), grid)
        expected = map_coordinates(values, voxels.transpose(3, 0, 1, 2), order=1, mode="constant", cval=low)
        np.testing.assert_allclose(image[0].numpy(), np.clip((expected - low) / (high - low), 0, 1), atol=2e-3)


def test_volumes_get_one_voxel_size_and_a_list_of_the_same_form_with_columns_and_a_picture(scans, tmp_path):
    report = extract(scans, tmp_path / "v", dimensions=3, pixel_mm=6.0, image_size=[28, 32, 32])
    content = json.loads(report.datalist.read_text())
    assert (content["plane"], content["image_size"], content["pixel_mm"]) == (None, [28, 32, 32], 6.0)
    assert read_slice_geometry(tmp_path / "v") == (None, 6.0, 3)
    item = content["training"][0]
    assert {"image", "subject", "age", "sex"} <= set(item)
    image = nib.load(tmp_path / "v" / item["image"])
    np.testing.assert_allclose(image.header.get_zooms(), 6.0, rtol=1e-6)
    with Image.open(tmp_path / "v" / "contact_sheet.png") as sheet:
        assert np.asarray(sheet).max() > 200
    extract(scans, tmp_path / "v", overwrite=True, **QUICK)  # slices in place of the volumes, which go
    assert not list((tmp_path / "v" / "images").glob("*_volume.nii.gz"))


def test_volumes_that_cannot_be_are_refused_or_skipped_with_the_mend(scans, tmp_path):
    with pytest.raises(InputError, match="dimensions is 4"):
        extract(scans, tmp_path / "v", dimensions=4)
    with pytest.raises(InputError, match="one or three whole numbers"):
        extract(scans, tmp_path / "v", dimensions=3, image_size=[32, 32])
    with pytest.raises(DatalistError, match=r"does not fit into 20 x 20 x 20 voxels: it takes \d+ x \d+ x \d+; give"):
        extract(scans, tmp_path / "v", dimensions=3, pixel_mm=6.0, image_size=20)
    odd = tmp_path / "odd"
    odd.mkdir()
    for name, shape in {"sub-1_thin": (20, 20, 1), "sub-2_series": (20, 20, 20, 2)}.items():
        nib.save(nib.Nifti1Image(np.random.default_rng(0).random(shape), np.eye(4)), odd / f"{name}.nii.gz")
    report = extract(odd, tmp_path / "o", dimensions=3, pixel_mm=None, image_size=24, fractions=(1, 0, 0))
    assert report.num_slices["training"] == 1  # the first of a series of volumes
    (skip,) = report.skipped
    assert "every axis needs at least two voxels" in skip["reason"]
