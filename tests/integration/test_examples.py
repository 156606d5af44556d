"""Every example runs: by its own command on phantoms, by that of docs/EXAMPLES.md on real scans, as pictured there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import map_coordinates

from monai_vqgen.bundles import run_stage
from monai_vqgen.data import make_phantoms

ROOT = Path(__file__).parents[2]
PAGE, IMAGES = ROOT / "docs" / "EXAMPLES.md", ROOT / "docs" / "images"
# the first four are those of the page's second picture; with those after them there is training, validation and test
REAL_SUBJECTS = ("sub-01", "sub-02", "sub-03", "sub-04", "sub-08", "sub-12", "sub-20", "sub-30", "sub-31", "sub-32")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("examples") / "scans"
    make_phantoms(folder, 8, seed=2)
    return folder


def example(name: str, *arguments: str | Path) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_three_planes_of_a_scan_are_written_where_they_lie(scans, tmp_path):
    scan = sorted(scans.rglob("*.nii.gz"))[0]
    example("clinical_pipeline.py", scan, tmp_path)
    volume = nib.load(scan)
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * [*volume.shape, 1]
    low, high = (getattr((volume.affine @ corners.T)[:3], name)(1) for name in ("min", "max"))
    for plane, axis in {"axial": 2, "coronal": 1, "sagittal": 0}.items():
        (path,) = (tmp_path / plane).glob(f"*_{plane}.nii.gz")
        image = nib.load(path)
        assert image.shape == (128, 128, 1)
        middle = (image.affine @ [63.5, 63.5, 0, 1])[:3]
        assert ((low < middle) & (middle < high)).all(), plane
        assert abs(image.affine[axis, 2]) == max(abs(image.affine[:3, 2])), plane
    assert np.asarray(Image.open(tmp_path / "planes.png")).std() > 10


def test_both_caches_give_the_slices_of_four_volumes(scans, tmp_path):
    printed = example("cached_datasets.py", scans, tmp_path)
    assert "equal: True" in printed
    assert "memory: (12, 1, 128, 128), from 0.00 to 1.00" in printed
    assert "disk: (12, 1, 128, 128), from 0.00 to 1.00" in printed
    assert np.asarray(Image.open(tmp_path / "epochs.png")).std() > 10


def test_the_networks_learn_in_a_loop_of_ones_own(scans, tmp_path):
    options = {"image_size": [32, 32], "pixel_mm": 7.0, "position_step_mm": 15.0}
    run_stage("extract_slices", options={"dataset_dir": str(scans), "output_dir": str(tmp_path / "slices"), **options})
    printed = example("plain_pytorch.py", tmp_path / "slices", tmp_path / "out", "--steps", "60")
    losses = [float(line.split()[-1]) for line in printed.splitlines() if line.startswith("step")]
    assert losses[-1] < 0.5 * losses[0]
    assert np.asarray(Image.open(tmp_path / "out/reconstructions.png")).std() > 10


@pytest.fixture(scope="module")
def few(tmp_path_factory, real_data) -> Path:
    """A BIDS tree as the download gives it, with some subjects of each part of the release's split."""
    folder = tmp_path_factory.mktemp("few")
    (folder / "participants.tsv").symlink_to(real_data / "ds002748" / "participants.tsv")
    for subject in REAL_SUBJECTS:
        (folder / subject / "anat").mkdir(parents=True)
        name = f"{subject}_T1w.nii.gz"
        (folder / subject / "anat" / name).symlink_to(real_data / "ds002748" / name)
    return folder


def commands_with(documented: Any, word: str) -> list[str]:
    found = [command for command in documented("docs/EXAMPLES.md") if word in command]
    assert found, word
    return found


def assert_alike(drawn: Path, name: str, *, rows: float = 1.0) -> None:
    """The picture of the page is the one that its command draws, in the upper part of it, tile by tile."""
    pictures = [np.asarray(Image.open(path).convert("L"), dtype=float) for path in (drawn, IMAGES / name)]
    assert pictures[0].shape == pictures[1].shape
    difference = np.abs(pictures[0] - pictures[1])[: round(rows * len(pictures[0]))]
    tiles = [tile.mean() for row in np.array_split(difference, 8) for tile in np.array_split(row, 8, axis=1)]
    assert max(tiles) < 3  # of 255; other fonts and processors


def numbers(text: str, unit: str) -> list[float]:
    return [float(number) for number in re.findall(rf"([\d.]+) {unit}", text)]


def test_every_example_stands_on_the_page_with_a_command_and_a_small_picture(documented):
    page = PAGE.read_text(encoding="utf-8")
    pages = ("docs/EXAMPLES.md", "docs/SCALING.md", "docs/sharing.md")
    commands = "\n".join(command for page in pages for command in documented(page))
    for path in [*(ROOT / "examples").glob("*.py"), *(ROOT / "examples").glob("*.sh")]:
        assert f"`examples/{path.name}`" in page
        assert re.search(rf"examples/{path.name} (SCANS|EXPORT|out/examples/slices)", commands)
    pictures = re.findall(r"^!\[([^\]]+)\]\(images/(\w+\.png)\)$", page, flags=re.MULTILINE)
    assert [name for _, name in pictures] == [
        f"example_{command.split()[1].removeprefix('examples/').removesuffix('.py')}.png"
        for command in documented("docs/EXAMPLES.md")
        if command.startswith("python examples/")
    ]
    for words, name in pictures:
        assert len(words) > 30, "a reader who cannot see the picture reads what it shows"
        assert (IMAGES / name).stat().st_size < 400_000
    assert "ds002748" in page
    assert "CC0" in page


@pytest.mark.real
def test_the_weights_that_ship_write_and_read_a_test_subject(clone, documented, few):
    (clone.folder / "SCANS").symlink_to(few)
    (command,) = commands_with(documented, "pretrained_weights.py")
    again, coarse, black = numbers(clone.run(command), "dB")
    assert again > 32
    assert again > coarse + 4 > black + 14
    # the lowest row is drawn at random: another processor may round one code otherwise, and all after it differ
    assert_alike(clone.folder / "out/examples/pretrained/slices.png", "example_pretrained_weights.png", rows=0.79)


@pytest.mark.real
def test_a_real_scan_is_cut_denoised_and_written_where_it_lies(clone, documented, few):
    (clone.folder / "SCANS").symlink_to(few)
    (command,) = commands_with(documented, "clinical_pipeline.py")
    clone.run(command)
    out = clone.folder / "out/examples/clinical"
    scan = nib.load(few / "sub-08/anat/sub-08_T1w.nii.gz")
    voxels = scan.get_fdata()
    for plane in ("axial", "coronal", "sagittal"):
        (path,) = (out / plane).glob("*.nii.gz")
        image = nib.load(path)
        places = np.moveaxis(np.indices(image.shape), 0, -1).reshape(-1, 3)
        there = nib.affines.apply_affine(np.linalg.inv(scan.affine) @ image.affine, places)
        original = map_coordinates(voxels, there.T, order=1).reshape(image.shape)
        assert np.corrcoef(original.ravel(), image.get_fdata().ravel())[0, 1] > 0.97, plane
    assert_alike(out / "planes.png", "example_clinical_pipeline.png")


@pytest.mark.real
def test_both_caches_give_the_slices_of_real_scans_and_mirror_them_alike(clone, documented, few):
    (clone.folder / "SCANS").symlink_to(few)
    (command,) = commands_with(documented, "cached_datasets.py")
    assert "equal: True" in clone.run(command)
    assert_alike(clone.folder / "out/examples/cached/epochs.png", "example_cached_datasets.png")


@pytest.mark.real
def test_a_loop_of_ones_own_learns_real_slices(clone, documented, few):
    (clone.folder / "SCANS").symlink_to(few)
    printed = [clone.run(command) for command in commands_with(documented, "out/examples/slices")]
    assert len(printed) == 2
    reconstruction, mean = numbers(printed[1], "dB")
    assert reconstruction > mean + 2
    drawn = np.asarray(Image.open(clone.folder / "out/examples/plain/reconstructions.png"))
    assert len(drawn) == len(np.asarray(Image.open(IMAGES / "example_plain_pytorch.png")))
