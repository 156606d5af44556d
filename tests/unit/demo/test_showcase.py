"""The package's own weights are shown at once: what they draw, and what becomes of the first scan that can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import POSITIONS, tiny_model

from monai_vqgen.data import make_phantoms
from monai_vqgen.demo import showcase
from monai_vqgen.models import TrainedModel


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What is drawn, in place of a picture, by tiny weights."""
    seen: dict[str, Any] = {}
    models = {
        "generative": tiny_model((32, 24), condition=POSITIONS),
        "faithful": tiny_model((48, 48), record={"pixel_mm": 4.0}),
    }
    monkeypatch.setattr(TrainedModel, "from_bundle", models.__getitem__)
    monkeypatch.setattr(showcase, "save_rows", lambda rows, path, title: seen.update(rows=rows, path=path, title=title))
    return seen


def test_samples_carry_what_was_asked_for_and_the_scan_stands_above_its_reconstruction(shown, tmp_path):
    make_phantoms(tmp_path / "scans", 1, seed=0)
    path = showcase.save_showcase(tmp_path / "scans", tmp_path, seed=3)
    drawn, scan, coded = shown["rows"]
    assert path == shown["path"] == tmp_path / showcase.SHOWCASE
    assert "seed 3" in shown["title"]
    assert "Synthetic" in shown["title"]
    assert len(drawn.marks) == len(drawn.images_nhw) == showcase.SHOWN
    assert all(mark.endswith(" mm") for mark in drawn.marks)
    assert scan.images_nhw.shape == coded.images_nhw.shape == drawn.images_nhw.shape == (showcase.SHOWN, 48, 48)
    assert (drawn.images_nhw[:, :8] == 0).all()  # 32 x 24 in the middle of 48 x 48
    assert 0.9 < np.percentile(scan.images_nhw, 99.5) < 1.2
    assert not np.allclose(scan.images_nhw, coded.images_nhw)


def test_a_scan_that_cannot_be_read_gives_way_to_the_next(shown, tmp_path):
    make_phantoms(tmp_path / "scans", 2, seed=0)
    first, second = sorted((tmp_path / "scans").rglob("*.nii.gz"))
    first.write_bytes(first.read_bytes()[:1000])
    showcase.save_showcase(tmp_path / "scans", tmp_path)
    assert len(shown["rows"]) == 3
    second.write_bytes(b"")
    showcase.save_showcase(tmp_path / "scans", tmp_path)
    assert [row.label for row in shown["rows"]] == ["drawn\n(synthetic)"]
