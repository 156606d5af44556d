"""The notebook runs from first cell to last, what it prints is true, and it shows what the shipped weights give."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from factories import tiny_model
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from skimage.metrics import structural_similarity

from monai_vqgen.data import load_datalist
from monai_vqgen.networks import ConditionEncoder, EMACodebook, HierarchicalVQVAE
from monai_vqgen.transforms import LoadSlice

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "evaluate.ipynb"
CODES, SIZE = 16, (32, 32)
pytestmark = pytest.mark.filterwarnings("ignore")  # Jupyter's own; the kernel's are the notebook's


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def execute(notebook: Any, folder: Path) -> None:
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()


def printed(notebook: Any, cell: str) -> str:
    (found,) = [c for c in notebook.cells if c["id"] == cell]
    return "".join(output["text"] for output in found.outputs if output.output_type == "stream")


def pictures(notebook: Any) -> list[Any]:
    return [o for c in notebook.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]


def teach(network: HierarchicalVQVAE) -> None:
    """A hundred steps on noisy discs about the size of a head: reconstructions are no longer black."""
    rows, columns = torch.meshgrid(*(torch.arange(size) - size / 2 for size in SIZE), indexing="ij")
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(100):
        radius, brightness = torch.rand(2, 8, 1, 1, 1)
        discs = ((rows**2 + columns**2).sqrt() < 8 + 6 * radius) * (0.3 + 0.6 * brightness)
        reconstruction, levels = network.train_pass(discs)
        loss = torch.nn.functional.mse_loss(reconstruction, discs) + sum(level.loss for level in levels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> tuple[Path, HierarchicalVQVAE]:
    """A small but complete model, conditioned on position, age and sex; its autoencoder has seen discs."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    network = HierarchicalVQVAE(channels=16, residual_channels=8, quantizers=[EMACodebook(CODES, 16) for _ in range(2)])
    teach(network)
    sexes = ["f", "x"]  # phantoms have "m", too: unknown to this model
    encoder = ConditionEncoder({"position_mm": (40.0, 90.0), "age": (20.0, 60.0)}, {"sex": sexes})
    tiny_model(SIZE, autoencoder=network, condition=encoder, record={"pixel_mm": 7.0}).save(folder)
    return folder, network.eval()


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An environment without this notebook's variables, and a folder to work in."""
    for name in ("MODEL", "PRIORS", "SCANS", "SPLIT", "OUTPUT"):
        monkeypatch.delenv(f"MONAI_VQGEN_{name}", raising=False)
    monkeypatch.delenv("MPLBACKEND", raising=False)  # pictures belong into the notebook
    return monkeypatch


def scores_of(notebook: Any, cell: str) -> dict[str, list[float]]:
    """The rows of a printed table, numbers by name."""
    rows = re.findall(r"^(\w[\w ]*?)((?: +-?\d+\.\d+)+)$", printed(notebook, cell), flags=re.MULTILINE)
    return {name: [float(number) for number in numbers.split()] for name, numbers in rows}


def test_the_notebook_is_valid_and_shows_the_outputs_of_one_run_of_all_its_cells():
    notebook = read()
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        assert len(cell.source.splitlines()) <= 25, cell["id"]
        for output in cell.outputs:
            assert output.output_type in ("stream", "display_data"), cell["id"]
            assert output.get("name", "stdout") == "stdout", cell["id"]
    assert len(pictures(notebook)) >= 10
    assert NOTEBOOK.stat().st_size < 1_500_000


def test_what_it_shows_says_where_it_comes_from_and_nothing_of_the_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    for word in ("ds002748", "CC0", "not for diagnosis", "they show nobody"):
        assert word in text
    shown = "".join(output.text for cell in read().cells for output in cell.get("outputs", []) if "text" in output)
    assert "phantoms" not in shown
    assert not re.search(r"(?<![\w.])/\w+/|[A-Z]:\\\\|\.py\b", shown), "a path of the machine where it ran"


@pytest.mark.slow
@pytest.mark.real
def test_its_outputs_are_those_of_the_weights_that_ship_on_the_test_subjects(fresh, clone, documented, real_data):
    shutil.copytree(NOTEBOOK.parent, clone.folder / "notebooks", ignore=shutil.ignore_patterns("out"))
    (clone.folder / "SCANS").symlink_to(real_data / "ds002748")
    (command,) = [command for command in documented("docs/EXAMPLES.md") if "jupyter execute" in command]
    clone.run(command)
    anew, shown = nbformat.read(clone.folder / "notebooks/evaluate.ipynb", as_version=4), read()
    split = json.loads((ROOT / "configs/splits/ds002748.json").read_text())
    assert f"judged: {', '.join(split['test'])}" in printed(anew, "scans")
    assert printed(anew, "scans") == printed(shown, "scans")
    table = scores_of(anew, "reconstruct")
    decibels = {name: row[2] for name, row in table.items()}
    assert decibels["reconstruction"] > 31
    assert decibels["reconstruction"] > decibels["coarsest level alone"] + 4
    assert decibels["coarsest level alone"] > decibels["mean training image"] > decibels["all black"]
    bits = scores_of(anew, "likelihood")
    assert all(slices < noise for slices, noise in zip(bits["test slices"], bits["noise"], strict=True))
    for cell in ("reconstruct", "likelihood"):  # shown as they come out; other processors may round otherwise
        again, before = scores_of(anew, cell), scores_of(shown, cell)
        assert again.keys() == before.keys()
        for name, row in before.items():
            assert again[name] == pytest.approx(row, rel=0.01, abs=0.01), name
    assert len(pictures(anew)) == len(pictures(shown))


@pytest.mark.slow
def test_it_runs_on_phantoms_and_its_scores_are_scikit_images(fresh, tmp_path, weights):
    folder, network = weights
    fresh.setenv("MONAI_VQGEN_MODEL", str(folder / "model.pt"))
    notebook = read()
    (training,) = [cell for cell in notebook.cells if cell["id"] == "train"]
    training.source = training.source.replace('"--minutes", "1"', '"--minutes", "0.2"')
    execute(notebook, tmp_path)
    assert len(pictures(notebook)) >= 10
    assert "phantoms stand in" in printed(notebook, "scans")
    assert "24 slices of 4 phantoms" in printed(notebook, "reconstruct")
    assert "position_mm" in printed(notebook, "load")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

    records = load_datalist(tmp_path / "out" / "notebook" / "slices", "test")
    images = torch.stack([LoadSlice()(record["image"]).as_tensor() for record in records])
    with torch.no_grad():
        again = network(images).clamp(0, 1)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    pairs = zip(again[:, 0].numpy(), images[:, 0].numpy(), strict=True)
    ssim = np.mean([structural_similarity(x, y, **options) for x, y in pairs])
    scores = {name: row[0] for name, row in scores_of(notebook, "reconstruct").items()}
    assert scores["reconstruction"] == pytest.approx(ssim, abs=6e-4)  # three digits are printed
    assert scores["reconstruction"] > scores["all black"] + 0.1

    lines = printed(notebook, "likelihood").splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == ["test slices", "upside down", "noise", "uniform"]
    assert lines[-1].split()[1:] == ["4.00", "4.00"]


@pytest.mark.slow
def test_without_weights_it_says_how_to_make_them(fresh, tmp_path):
    fresh.setenv("MONAI_VQGEN_MODEL", str(tmp_path / "nowhere" / "model.pt"))
    with pytest.raises(CellExecutionError) as error:
        execute(read(), tmp_path)
    message = error.value.evalue
    assert f"There are no weights at {tmp_path / 'nowhere' / 'model.pt'}" in message
    commands = re.findall(r"bundle/configs/(\w+)\.json", message)
    assert commands == ["extract_slices", "train", "extract_codes", "train_prior", "train_prior"]
