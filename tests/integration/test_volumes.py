"""Every command of docs/volumes.md runs as it stands there, on phantoms and with tiny sizes; so does its Python."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from monai_vqgen.data import make_phantoms
from monai_vqgen.demo.run import run_demo
from monai_vqgen.engines.command_line import run_bundle
from monai_vqgen.errors import InputError, ScanError, root_cause
from monai_vqgen.models import TrainedModel

ROOT = Path(__file__).parents[2]
PAGE = "docs/volumes.md"
SIZE = (24, 32, 32)
SMALL = {
    "train.json": "--network_def::channels 8 --network_def::residual_channels 4 --network_def::num_codes 8",
    "train_prior.json": "--prior_def::channels 8 --prior_def::num_layers 2 --prior_def::attention_every 0",
    "extract_slices.json": "--num_workers 0 --on_trim warn",
}
TRUSTED = pytest.mark.filterwarnings("ignore:parsing .*config_file:UserWarning")  # MONAI's, of every config


def tiny(command: str) -> list[str]:
    name = re.findall(r"bundle/configs/(\w+\.json)", command)[0]
    smaller = command.replace('--pixel_mm 2.5 --image_size "[64,72,64]"', "--pixel_mm 6.5 --image_size [24,32,32]")
    words = shlex.split(f"{smaller} {SMALL.get(name, '')} {'--max_epochs 1' if 'run training' in command else ''}")
    assert words[:4] == ["python", "-m", "monai.bundle", "run"]
    return words[4:]


@pytest.mark.slow
@TRUSTED
def test_the_commands_of_the_page_lead_from_scans_to_volumes(clone, documented, tmp_path, monkeypatch):
    monkeypatch.chdir(clone.folder)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which the commands change for their process
    make_phantoms(tmp_path / "SCANS", 6, voxel_mm=5.0, progress=False)
    for command in documented(PAGE):
        run_bundle(tiny(command))
    sample = nib.load(tmp_path / "out/volume_samples/images/sample_0000.nii.gz")
    assert sample.shape == SIZE
    assert nib.aff2axcodes(sample.affine) == ("R", "A", "S")
    np.testing.assert_allclose(sample.header.get_zooms(), 6.5)
    np.testing.assert_allclose(sample.affine @ [11.5, 15.5, 15.5, 1], [0, 0, 0, 1], atol=1e-5)  # the middle
    listed = json.loads((tmp_path / "out/volume_samples/samples.json").read_text())
    assert {entry["condition"]["sex"] for entry in listed["samples"]} == {"f"}
    assert {frozenset(entry["condition"]) for entry in listed["samples"]} == {frozenset({"age", "sex"})}
    for path in (tmp_path / "SCANS").glob("*.nii.gz"):
        scan = nib.load(path)
        made = nib.load(tmp_path / "out/volume_reconstructions" / f"{path.name[:-7]}_recon.nii.gz")
        assert made.shape == scan.shape
        np.testing.assert_allclose(made.affine, scan.affine, atol=1e-4)
    metrics = json.loads((tmp_path / "out/volume_evaluation/metrics.json").read_text())
    assert metrics["data"]["image_size"] == list(SIZE)
    with Image.open(tmp_path / "out/volume_evaluation/reconstructions.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
    names = run_python(tmp_path)
    model, volumes, mask = names["model"], names["volumes"], names["mask"]
    assert volumes.affine.shape == (2, 4, 4)
    assert torch.equal(names["completed"][..., ~mask], volumes.images[..., ~mask])
    assert [nats.shape for nats in names["nats"]] == [(2,), (2,)]
    assert names["scan"].shape == nib.load(tmp_path / "SCANS/sub-01_T1w.nii.gz").shape or names["scan"].ndim == 4
    refused(model)


def run_python(folder: Path) -> dict:
    (block,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / PAGE).read_text(), re.DOTALL | re.MULTILINE)
    names: dict = {}
    exec(block, names)  # as a reader would
    return names


def refused(model: TrainedModel) -> None:
    """What a model of volumes cannot do is said with what can be done instead."""
    with pytest.raises(InputError, match="conditioned on age, sex, not on position_mm"):
        model.sample(1, position_mm=65.0)
    with pytest.raises(InputError, match=r"images of shape \(1, 1, 24, 32\): give \(b, 1, x, y, z\)"):
        model.encode(torch.zeros(1, 1, 24, 32))
    with pytest.raises(ScanError, match="a single slice"):
        model.reconstruct(np.ones((24, 32, 1)))
    slices = (
        "--config_file bundle/configs/extract_slices.json --dataset_dir SCANS --output_dir out/slices --image_size 32"
    )
    run_bundle(shlex.split(f"run {slices} --pixel_mm 6.5 --position_step_mm 30 --num_workers 0")[1:])
    evaluate = "--config_file bundle/configs/evaluate.json --dataset_dir out/slices --model out/volume_model/model.pt"
    with pytest.raises(Exception) as raised:
        run_bundle(shlex.split(f"run {evaluate} --output_dir out/none")[1:])
    assert re.search(r"is not a volume \[X, Y, Z\]; .* --dimensions 3", str(root_cause(raised.value)))


@pytest.mark.slow
@TRUSTED
def test_the_demo_of_volumes_ends_with_a_report_that_shows_brains(tmp_path):
    make_phantoms(tmp_path / "scans", 6, voxel_mm=5.0, progress=False)
    page = run_demo(tmp_path / "scans", tmp_path / "out", size="volumes_tiny", dimensions=3, seed=3).read_text()
    assert "From scans to new volumes" in page
    assert re.search(r"24 . 32 . 32 voxels of 6.5 mm", page)
    with Image.open(tmp_path / "out/slices/contact_sheet.png") as sheet:
        assert 0.1 < np.mean(np.asarray(sheet) > 60) < 0.6  # brains on black


def test_a_size_of_slices_is_no_demo_of_volumes(tmp_path):
    with pytest.raises(InputError, match="size 'tiny' is of 2 dimensions, not of 3"):
        run_demo(None, tmp_path, size="tiny", dimensions=3)
