"""A release from scans to its published figures, at a tiny size; a second call makes nothing again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from monai_vqgen.bundles import bundle_root
from monai_vqgen.data import make_phantoms
from monai_vqgen.errors import CheckpointError, InputError
from tools.reproduce import PICTURES, pictures_section, publish_pictures, publish_weights, reproduce

pytestmark = pytest.mark.slow


def test_a_release_is_trained_evaluated_and_written_down_once(tmp_path):
    small = yaml.safe_load((bundle_root().parent / "configs/sizes/tiny.yaml").read_text())
    small["slices"] |= {"position_start_mm": 45.0, "position_stop_mm": 95.0, "position_step_mm": 2.5}
    small |= {
        "sampling": {"num_samples": 40},
        "evaluation": {"codecs": True, "sample_report": True, "classifier_steps": 20},
    }
    size = tmp_path / "tiny.yaml"
    size.write_text(yaml.safe_dump(small))
    make_phantoms(tmp_path / "scans", 16, seed=1)
    results = tmp_path / "RESULTS.md"
    mark = f"tiny_{'gpu' if torch.cuda.is_available() else 'cpu'}"
    another = "<!-- tiny_another -->\nof another device\n<!-- /tiny_another -->\n"
    results.write_text(f"# Results\n<!-- {mark} -->\n<!-- /{mark} -->\n{another}")
    output, pictures = tmp_path / "out", tmp_path / "docs" / mark
    given = {"size": size, "results": results, "pictures": tmp_path / "docs"}
    report = reproduce(tmp_path / "scans", output, **given)
    metrics = json.loads((output / "metrics.json").read_text())
    assert {"samples", "codecs"} <= set(metrics)
    assert {"samples", "real", "reconstructions", "independent_codes"} <= set(metrics["samples"])
    assert metrics["samples"]["real"]["two_sample"]["linear"]["held_out"] > 0
    for name in ("rate_distortion.png", "closest_pairs.png", "positions.png"):
        assert (output / name).stat().st_size > 1000
    text = results.read_text()
    assert text.endswith(another)
    for name in PICTURES:
        assert (pictures / name).read_bytes() == (output / name).read_bytes()
        assert f"](docs/{mark}/{name})" in text
    sampled = json.loads((output / "real_and_sampled.json").read_text())["sampled"]
    caption = f"mixed. Sampled are {', '.join(map(str, sampled))}; the others are real.*"
    assert f"real_and_sampled.png)\n\n*Real and sampled slices, {caption}\n" in text
    assert "The largest process took" in text
    assert "samples below the held-out slices' first percentile" in text
    made_again = {report.name, "learning.png"}
    times = {
        path: path.stat().st_mtime_ns
        for path in output.rglob("*")
        if path.is_file() and path.name not in made_again and path.suffix != ".log"
    }
    reproduce(tmp_path / "scans", output, **given)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert results.read_text() == text
    weights = {level: (output / f"model_prior_level{level}.pt").read_bytes() for level in (0, 1)}
    cut_off_while_the_priors_trained(output / "timings.json")
    reproduce(tmp_path / "scans", output, size=size, models=tmp_path / "models")
    assert {level: (output / f"model_prior_level{level}.pt").read_bytes() for level in (0, 1)} == weights
    published = [
        "model.json",
        "model.pt",
        *(f"model_prior_level{level}.{end}" for level in (0, 1) for end in ("json", "pt")),
    ]
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == published
    assert all((tmp_path / "models" / name).read_bytes() == (output / name).read_bytes() for name in published)


def test_published_pictures_are_those_of_the_last_run(tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("overview.png", "positions.png"):
        (tmp_path / "run" / name).write_bytes(name.encode())
    publish_pictures(tmp_path / "run", tmp_path / "docs/images")
    (tmp_path / "run" / "positions.png").unlink()
    shown = publish_pictures(tmp_path / "run", tmp_path / "docs/images")
    assert [path.name for path in shown.iterdir()] == ["overview.png"]
    text = pictures_section(shown, document=tmp_path / "docs/RESULTS.md")
    caption = PICTURES["overview.png"]
    assert text == f"![{caption}](images/overview.png)\n\n*{caption}*"


def test_a_file_in_the_place_of_the_pictures_is_refused_before_any_work(tmp_path):
    make_phantoms(tmp_path / "scans", 1, seed=1, voxel_mm=8.0)
    (tmp_path / "docs").touch()
    with pytest.raises(InputError, match=r"docs cannot be a folder for the pictures"):
        reproduce(tmp_path / "scans", tmp_path / "out", size="tiny", pictures=tmp_path / "docs")
    assert not (tmp_path / "out").exists()


def test_a_run_without_priors_publishes_nothing(tmp_path):
    (tmp_path / "model.pt").touch()
    with pytest.raises(CheckpointError, match="no trained model with priors"):
        publish_weights(tmp_path, tmp_path / "models")
    (tmp_path / "model_prior_level0.pt").touch()
    with pytest.raises(CheckpointError, match=r"model_prior_level0\.json"):
        publish_weights(tmp_path, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def cut_off_while_the_priors_trained(timings: Path) -> None:
    noted = json.loads(timings.read_text())
    names = [stage["name"] for stage in noted["stages"]]
    number = next(number for number, name in enumerate(names) if name.startswith("prior"))
    noted.update(stages=noted["stages"][:number], running=noted["stages"][number]["command"])
    timings.write_text(json.dumps(noted))
