"""What is wrong with a data set is found before any training, each fault by its own check; what is right passes."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from factories import tiny_model, write_slices
from PIL import Image

from monai_vqgen.__main__ import main
from monai_vqgen.data import SliceOptions, make_phantoms, save_codes
from monai_vqgen.data.verify import Verification, verify_folder
from monai_vqgen.errors import DatalistError
from monai_vqgen.models import TrainedModel
from monai_vqgen.weights import write_state


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    make_phantoms(folder, 4, seed=3)
    return folder


@pytest.fixture
def scans(clean, tmp_path) -> Path:
    shutil.copytree(clean, tmp_path / "scans")
    return tmp_path / "scans"


OPTIONS = SliceOptions(positions=[60.0, 80.0])


def found(folder: Path, **options) -> dict[tuple[str, str], str]:
    """Reasons by check and file."""
    findings = verify_folder(folder, slices=OPTIONS, **options).findings
    return {(finding.check, finding.file): finding.reason for finding in findings}


def change(path: Path, of: Path, edit) -> None:
    """Store `of` once more, with voxels and affine as `edit` gives them."""
    image = nib.load(of)
    voxels, affine = edit(np.asarray(image.dataobj), image.affine.copy())
    nib.save(nib.Nifti1Image(voxels, affine), path)


def test_scans_in_order_are_clean_and_nothing_is_written_to_them(clean):
    before = {path: path.stat().st_mtime_ns for path in (clean, *clean.rglob("*"))}
    verified = verify_folder(clean, slices=OPTIONS)
    assert verified.findings == []
    assert "4 scans of 4 subjects" in verified.summary
    assert verified.table().endswith("no findings")
    assert {path: path.stat().st_mtime_ns for path in (clean, *clean.rglob("*"))} == before


def test_a_damaged_scan_and_one_with_nan_are_found_by_reading(scans):
    first, second, *_ = sorted(scans.glob("*.nii.gz"))
    first.write_bytes(first.read_bytes()[:-100])

    def with_nan(voxels, affine):
        voxels = voxels.astype(np.float32)
        voxels[0, 0, 0] = np.nan
        return voxels, affine

    change(second, second, with_nan)
    reasons = found(scans)
    assert set(reasons) == {("reading", first.name), ("reading", second.name)}
    assert "truncated or damaged" in reasons["reading", first.name]
    assert "1 voxels are NaN" in reasons["reading", second.name]


def test_one_scan_under_two_names_is_found_in_another_type_and_axis_order(scans):
    first = sorted(scans.glob("*.nii.gz"))[0]

    def stored_otherwise(voxels, affine):
        affine[:3, 3] += affine[:3, 0] * (voxels.shape[0] - 1)
        affine[:3, 0] *= -1
        return voxels[::-1].astype(np.float32) * 3.7, affine

    change(scans / "sub-99_T1w.nii.gz", first, stored_otherwise)
    assert found(scans) == {("duplicates", "sub-99_T1w.nii.gz"): f"is {first.name} once more: remove one"}


def test_a_wrong_voxel_size_is_found(scans):
    first = sorted(scans.glob("*.nii.gz"))[0]
    change(first, first, lambda voxels, affine: (voxels, affine @ np.diag([0.1, 0.1, 0.1, 1])))
    assert "check the voxel size" in found(scans)["geometry", first.name]


def test_voxels_that_are_coarse_within_the_plane_are_found(scans):
    first = sorted(scans.glob("*.nii.gz"))[0]

    def thick(voxels, affine):
        axis = nib.aff2axcodes(affine).index(next(c for c in nib.aff2axcodes(affine) if c in "AP"))
        keep = [slice(None)] * 3
        keep[axis] = slice(None, None, 6)
        affine[:3, axis] *= 6
        return voxels[tuple(keep)], affine

    change(first, first, thick)
    assert "give another --plane" in found(scans)["geometry", first.name]


def test_another_contrast_is_found(scans):
    first = sorted(scans.glob("*.nii.gz"))[0]

    def inverted(voxels, affine):
        scaled = voxels / np.float32(np.percentile(voxels, 99.5))
        return np.where(scaled > 0.05, np.clip(1.1 - scaled, 0.05, 1) ** 3, 0), affine

    change(first, first, inverted)
    assert ("contrast", first.name) in found(scans)


def test_what_extraction_would_skip_is_told_with_its_reason(scans):
    verified = verify_folder(scans, slices=SliceOptions(positions=[60.0, 900.0]))
    assert {finding.check for finding in verified.findings} == {"skipped"}
    assert len(verified.findings) == 4
    assert "900" in verified.findings[0].reason


def test_a_slice_of_a_scan_that_shows_no_brain_is_found(scans):
    first = sorted(scans.glob("*.nii.gz"))[0]

    def dark(voxels, affine):
        """The head stays as it is, but for what lies 50 to 70 mm below its top."""
        axis = next(i for i, code in enumerate(nib.aff2axcodes(affine)) if code in "SI")
        size = np.linalg.norm(affine[:3, axis])
        lines = np.moveaxis(voxels, axis, 0)
        lines = lines[::-1] if nib.aff2axcodes(affine)[axis] == "S" else lines
        top = np.flatnonzero((lines > 0.1 * voxels.max()).any(axis=(1, 2)))[0]
        slab = lines[top + int(50 / size) : top + int(70 / size)]
        slab[slab > 0.03 * voxels.max()] = 0.03 * voxels.max()
        return voxels, affine

    change(first, first, dark)
    reasons = [reason for (check, file), reason in found(scans).items() if (check, file) == ("no brain", first.name)]
    assert len(reasons) == 1
    assert "_axial_060" in reasons[0] or "_axial_059" in reasons[0]


def test_one_scan_at_a_time_is_in_memory(clean, tmp_path):
    few, many = tmp_path / "few", tmp_path / "many"
    for folder, copies in ((few, 2), (many, 8)):
        folder.mkdir()
        for i in range(copies):
            shutil.copy(sorted(clean.glob("*.nii.gz"))[0], folder / f"sub-{i}_T1w.nii.gz")
    peaks = []
    for folder in (few, few, many):  # the first loads modules
        tracemalloc.start()
        verify_folder(folder, slices=SliceOptions(positions=60.0))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1]


# --- slices


def test_slices_in_order_are_clean(tmp_path):
    write_slices(tmp_path / "slices")
    assert found(tmp_path / "slices") == {}
    assert "8 training, 4 validation, 2 test" in verify_folder(tmp_path / "slices").summary


def test_what_is_wrong_with_slices_is_found(tmp_path):
    write_slices(tmp_path)
    images = tmp_path / "images"
    content = json.loads((tmp_path / "datalist.json").read_text())
    content["validation"][0]["subject"] = "training3"
    content["skipped"] = [{"file": "sub-9.nii", "reason": "constant"}]
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    shutil.copy(images / "training0.nii.gz", images / "test0.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((16, 16, 1), np.float32), np.eye(4)), images / "training1.nii.gz")
    nib.save(nib.Nifti1Image(np.full((20, 16, 1), 0.5, np.float32), np.eye(4)), images / "training2.nii.gz")
    nib.save(nib.Nifti1Image(np.full((16, 16, 1), 9.0, np.float32), np.eye(4)), images / "training4.nii.gz")
    assert set(found(tmp_path)) == {
        ("no brain", "images/training1.nii.gz"),
        ("geometry", "images/training2.nii.gz"),
        ("reading", "images/training4.nii.gz"),
        ("duplicates", "images/test0.nii.gz"),
        ("splits", "training3"),
        ("skipped", "sub-9.nii"),
    }


def test_ready_made_folders_of_pictures_are_slices(tmp_path):
    from PIL import Image

    random = np.random.default_rng(0)
    for split, subject in (("train", "sub-1"), ("validate", "sub-1"), ("test", "sub-2")):
        (tmp_path / split).mkdir()
        Image.fromarray(random.integers(0, 255, (8, 8), np.uint8)).save(tmp_path / split / f"{subject}_a.png")
    assert set(found(tmp_path)) == {("splits", "sub-1")}


# --- codes and weights


def test_damaged_codes_and_a_subject_in_two_splits_are_found(tmp_path):
    grids = {split: [torch.zeros(1, 2, 2, dtype=torch.int64)] for split in ("training", "test")}
    records = {split: [{"subject": "sub-1"}] for split in grids}
    save_codes(tmp_path, grids, records, codebook_sizes=[4], fingerprint="f" * 64)
    assert set(found(tmp_path)) == {("splits", "sub-1")}
    file = tmp_path / "codes.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\7")
    assert "checksum" in found(tmp_path)["reading", tmp_path.name]


def test_weights_are_loaded_and_damage_is_found(tmp_path, capsys):
    tiny_model().save(tmp_path)
    assert main(["verify", str(tmp_path)]) == 0
    file = tmp_path / "model_prior_level1.pt"
    file.write_bytes(file.read_bytes()[:-50])
    assert main(["verify", str(tmp_path)]) == 1
    assert "model_prior_level1.pt cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["model.pt", "model_prior_level1.pt", "training_state.pt", "models/generative/model.pt"]
)
def test_damage_of_any_file_of_weights_is_found(tmp_path, name):
    tiny_model().save(tmp_path)
    tiny_model().save(tmp_path / "models/generative")
    write_state({"epoch": 3}, tmp_path / "training_state.pt")
    assert found(tmp_path, load_weights=TrainedModel.from_bundle) == {}
    file = tmp_path / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert set(found(tmp_path, load_weights=TrainedModel.from_bundle)) == {("reading", name)}


def test_damage_of_a_repository_of_the_hub_is_found(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    assert found(tmp_path, load_weights=TrainedModel.from_bundle) == {}
    file = tmp_path / "model_prior_level1.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert set(found(tmp_path, load_weights=TrainedModel.from_bundle)) == {("reading", file.name)}


def test_weights_that_do_not_fit_their_record_are_found_in_either_release(tmp_path):
    for home in ("models", "models/generative"):
        tiny_model().save(tmp_path / home)
        (tmp_path / home / "model.json").write_text("{")
    expected = {("reading", f"{home}/model.pt") for home in ("models", "models/generative")}
    assert set(found(tmp_path, load_weights=TrainedModel.from_bundle)) == expected


def test_priors_without_an_autoencoder_are_in_order(tmp_path):
    tiny_model().save(tmp_path)
    (tmp_path / "model.pt").unlink()
    (tmp_path / "model.json").unlink()
    assert main(["verify", str(tmp_path)]) == 0


def test_another_file_beside_scans_does_not_make_them_weights(scans):
    (scans / "old.pt").write_bytes(b"old")
    assert "4 scans" in verify_folder(scans, slices=OPTIONS).summary


def test_a_scan_that_is_left_out_is_found(scans):
    (scans / "again").symlink_to(scans)
    assert found(scans) == {("skipped", "again"): f"is the folder {scans.name} again (a link); counted once"}


def test_samples_are_slices(tmp_path):
    write_slices(tmp_path)
    (tmp_path / "datalist.json").unlink()
    names = ["images/training0.nii.gz", "images/training1.nii.gz"]
    (tmp_path / "samples.json").write_text(json.dumps({"samples": [{"image": name} for name in names]}))
    verified = verify_folder(tmp_path)
    assert verified == (f"{tmp_path}: slices, 2 samples", [])
    (tmp_path / names[1]).unlink()
    assert set(found(tmp_path)) == {("reading", names[1])}
    (tmp_path / "samples.json").write_text("{}")
    assert set(found(tmp_path)) == {("reading", "samples.json")}


@pytest.mark.parametrize("name", ["datalist.json", "samples.json"])
def test_volumes_in_order_are_clean_and_a_slice_among_them_is_found(tmp_path, name):
    entries = [{"image": f"{split}.nii.gz", "subject": split} for split in ("training", "validation", "test")]
    for number, entry in enumerate(entries):
        volume = np.random.default_rng(number).random((6, 8, 7), np.float32)
        nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / entry["image"])
    listed = {"samples": entries} if name == "samples.json" else {entry["subject"]: [entry] for entry in entries}
    content = {"plane": None, "image_size": [6, 8, 7], **listed}
    (tmp_path / name).write_text(json.dumps(content))
    verified = verify_folder(tmp_path)
    assert verified.findings == []
    assert verified.summary.startswith(f"{tmp_path}: volumes, ")
    nib.save(nib.Nifti1Image(np.full((6, 8, 1), 0.5, np.float32), np.eye(4)), tmp_path / "test.nii.gz")
    assert set(found(tmp_path)) == {("reading", "test.nii.gz")}


# --- the command


def test_the_command_ends_with_a_table_and_a_status(scans, capsys):
    first = sorted(scans.glob("*.nii.gz"))[0]
    first.write_bytes(b"no scan")
    assert main(["verify", str(scans)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["reading", "1"]
    assert lines[2].split() == ["geometry", "ok"]
    assert any(line.startswith(f"reading: {first.name}: ") for line in lines)
    assert lines[-1].endswith("findings" if lines[-1][0] != "1" else "finding")
    assert main(["verify", str(scans / "nowhere")]) == 2


def test_a_folder_of_nothing_is_an_error(tmp_path):
    with pytest.raises(DatalistError, match="holds no scans"):
        verify_folder(tmp_path)


def test_a_long_list_is_cut(tmp_path):
    from monai_vqgen.data.verify import Finding

    table = Verification("x", [Finding("reading", f"{i}", "bad") for i in range(12)]).table()
    assert "reading: 9: bad" in table
    assert "reading: 10: bad" not in table
    assert "reading: and 2 more" in table


def test_a_folder_of_color_pictures_without_splits_has_no_finding(tmp_path):
    for i in range(6):
        pixels = np.random.default_rng(i).integers(30, 255, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    found = verify_folder(tmp_path)
    assert found.findings == []
    assert "4 training, 1 validation, 1 test" in found.summary
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:-60])
    assert [(each.check, each.file) for each in verify_folder(tmp_path).findings] == [("reading", "5.png")]


def test_slices_of_several_contrasts_are_read_with_all_their_channels(tmp_path):
    for split in ("train", "validate", "test"):
        (tmp_path / split).mkdir()
        for number in range(2):
            values = np.random.default_rng([number, len(split)]).random((16, 16, 1, 2), dtype=np.float32)
            nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / split / f"sub-{split}{number}.nii.gz")
    assert verify_folder(tmp_path).findings == []


@pytest.mark.parametrize("home", ["", "train"], ids=["in one folder", "by split"])
def test_what_keeps_pictures_from_being_read_is_told_rather_than_that_there_are_no_scans(tmp_path, home):
    for split in ("train", "validate", "test") if home else ("",):
        (tmp_path / split).mkdir(exist_ok=True)
        for name in ("a.png", "b.png"):
            Image.fromarray(np.full((16, 16), 99, dtype=np.uint8)).save(tmp_path / split / name)
    (tmp_path / home / "labels.csv").write_text("image,stain\na.png,ring\nb.png,cell\n")
    (fault,) = verify_folder(tmp_path).findings
    assert (fault.check, fault.file) == ("reading", tmp_path.name)
    assert "has the columns image, stain, not label" in fault.reason


def test_a_folder_of_neither_scans_nor_pictures_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DatalistError, match="holds no scans"):
        verify_folder(tmp_path)
