"""Designs side by side, at a tiny size: a failure costs the others nothing, a second call trains none again."""

from __future__ import annotations

import json

import pytest

from monai_vqgen.apps.compare import compare
from monai_vqgen.data import make_phantoms
from monai_vqgen.errors import OutputExistsError, StageError

pytestmark = pytest.mark.slow

GOOD = """
- {name: ours, group: architecture}
- {name: "one level", group: architecture, overlay: configs/system_b.yaml, options: {"network_def::channels": 8}}
"""
BAD = '- {name: "one code", group: quantiser, options: {"network_def::quantizers::0::num_codes": 1}}\n'


def test_variants_are_trained_judged_and_tabled_once(tmp_path):
    make_phantoms(tmp_path / "scans", 6, seed=1)
    variants, results, output = tmp_path / "variants.yaml", tmp_path / "RESULTS.md", tmp_path / "out"
    variants.write_text(GOOD + BAD)
    results.write_text("<!-- tiny -->\n<!-- /tiny -->\n")
    given = {"variants": variants, "minutes": 0.05, "jobs": 2, "size": "tiny", "results": results}
    with pytest.raises(StageError, match=r"1 of 3 variants failed.*num_codes=1"):
        compare(tmp_path / "scans", output, **given)
    figures = json.loads((output / "comparison.json").read_text())["variants"]
    assert [row["name"] for row in figures] == ["ours", "one level"]
    assert [len(row["codebook"]) for row in figures] == [2, 1]
    assert all(row["steps"] > 1 for row in figures)
    assert "| architecture: one level |" in results.read_text()
    subjects = json.loads((output / "ours/evaluation/metrics.json").read_text())["data"]["subjects"]
    assert subjects["validation"] >= 1
    assert not (output / "ours/evaluation/samples.png").exists()

    trained = (output / "ours/model.pt").stat().st_mtime_ns
    variants.write_text(GOOD)
    assert compare(tmp_path / "scans", output, **given) == figures
    assert (output / "ours/model.pt").stat().st_mtime_ns == trained
    with pytest.raises(OutputExistsError, match="minutes"):
        compare(tmp_path / "scans", output, **{**given, "minutes": 0.1})
