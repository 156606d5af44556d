"""Every command of docs/own_data.md runs as it stands there, with tiny sizes behind it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_vqgen.bundles import run_stage
from monai_vqgen.data import make_phantoms
from monai_vqgen.engines.command_line import run_bundle
from monai_vqgen.models import TrainedModel

ROOT = Path(__file__).parents[2]
PAGE = "docs/own_data.md"
SMALL = {
    "train.json": "--network_def::channels 8 --network_def::residual_channels 4 --network_def::num_codes 8",
    "train_prior.json": "--prior_def::channels 8 --prior_def::num_layers 2 --prior_def::attention_every 0",
    "extract_slices.json": "--num_workers 0 --position_step_mm 15",
    "sample.json": "--num_samples 2",
}
TRUSTED = pytest.mark.filterwarnings("ignore:parsing .*config_file:UserWarning")  # MONAI's, of every config
SMALL_SLICES = " --image_size [64,64] --pixel_mm 4.0"


def tiny(command: str) -> str:
    """The command with tiny sizes; weights to start from decide those of their network themselves."""
    name = re.findall(r"bundle/configs/(\w+\.json)", command)[0]
    more = SMALL.get(name, "") if "--start_from" not in command else ""
    more += SMALL_SLICES if name == "extract_slices.json" and "--pixel_mm" not in command else ""
    more += " --adversarial_start 0" if "train_generative" in command else ""
    return f"{command} {more} {'--max_epochs 1 --batch_size 4' if 'train' in name else ''}"


SECTIONS = {
    "pictures and labels": ["RUN", "CODES", "RUN", "RUN", "SAMPLES", "RECONSTRUCTIONS", "DISCS"],
    "colors": ["COLOR_RUN", "COLOR_RECONSTRUCTIONS"],
    "size and plane": ["SAGITTAL", "SAGITTAL_RUN"],
    "CT": ["CT_SLICES", "CT_RUN", "CT_RECONSTRUCTIONS"],
    "contrasts": ["CONTRASTS_RUN"],
    "fine-tuning": ["TUNED", "TUNED_CODES", "TUNED", "TUNED_GENERATIVE"],
}
"""Where the page's commands write to, in its order; each of them is run by the test of its section."""


def output_of(command: str) -> str:
    return command.partition("--output_dir ")[2].split()[0]


def test_the_sections_hold_all_commands_of_the_page(documented):
    outputs = [output for section in SECTIONS.values() for output in section]
    assert [output_of(command) for command in documented(PAGE)] == outputs


@pytest.fixture
def section(clone, documented, monkeypatch):
    """Run the commands of a section one after another, as `monai.bundle` runs them; gives their folder."""
    monkeypatch.chdir(clone.folder)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which the commands change for their process

    def run(name: str) -> None:
        commands = [command for command in documented(PAGE) if output_of(command) in SECTIONS[name]]
        assert len(commands) == len(SECTIONS[name])
        for command in commands:
            words = shlex.split(tiny(command))
            assert words[:4] == ["python", "-m", "monai.bundle", "run"]
            run_bundle(words[4:])

    return run


def write_pictures(folder, *, channels: int) -> None:
    """Discs and squares in folders of their names, or, in color, beside one another."""
    rows, columns = np.mgrid[:32, :32] / 32 - 0.5
    for i in range(16):
        kind = "disc" if i % 2 else "square"
        mask = rows**2 + columns**2 < 0.1 if i % 2 else np.maximum(abs(rows), abs(columns)) < 0.3
        pixels = (mask[..., None] * np.array([220, 40, 90]) * (1 - i / 40)).astype(np.uint8)
        home = folder / (kind if channels == 1 else "")
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(home / f"{i}.png")


def write_ct(folder) -> None:
    """Phantoms in Hounsfield units: air, brain of 20 to 50, skin and bone around it left out."""
    make_phantoms(folder, 4, seed=3, voxel_mm=5.0, progress=False)
    for path in folder.rglob("*.nii.gz"):
        image = nib.load(path)
        values = np.asarray(image.dataobj, dtype=float)
        hounsfield = np.where(values > 0.02 * values.max(), 20 + 30 * values / values.max(), -1000)
        nib.save(nib.Nifti1Image(hounsfield.astype(np.int16), image.affine), path)


def write_contrasts(folder) -> None:
    """Two contrasts of each phantom, the second the first turned over."""
    make_phantoms(folder / "all", 5, seed=4, voxel_mm=5.0, progress=False)
    for i, path in enumerate(sorted((folder / "all").rglob("*.nii.gz"))):
        image = nib.load(path)
        values = np.asarray(image.dataobj, dtype=np.float32)
        home = folder / ("train" if i < 3 else "validate") / f"sub-{i}"
        home.mkdir(parents=True)
        nib.save(image, home / "t1.nii.gz")
        nib.save(
            nib.Nifti1Image(np.where(values > 0, values.max() - 0.9 * values, 0), image.affine), home / "t2.nii.gz"
        )
    shutil.rmtree(folder / "all")


@pytest.mark.slow
@TRUSTED
def test_pictures_in_folders_of_their_classes_give_samples_of_a_class(section, tmp_path):
    write_pictures(tmp_path / "PICTURES", channels=1)
    section("pictures and labels")
    assert len(list((tmp_path / "RECONSTRUCTIONS").rglob("*_recon.png"))) == 16
    discs = json.loads((tmp_path / "DISCS" / "samples.json").read_text())["samples"]
    assert [sample["condition"] for sample in discs] == [{"label": "disc"}] * 2


@pytest.mark.slow
@TRUSTED
def test_colors_are_reconstructed_as_colors(section, tmp_path):
    write_pictures(tmp_path / "COLORS", channels=3)
    section("colors")
    assert np.asarray(Image.open(tmp_path / "COLOR_RECONSTRUCTIONS" / "3_recon.png")).shape == (32, 32, 3)


@pytest.mark.slow
@TRUSTED
def test_sagittal_slices_of_256_pixels_are_trained_on(section, tmp_path):
    make_phantoms(tmp_path / "SCANS", 4, seed=1, voxel_mm=5.0, progress=False)
    section("size and plane")
    record = json.loads((tmp_path / "SAGITTAL_RUN" / "model.json").read_text())
    assert (record["plane"], record["pixel_mm"], record["image_size"]) == ("sagittal", 1.0, [256, 256])


@pytest.mark.slow
@TRUSTED
def test_the_window_of_ct_is_recorded_and_what_comes_back_lies_within_it(section, tmp_path):
    write_ct(tmp_path / "CT")
    section("CT")
    assert json.loads((tmp_path / "CT_RUN" / "model.json").read_text())["window"] == [-20, 100]
    for path in (tmp_path / "CT_RECONSTRUCTIONS").rglob("*.nii.gz"):
        values = nib.load(path).get_fdata()
        assert (values.min(), values.max() <= 100) == (-1000, True)


@pytest.mark.slow
@TRUSTED
def test_the_snippet_cuts_slices_of_two_contrasts_that_are_trained_on(section, tmp_path):
    write_contrasts(tmp_path / "SUBJECTS")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / PAGE).read_text(), re.DOTALL)
    exec(code, {})
    for path in sorted((tmp_path / "CONTRASTS" / "train").iterdir()):
        image = nib.load(path).get_fdata()
        assert image.shape == (128, 128, 1, 2)
        inside = image[..., 0] > 0.3
        assert np.corrcoef(image[..., 0][inside], image[..., 1][inside])[0, 1] < -0.9, "one lies over the other"
    section("contrasts")
    assert json.loads((tmp_path / "CONTRASTS_RUN" / "model.json").read_text())["architecture"]["out_channels"] == 2


@pytest.mark.slow
@TRUSTED
def test_the_packages_weights_are_fine_tuned(section, tmp_path):
    make_phantoms(tmp_path / "SCANS", 10, seed=1, voxel_mm=5.0, progress=False)
    options = {"dataset_dir": str(tmp_path / "SCANS"), "output_dir": str(tmp_path / "SLICES"), "image_size": [64, 64]}
    run_stage("extract_slices", options={**options, "pixel_mm": 4.0, "position_step_mm": 15.0, "num_workers": 0})
    section("fine-tuning")
    for log, name in {"TUNED": "faithful", "TUNED_GENERATIVE": "generative"}.items():
        assert f"start_from: {name}" in (tmp_path / log / "train.log").read_text()
    assert "conditions: position_mm, age, sex" in (tmp_path / "TUNED" / "model_prior_level0.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("plane", ["coronal", "sagittal"])
def test_every_plane_goes_through_every_stage(tmp_path, plane):
    make_phantoms(tmp_path / "scans", 4, seed=1, voxel_mm=5.0, progress=False)
    sizes = {"image_size": [64, 64], "pixel_mm": 4.0, "position_step_mm": 15.0, "num_workers": 0, "plane": plane}
    folders = {name: str(tmp_path / name) for name in ("scans", "slices", "run", "codes", "samples", "back")}
    run_stage("extract_slices", options={"dataset_dir": folders["scans"], "output_dir": folders["slices"], **sizes})
    network = {"network_def::channels": 8, "network_def::residual_channels": 4, "network_def::num_codes": 8}
    options = {"dataset_dir": folders["slices"], "output_dir": folders["run"], "max_epochs": 1}
    run_stage("train", training=True, options={**options, **network})
    model = {"model": f"{folders['run']}/model.pt"}
    run_stage("extract_codes", options={"dataset_dir": folders["slices"], "output_dir": folders["codes"], **model})
    prior = {"prior_def::channels": 8, "prior_def::num_layers": 2, "prior_def::attention_every": 0, "max_epochs": 1}
    for level in (0, 1):
        options = {"dataset_dir": folders["codes"], "output_dir": folders["run"], "level": level}
        run_stage("train_prior", training=True, options={**options, **prior})
    run_stage("sample", options={"output_dir": folders["samples"], "num_samples": 2, "position_mm": 60.0, **model})
    listed = json.loads((tmp_path / "samples" / "samples.json").read_text())
    assert listed["plane"] == plane
    run_stage("inference", options={"dataset_dir": folders["scans"], "output_dir": folders["back"], **model})
    for scan in (tmp_path / "scans").rglob("*.nii.gz"):
        again = nib.load(next((tmp_path / "back").rglob(f"{scan.name.removesuffix('.nii.gz')}_recon.nii.gz")))
        assert again.shape == nib.load(scan).shape
    assert TrainedModel.from_bundle(folders["run"]).record.plane == plane
