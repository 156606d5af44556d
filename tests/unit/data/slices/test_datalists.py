"""Lists of slices, from a datalist or from folders."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest

from monai_vqgen.data import load_datalist, read_slice_geometry, records_digest
from monai_vqgen.data.slices.datalists import evenly_spaced
from monai_vqgen.errors import DatalistError, InputError, ScanError
from monai_vqgen.transforms import LoadSlice


def test_a_datalist_gives_absolute_paths_and_keeps_the_rest(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.nii.gz").touch()
    item = {"image": "images/a.nii.gz", "subject": "sub-01", "position_mm": 40.0}
    (tmp_path / "datalist.json").write_text(json.dumps({"training": [item], "validation": []}))
    assert load_datalist(tmp_path, "training") == [{**item, "image": str(tmp_path / "images/a.nii.gz")}]
    with pytest.raises(DatalistError, match="no validation slices"):
        load_datalist(tmp_path, "validation")
    with pytest.raises(DatalistError, match="'test'"):
        load_datalist(tmp_path, "test")
    (tmp_path / "images" / "a.nii.gz").unlink()
    with pytest.raises(DatalistError, match="missing"):
        load_datalist(tmp_path, "training")


@pytest.mark.parametrize("names", [("train", "validate", "test"), ("keras_png_slices_train", "x_val", "x_test")])
def test_ready_made_folders_and_their_synonyms(tmp_path, names):
    for name in names:
        (tmp_path / name).mkdir()
        for file in ("b.png", "a.nii.gz", "readme.txt", ".hidden.png"):
            (tmp_path / name / file).touch()
    for split, name in zip(("training", "validation", "test"), names, strict=True):
        expected = [{"image": str(tmp_path / name / file)} for file in ("a.nii.gz", "b.png")]
        assert load_datalist(tmp_path, split) == expected
    assert load_datalist(tmp_path, "val") == load_datalist(tmp_path, "validation")


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(DatalistError, match=r"neither datalist\.json nor a folder"):
        load_datalist(tmp_path, "training")
    with pytest.raises(DatalistError, match="is not a folder"):
        load_datalist(tmp_path / "gone", "training")
    with pytest.raises(InputError, match="'holdout'"):
        load_datalist(tmp_path, "holdout")
    (tmp_path / "datalist.json").write_text("{")
    with pytest.raises(DatalistError, match="not a datalist"):
        load_datalist(tmp_path, "training")


@pytest.mark.parametrize(("count", "among"), [(1, 1), (3, 10), (7, 8), (8, 8), (12, 5), (4, 1000), (3, 0)])
def test_picks_are_evenly_spaced_from_first_to_last(count, among):
    picks = evenly_spaced(count, among)
    assert len(picks) == len(set(picks)) == min(count, among)
    assert picks == sorted(picks)
    if len(picks) > 1:
        assert (picks[0], picks[-1]) == (0, among - 1)
        steps = [after - before for before, after in itertools.pairwise(picks)]
        assert max(steps) - min(steps) <= 1


def write_list(folder, **parts):
    for name in ("a", "b"):
        (folder / f"{name}.nii").touch()
    (folder / "datalist.json").write_text(json.dumps({"training": [], "validation": [], "test": [], **parts}))
    return folder


@pytest.mark.parametrize("image", ["../b.nii", "/etc/passwd", "x/../../b.nii", "../set/../b.nii", ".", ""])
def test_names_in_a_list_never_leave_the_folder(tmp_path, image):
    (tmp_path / "b.nii").touch()
    (tmp_path / "set").mkdir()
    with pytest.raises(DatalistError, match="outside the folder"):
        load_datalist(write_list(tmp_path / "set", training=[{"image": image}]), "training")


@pytest.mark.parametrize("image", ["A" * 300, "a/" * 3000 + "b.nii", "a\0.nii"])
def test_names_that_no_file_can_have_are_missing_files(tmp_path, image):
    with pytest.raises(DatalistError, match="which is missing"):
        load_datalist(write_list(tmp_path, training=[{"image": image}]), "training")
    with pytest.raises(ScanError, match="no such file"):
        LoadSlice()(tmp_path / image)


def test_a_list_may_name_files_in_full_and_folders_may_be_links(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.nii").touch()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "images").symlink_to(tmp_path / "far")
    items = [{"image": str(tmp_path / "set" / "a.nii")}, {"image": "images/a.nii"}]
    found = load_datalist(write_list(tmp_path / "set", training=items), "training")
    assert [item["image"] for item in found] == [str(tmp_path / "set" / name) for name in ("a.nii", "images/a.nii")]


@pytest.mark.parametrize("names", [("a", "b"), ("a", "a")])
def test_a_subject_or_a_file_in_two_splits_is_refused_for_every_split(tmp_path, names):
    subject = {"subject": "sub-01"} if names[0] != names[1] else {}
    one, two = ([{"image": f"{name}.nii", **subject}] for name in names)
    write_list(tmp_path, training=one, test=two)
    for split in ("training", "validation", "test"):
        with pytest.raises(DatalistError, match=f"{'subject sub-01' if subject else 'image'} .*in more than one split"):
            load_datalist(tmp_path, split)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_to_a_training_image_is_no_other_image(tmp_path, link):
    write_list(tmp_path, training=[{"image": "a.nii"}], test=[{"image": "c.nii"}])
    link(tmp_path / "a.nii", tmp_path / "c.nii")
    with pytest.raises(DatalistError, match=r"image .*/[ac]\.nii is in more than one split"):
        load_datalist(tmp_path, "training")
    assert load_datalist(tmp_path, "test", disjoint=False)
    for name in ("train", "test"):
        (tmp_path / "folders" / name).mkdir(parents=True)
    (tmp_path / "folders/train/a.png").touch()
    link(tmp_path / "folders/train/a.png", tmp_path / "folders/test/b.png")
    for split in ("training", "test"):
        with pytest.raises(DatalistError, match="is a file of another split too"):
            load_datalist(tmp_path / "folders", split)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[]", "3", '{"training": 3}', '{"training": [3]}', '{"training": [{"image": 3}]}', "{}"]
)
def test_what_is_no_list_is_one_error(tmp_path, text):
    (tmp_path / "datalist.json").write_text(text)
    with pytest.raises(DatalistError, match="not a datalist"):
        load_datalist(tmp_path, "training")
    assert read_slice_geometry(tmp_path) == (None, None, 2)


def test_pictures_of_all_kinds_are_slices_and_other_files_are_said(tmp_path, caplog):
    names = ["a.png", "b.JPG", "c.jpeg", "d.bmp", "e.tif", "f.TIFF", "g.nii.gz"]
    (tmp_path / "train").mkdir()
    for name in (*names, "h.gif", "i.txt", ".j.png"):
        (tmp_path / "train" / name).touch()
    assert [Path(item["image"]).name for item in load_datalist(tmp_path, "training")] == names
    assert "2 files are no slices (for example h.gif)" in caplog.text


def test_volumes_beside_a_folder_named_like_a_split_are_refused(tmp_path):
    for name in ("scan.nii.gz", "old_test/1.nii", "x_train/1.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"both slices \(old_test\) and other NIfTI files, 1 of them .*scan\.nii\.gz"):
        load_datalist(tmp_path, "test")
    (tmp_path / "scan.nii.gz").unlink()
    assert len(load_datalist(tmp_path, "test")) == 1


def test_a_digest_is_the_same_through_a_link_and_after_a_move(tmp_path, monkeypatch):
    (tmp_path / "slices/train").mkdir(parents=True)
    (tmp_path / "slices/train/a.png").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/link").symlink_to(tmp_path / "slices")
    monkeypatch.chdir(tmp_path)

    def digest(folder):
        return records_digest(load_datalist(folder, "training"), folder)

    assert digest("slices") == digest(tmp_path / "slices") == digest("elsewhere/link")
    before = digest("slices")
    (tmp_path / "slices").rename(tmp_path / "moved")
    assert digest("moved") == before
    os.utime(tmp_path / "moved/train/a.png", (1, 1))
    assert digest("moved") == before
    (tmp_path / "moved/train/a.png").write_bytes(b"x")
    assert digest("moved") != before


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def by_split(folder):
    return {split: load_datalist(folder, split) for split in ("training", "validation", "test")}


def test_a_folder_of_pictures_alone_is_divided_once_and_for_all(tmp_path, caplog):
    caplog.set_level("INFO")
    touch(tmp_path, *(f"{i:02d}.png" for i in range(16)), "notes.txt", ".hidden.png")
    parts = by_split(tmp_path)
    assert {split: len(items) for split, items in parts.items()} == {"training": 12, "validation": 2, "test": 2}
    assert len({item["image"] for items in parts.values() for item in items}) == 16
    assert by_split(tmp_path) == parts
    assert "its pictures are divided: 12 for training, 2 for validation, 2 for test" in caplog.text


def test_pictures_of_one_subject_stay_together(tmp_path):
    touch(tmp_path, *(f"sub-{subject}_{i}.png" for subject in "abcdefgh" for i in range(3)))
    home = {}
    for split, items in by_split(tmp_path).items():
        for item in items:
            assert home.setdefault(item["subject"], split) == split
    assert len(home) == 8


@pytest.mark.parametrize("other", ["scan.nii.gz", "deep/scan.nii", *["1.dcm 2.dcm 3.dcm 4.dcm"]])
def test_a_picture_beside_scans_does_not_make_a_folder_of_pictures(tmp_path, other):
    touch(tmp_path, "a.png", "b.png", "c.png", *other.split())
    with pytest.raises(DatalistError, match=r"neither datalist\.json nor a folder"):
        load_datalist(tmp_path, "training")


def test_two_pictures_cannot_be_divided(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    with pytest.raises(DatalistError, match="pictures of 2 subjects; give 3 or more"):
        load_datalist(tmp_path, "training")


@pytest.mark.parametrize("place", ["", "train"])
def test_labels_are_columns_of_a_table_beside_the_images(tmp_path, place):
    touch(tmp_path, "train/a.png", "train/b.png", "train/c.png")
    inside = "" if place else "train/"
    rows = ["image;label;age", f"{inside}a.png;01;40,5", f"{inside}b.png;x;n/a"]
    (tmp_path / place / "labels.csv").write_text("\n".join(rows))
    known = [{key: item[key] for key in item if key != "image"} for item in load_datalist(tmp_path, "train")]
    assert known == [{"label": "01", "age": 40.5}, {"label": "x"}, {}]


def test_labels_may_name_subjects_which_are_then_not_divided(tmp_path):
    touch(tmp_path, *(f"{i}.png" for i in range(12)))
    rows = [f"{i}.png,x,{'ann' if i % 2 else i}" for i in range(12)]
    (tmp_path / "labels.csv").write_text("image,label,subject\n" + "\n".join(rows))
    homes = {split for split, items in by_split(tmp_path).items() for item in items if item["subject"] == "ann"}
    assert len(homes) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,kind\na.png,x", r"has the columns image, kind, not label; give image and label"),
        ("file,label\na.png,x", r"has the columns file, label, not image"),
        ("", r"has the columns none, not image"),
        ("image,label\nz.png,x", r"names z\.png, which is missing there"),
        ("image,label\n../a.png,x", r"names \.\./a\.png, which is missing there"),
        ("image,label\n,x", r"names \., which is missing there"),
        ("image,label\na.png,x\n./a.png,y", r"names a\.png twice"),
    ],
)
def test_a_table_of_labels_that_cannot_be_meant_is_refused(tmp_path, text, message):
    touch(tmp_path / "set", "a.png", "b.png", "c.png")
    (tmp_path / "a.png").touch()
    (tmp_path / "set" / "labels.csv").write_text(text)
    with pytest.raises(DatalistError, match=message):
        load_datalist(tmp_path / "set", "training")


@pytest.mark.parametrize("home", ["train", ""])
def test_sub_folders_are_labels_unless_they_name_subjects(tmp_path, home):
    touch(tmp_path / home, *(f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(4)))
    items = load_datalist(tmp_path, "training")
    assert {(item["label"], Path(item["image"]).parent.name) for item in items} == {("cat", "cat"), ("dog", "dog")}
    touch(tmp_path / home, "sub-01/1.png")
    assert not [item for item in load_datalist(tmp_path, "training") if "label" in item]


def test_one_sub_folder_or_pictures_beside_it_are_no_labels(tmp_path):
    touch(tmp_path, *(f"train/images/{i}.png" for i in range(3)))
    assert [set(item) for item in load_datalist(tmp_path, "training")] == [{"image"}] * 3
    touch(tmp_path, "train/more/1.png", "train/2.png")
    assert [set(item) for item in load_datalist(tmp_path, "training")] == [{"image"}] * 5


@pytest.mark.parametrize(("one", "two"), [("\u00e9", "e\u0301"), (1, 1.0), ("1", 1)])
def test_a_subject_in_two_splits_is_found_in_either_spelling(tmp_path, one, two):
    write_list(tmp_path, training=[{"image": "a.nii", "subject": one}], test=[{"image": "b.nii", "subject": two}])
    with pytest.raises(DatalistError, match="is in more than one split"):
        load_datalist(tmp_path, "training")


@pytest.mark.parametrize("place", ["x", 1e308, True, [1]])
def test_a_position_that_is_none_is_refused(tmp_path, place):
    (tmp_path / "a.nii").touch()
    items = [{"image": "a.nii", "position_mm": place}]
    with pytest.raises(DatalistError, match=r"position_mm of .*a\.nii is .* no place in a head"):
        load_datalist(write_list(tmp_path, training=items), "training")
