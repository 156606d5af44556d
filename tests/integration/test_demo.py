"""The demo runs every stage through the bundle and ends with a report; tiny, but the whole of it."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from monai_vqgen.__main__ import main
from monai_vqgen.data import make_phantoms
from monai_vqgen.demo.run import run_demo
from monai_vqgen.errors import DatalistError, InputError, OutputExistsError

ISSUE_KEYS = {
    "reconstruction": {"ssim", "ssim_brain", "psnr", "psnr_brain", "mae", "baselines"},
    "codebook": {"level", "size", "usage", "perplexity"},
    "prior": {"level", "bits_per_code", "uniform_bits_per_code", "histogram_bits_per_code"},
    "sampling": {"num_samples", "seconds", "ratio_to_whole_grid"},
    "data": {"subjects", "slices", "image_size"},
}
OURS_BESIDES = {"judged", "top_only", "rate"}  # what the evaluation adds to the keys that were asked for


class Links(HTMLParser):
    """Collects everything a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "poster")]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    make_phantoms(folder / "scans", 6, voxel_mm=5.0, progress=False)
    run_demo(folder / "scans", folder / "out", size="tiny", seed=3)
    return folder / "out"


@pytest.mark.slow
def test_the_promised_files_are_there(demo):
    for name in ("report.html", "reconstructions.png", "samples.png", "model.pt", "metrics.json"):
        assert (demo / name).stat().st_size > 100
    for level in (0, 1):
        assert (demo / f"model_prior_level{level}.pt").is_file()
    assert len(list((demo / "reconstructions").rglob("*_recon.nii.gz"))) == 3
    assert len(list((demo / "samples" / "images").glob("*.nii.gz"))) == 3


@pytest.mark.slow
def test_metrics_have_exactly_the_promised_keys(demo):
    metrics = json.loads((demo / "metrics.json").read_text())
    assert set(metrics) == set(ISSUE_KEYS) | OURS_BESIDES
    assert ISSUE_KEYS["reconstruction"] <= set(metrics["reconstruction"])
    assert set(metrics["reconstruction"]["baselines"]) == {"all_black", "mean_image"}
    for name in ("codebook", "prior"):
        assert [row["level"] for row in metrics[name]] == [0, 1]
        besides = {"training_bits_per_code", "inside_bits_per_code", "explained_variance"} if name == "prior" else set()
        assert all(set(row) == ISSUE_KEYS[name] | besides for row in metrics[name])
    assert set(metrics["sampling"]) == ISSUE_KEYS["sampling"] | {"whole_grid"}
    assert set(metrics["data"]) == ISSUE_KEYS["data"]
    assert sum(metrics["data"]["subjects"].values()) == 6


@pytest.mark.slow
def test_the_report_is_self_contained_and_shows_every_number_with_its_baseline(demo):
    text = (demo / "report.html").read_text()
    page = Links()
    page.feed(text)
    assert len(page.links) == 7
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"url\(|@import|<script|https?://", text)
    metrics = json.loads((demo / "metrics.json").read_text())
    for scores in (metrics["reconstruction"], *metrics["reconstruction"]["baselines"].values(), metrics["top_only"]):
        assert f">{scores['ssim_brain']:.3f}<" in text
    for row in metrics["prior"]:
        assert f">{row['bits_per_code']:.3f}<" in text
        assert f">{row['histogram_bits_per_code']:.3f}<" in text
    for word in ("Research only", "Key: which are sampled", "extract_slices.json", "train_prior.json --level 1"):
        assert word in text


@pytest.mark.slow
def test_what_is_sent_on_does_not_tell_where_it_was_made(demo):
    """Logs, and the note of a run from which it goes on, name the scans that were given."""
    texts = {path.relative_to(demo): path.read_text() for path in demo.rglob("*") if path.suffix in (".json", ".html")}
    assert {"demo.json", "report.html", "metrics.json", "model.json", "history.json"} <= {p.name for p in texts}
    assert [str(name) for name, text in texts.items() if str(demo.parent) in text] == ["timings.json"]
    assert str(demo) not in (demo / "timings.json").read_text()


@pytest.mark.slow
def test_a_second_demo_moves_the_first_aside(demo, capsys):
    first = (demo / "metrics.json").read_bytes()
    assert main(["demo", "--data", str(demo.parent / "scans"), "--output", str(demo), "--size", "huge"]) == 2
    assert "size 'huge' is unknown" in capsys.readouterr().err
    assert (demo / "metrics.json").read_bytes() == first  # an error moves nothing
    run_demo(demo.parent / "scans", demo, size="tiny", seed=3)
    assert (demo.parent / "out.1" / "metrics.json").read_bytes() == first
    assert (demo / "report.html").is_file()


def test_folders_that_no_demo_wrote_are_left_alone(tmp_path):
    scans = tmp_path / "scans"
    make_phantoms(scans, 3, voxel_mm=8.0, progress=False)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="holds the scans"):
        run_demo(scans, tmp_path)
    with pytest.raises(InputError, match="holds the scans"):
        run_demo(scans, scans)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExistsError, match="no demo has written"):
        run_demo(scans, tmp_path / "mine")
    with pytest.raises(DatalistError):
        run_demo(tmp_path / "nowhere", tmp_path / "out")
    assert set(before) < set(tmp_path.rglob("*"))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert not (tmp_path / "out").exists()


def test_what_cannot_work_leaves_an_earlier_demo_where_it_is(tmp_path, capsys):
    make_phantoms(tmp_path / "scans", 1, voxel_mm=8.0, progress=False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "demo.json").write_text("{}")
    with pytest.raises(DatalistError, match="only 1 subject"):
        run_demo(tmp_path / "scans", tmp_path / "out")
    assert main(["demo", "--output", str(tmp_path / "out"), "--seed", "-1"]) == 2
    assert "seed is -1" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "scans"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["demo.json"]


@pytest.mark.slow
@pytest.mark.real
def test_real_scans_go_all_the_way(real_data, tmp_path):
    scans = sorted((real_data / "ds002748").glob("*_T1w.nii.gz"))[:6]
    (tmp_path / "scans").mkdir()
    for scan in [*scans, real_data / "ds002748" / "participants.tsv"]:
        shutil.copy(scan, tmp_path / "scans")
    assert main(["demo", "--data", str(tmp_path / "scans"), "--output", str(tmp_path / "out"), "--size", "tiny"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert sum(metrics["data"]["subjects"].values()) == 6
    assert (tmp_path / "out" / "report.html").stat().st_size > 0
