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
from monai_vqgen.models import TrainedModel

ROOT = Path(__file__).parents[2]
PAGE = "docs/own_data.md"
SMALL = {
    "train.json": "--network_def::channels 8 --network_def::residual_channels 4 --network_def::num_codes 8",
    "train_prior.json": "--prior_def::channels 8 --prior_def::num_layers 2 --prior_def::attention_every 0",
    "extract_slices.json": "--num_workers 0 --position_step_mm 15",
    "sample.json": "--num_samples 2",
}
SMALL_SLICES = " --image_size [64,64] --pixel_mm 4.0"


def tiny(command: str) -> str:
    """The command with tiny sizes; weights to start from decide those of their network themselves."""
    name = re.findall(r"bundle/configs/(\w+\.json)", command)[0]
    more = SMALL.get(name, "") if "--start_from" not in command else ""
    more += SMALL_SLICES if name == "extract_slices.json" and "--pixel_mm" not in command else ""
    return f"{command} {more} {'--max_epochs 1 --batch_size 4' if 'train' in name else ''}"


class Page:
    """The commands of the page, which run one after another in a folder; each one once."""

    def __init__(self, clone, commands):
        self.clone, self.left = clone, list(commands)

    def run(self, output: str) -> None:
        """The next command, which writes to this folder."""
        command = self.left.pop(0)
        assert command.partition("--output_dir ")[2].split()[0] == output
        self.clone.run(tiny(command))


@pytest.fixture
def page(clone, documented) -> Page:
    shown = Page(clone, documented(PAGE))
    assert len(shown.left) == 20
    return shown


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
def test_the_pages_commands_run_one_after_another(page):
    folder = page.clone.folder
    write_pictures(folder / "PICTURES", channels=1)
    for output in ("RUN", "CODES", "RUN", "RUN", "SAMPLES", "RECONSTRUCTIONS", "DISCS"):
        page.run(output)
    assert len(list((folder / "RECONSTRUCTIONS").rglob("*_recon.png"))) == 16
    discs = json.loads((folder / "DISCS" / "samples.json").read_text())["samples"]
    assert [sample["condition"] for sample in discs] == [{"label": "disc"}] * 2

    write_pictures(folder / "COLORS", channels=3)
    for output in ("COLOR_RUN", "COLOR_RECONSTRUCTIONS"):
        page.run(output)
    assert np.asarray(Image.open(folder / "COLOR_RECONSTRUCTIONS" / "3_recon.png")).shape == (32, 32, 3)

    make_phantoms(folder / "SCANS", 4, seed=1, voxel_mm=5.0, progress=False)
    for output in ("SAGITTAL", "SAGITTAL_RUN"):
        page.run(output)
    record = json.loads((folder / "SAGITTAL_RUN" / "model.json").read_text())
    assert (record["plane"], record["pixel_mm"], record["image_size"]) == ("sagittal", 1.0, [256, 256])

    write_ct(folder / "CT")
    for output in ("CT_SLICES", "CT_RUN", "CT_RECONSTRUCTIONS"):
        page.run(output)
    assert json.loads((folder / "CT_RUN" / "model.json").read_text())["window"] == [-20, 100]
    for path in (folder / "CT_RECONSTRUCTIONS").rglob("*.nii.gz"):
        values = nib.load(path).get_fdata()
        assert values.min() == -1000
        assert 0 < np.median(values[values > -900]) < 70

    write_contrasts(folder / "SUBJECTS")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / PAGE).read_text(), re.DOTALL)
    page.clone.run(
        shlex.join([sys.executable, "-c", code.replace("size=(128, 128)", "size=(128, 128), on_trim='warn'")])
    )
    first = sorted((folder / "CONTRASTS" / "train").iterdir())[0]
    assert nib.load(first).shape == (128, 128, 1, 2)
    page.run("CONTRASTS_RUN")
    assert json.loads((folder / "CONTRASTS_RUN" / "model.json").read_text())["architecture"]["out_channels"] == 2

    options = {"dataset_dir": str(folder / "SCANS"), "output_dir": str(folder / "SLICES"), "image_size": [64, 64]}
    run_stage("extract_slices", options={**options, "pixel_mm": 4.0, "position_step_mm": 15.0, "num_workers": 0})
    for output in ("TUNED", "TUNED_CODES", "TUNED", "TUNED_GENERATIVE"):
        page.run(output)
    for name in ("model.json", "model_prior_level0.json"):
        assert (folder / "TUNED" / name).is_file()
    assert "Starting from the weights" in (folder / "TUNED_GENERATIVE" / "train.log").read_text()
    assert page.left == []


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
