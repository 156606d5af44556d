"""Which scans a folder holds, and whose they are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from monai_vqgen.data import discover_volumes
from monai_vqgen.data.slices.sources import find_scans, subject_of
from monai_vqgen.errors import DatalistError, InputError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("sub-01_T1w.nii.gz", "sub-01"),
        ("ds002748_sub-01_T1w_orig_LAS.nii.gz", "sub-01"),
        ("sub-A7_ses-2_run-1_T1w.nii", "sub-A7"),
        ("OAS1_0001_MR1_mpr_n4_anon.nii.gz", "OAS1_0001"),
        ("OAS2_0117_MR4.nii", "OAS2_0117"),
        ("OAS30001_MR_d0129.nii.gz", "OAS30001"),
        ("patient.v1.nii.gz", None),
        ("sub-03/ses-1/anat/T1w.nii.gz", "sub-03"),
        ("openms_long_patient01_study1_T1W.nii.gz", "patient01"),
        ("Subject_7-followup.nii.gz", "Subject_7"),
        ("subj-12/T2.nii.gz", "subj-12"),
        ("impatient01.nii.gz", None),
    ],
)
def test_the_subject_is_read_from_the_name(name, subject):
    assert subject_of(Path(name)) == subject


def test_a_pattern_of_ones_own_groups_repeat_scans():
    assert subject_of(Path("ms_patient04_study2.nii.gz"), pattern=r"(patient\d+)") == "patient04"
    with pytest.raises(InputError, match="regular expression"):
        subject_of(Path("a.nii"), pattern="(")


def test_a_pattern_holds_for_the_whole_folder(tmp_path):
    touch(tmp_path, "x04_a.nii", "x04_b.nii", "x05_a.nii")
    found = discover_volumes(tmp_path, subject_pattern=r"^(x\d+)")
    assert [(r.subject, r.name) for r in found] == [("x04", "x04_a"), ("x04", "x04_b"), ("x05", "x05")]
    assert not any(record.guessed for record in found)
    assert all(record.guessed for record in discover_volumes(tmp_path))


def test_a_pattern_may_take_a_folder_of_the_path(tmp_path):
    touch(tmp_path, "anna/T1.nii", "anna/T2.nii", "berta/T1.nii")
    found = discover_volumes(tmp_path, subject_pattern="^([^/]+)/")
    assert [r.subject for r in found] == ["anna", "anna", "berta"]


def test_only_the_path_inside_the_data_set_names_subjects(tmp_path):
    folder = tmp_path / "sub-99" / "anat" / "scans"
    touch(folder, "a.nii", "b.nii")
    assert [r.subject for r in discover_volumes(folder)] == ["a", "b"]
    touch(folder, "x/anat/c.nii")
    assert [r.subject for r in discover_volumes(folder)] == ["a", "b"], "no BIDS tree"


def test_derivatives_and_source_data_are_left_out(tmp_path):
    touch(
        tmp_path,
        "sub-01/anat/sub-01_T1w.nii.gz",
        "derivatives/fmriprep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
        "sourcedata/sub-01/anat/sub-01_T1w.nii.gz",
    )
    assert [r.path.relative_to(tmp_path).parts[0] for r in discover_volumes(tmp_path)] == ["sub-01"]
    prepared = discover_volumes(tmp_path / "derivatives" / "fmriprep")
    assert [r.subject for r in prepared] == ["sub-01"]


def test_a_flat_folder_with_participants(tmp_path):
    touch(tmp_path, "sub-02_T1w.nii.gz", "sub-01_T1w.nii", "._sub-01_T1w.nii", "notes.txt", "sub/other.nii")
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tage\tsex\timage\nsub-01\t39\tm\tevil\nsub-02\tn/a\tf\tevil\n", encoding="utf-8-sig"
    )
    first, second = discover_volumes(tmp_path)
    assert (first.path.name, first.subject, first.name) == ("sub-01_T1w.nii", "sub-01", "sub-01")
    assert first.columns == {"age": 39.0, "sex": "m"}
    assert second.columns == {"sex": "f"}


def test_a_bids_tree_gives_its_t1w_scans_and_sessions_share_a_subject(tmp_path):
    touch(
        tmp_path,
        "sub-02/anat/sub-02_T1w.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz",
        "sub-01/ses-1/func/sub-01_ses-1_bold.nii.gz",
    )
    found = [(r.subject, r.name) for r in discover_volumes(tmp_path)]
    assert found == [("sub-01", "sub-01_ses-1_T1w"), ("sub-01", "sub-01_ses-2_T1w"), ("sub-02", "sub-02")]
    assert [r.subject for r in discover_volumes(tmp_path, suffix="FLAIR")] == ["sub-01"]
    with pytest.raises(DatalistError, match="T2w"):
        discover_volumes(tmp_path, suffix="T2w")


def test_equal_names_in_sub_folders_stay_apart(tmp_path):
    touch(tmp_path, "a/T1.nii.gz", "b/T1.nii.gz")
    names = [record.name for record in discover_volumes(tmp_path)]
    assert len(set(names)) == 2


def test_names_that_would_be_one_after_folders_are_put_in_front_stay_apart_too(tmp_path):
    touch(tmp_path, "A/b_c.nii", "a/b_c.nii", "Z/c.nii", "a_b/c.nii")
    names = [record.name for record in discover_volumes(tmp_path)]
    assert names == ["b_c", "a_b_c", "c", "a_b_c_2"]


def test_folders_without_scans_are_named(tmp_path):
    with pytest.raises(DatalistError, match="holds no scans"):
        discover_volumes(touch(tmp_path, "readme.txt"))
    with pytest.raises(DatalistError, match="is not a folder"):
        discover_volumes(tmp_path / "gone")


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    touch(tmp_path, *(f"sub-{i:02d}_T1w.nii" for i in range(20)))
    expected = discover_volumes(tmp_path)
    real = Path.iterdir
    shuffled = lambda self: iter(np.random.default_rng(1).permutation(list(real(self))).tolist())  # noqa: E731
    monkeypatch.setattr(Path, "iterdir", shuffled)
    assert discover_volumes(tmp_path) == expected


def test_links_without_content_are_records_and_linked_folders_are_followed_once(tmp_path):
    folder = touch(tmp_path / "set", "sub-01/anat/sub-01_T1w.nii.gz")
    touch(tmp_path / "far", "anat/sub-02_T1w.nii.gz")
    (folder / "sub-02").symlink_to(tmp_path / "far")
    (folder / "sub-03" / "anat").mkdir(parents=True)
    (folder / "sub-03" / "anat" / "sub-03_T1w.nii.gz").symlink_to("../../.git/annex/objects/gone")
    (folder / "sub-03" / "loop").symlink_to(folder)
    (folder / "again").symlink_to(folder / "sub-01")
    found = find_scans(folder)
    assert [record.subject for record in found.records] == ["sub-01", "sub-02", "sub-03"]
    assert {entry["file"] for entry in found.skipped} == {"again", "sub-03/loop"}
    reasons = sorted(entry["reason"] for entry in found.skipped)
    told = "is the folder {} again (a link); counted once".format
    assert reasons == [f"again: {told('sub-01')}", f"sub-03/loop: {told('set')}"], "which does not tell where they lie"


def test_scans_beside_those_that_are_taken_are_listed(tmp_path, caplog):
    touch(tmp_path, "a.nii", "b/c.nii", "b/d/e.nii.gz", "f/notes.txt")
    found = find_scans(tmp_path)
    assert [record.path.name for record in found.records] == ["a.nii"]
    assert [entry["file"] for entry in found.skipped] == ["b"]
    assert found.skipped[0]["reason"].startswith("b: 2 scans beside those that are taken; ")
    discover_volumes(tmp_path)
    assert "skipped: b: 2 scans" in caplog.text


def test_a_series_beside_nifti_files_is_listed(tmp_path):
    touch(tmp_path, "x/a.nii")
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "1").write_bytes(bytes(128) + b"DICM")
    found = find_scans(tmp_path)
    assert ([record.path.name for record in found.records], found.skipped[0]["file"]) == (["y"], "x")


def test_a_folder_that_cannot_be_listed_is_said(tmp_path, monkeypatch):
    touch(tmp_path, "sub-01/a.nii", "sub-02/b.nii")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("sub-02"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = find_scans(tmp_path)
    assert len(found.records) == 1
    assert [entry["reason"] for entry in found.skipped] == [
        "sub-02: cannot be listed (Permission denied); change permissions"
    ]


def test_names_are_short_enough_for_a_file_system_and_stay_apart(tmp_path):
    touch(tmp_path, *("ä" * 110 + f"_{i}.nii" for i in range(2)), "short.nii")
    names = [record.name for record in discover_volumes(tmp_path)]
    assert len(set(names)) == 3
    assert max(len(name.encode()) for name in names) <= 150
    assert "short" in names


def test_names_of_results_have_no_sign_that_a_file_system_refuses_and_no_folder(tmp_path):
    touch(tmp_path, 'a:b*"c".nii', "x/y.nii", "x/z.nii")
    assert [record.name for record in discover_volumes(tmp_path)] == ["a_b_c_"]
    found = discover_volumes(tmp_path / "x", subject_pattern="(.*)y") + discover_volumes(
        tmp_path, subject_pattern="b.*"
    )
    assert not any(set('/\\:*?"<>|') & set(record.name) for record in found)
    (tmp_path / 'a:b*"c".nii').unlink()
    names = [record.name for record in discover_volumes(tmp_path, subject_pattern="^(x/.)")]
    assert names == ["x_y", "x_z"]


def test_a_scan_beside_itself_packed_is_one_scan_and_the_other_a_skip(tmp_path):
    touch(tmp_path, "a.nii", "a.nii.gz", "b.nii", "c.nii.gz", "d/a.nii")
    found = find_scans(tmp_path)
    assert [record.path.name for record in found.records] == ["a.nii.gz", "b.nii", "c.nii.gz"]
    assert found.skipped[0] == {
        "file": "a.nii",
        "reason": "a.nii: lies beside a.nii.gz, the same scan packed; remove one of the two",
    }
    bids = touch(tmp_path / "bids", "sub-1/anat/sub-1_T1w.nii", "sub-1/anat/sub-1_T1w.nii.gz")
    assert [record.path.suffix for record in find_scans(bids).records] == [".gz"]
