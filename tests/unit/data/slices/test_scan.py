"""One scan's slices: which are written, which are skipped and why."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_vqgen.data import SliceOptions, make_phantoms
from monai_vqgen.data.slices.scan import position_range, slices_of_scan
from monai_vqgen.data.slices.sources import ScanRecord
from monai_vqgen.errors import InputError


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> ScanRecord:
    (path,) = make_phantoms(tmp_path_factory.mktemp("scan"), 1, voxel_mm=5.0, progress=False)
    return ScanRecord(path, "sub-01", "sub-01", {"age": 40.0})


def test_each_position_is_one_file_and_one_item(record, tmp_path):
    options = SliceOptions("coronal", [60.0, 90.0], pixel_mm=2.0, image_size=(112, 96))
    outcome = slices_of_scan(record, options, tmp_path)
    assert (outcome.subject, outcome.skipped, outcome.pixel_mm) == ("sub-01", [], (2.0, 2.0))
    assert [Path(item.pop("image")).name for item in outcome.items] == sorted(p.name for p in tmp_path.iterdir())
    for item, wanted in zip(outcome.items, [60.0, 90.0], strict=True):
        assert item.pop("position_mm") == pytest.approx(wanted, abs=4.5)
        assert item == {"subject": "sub-01", "plane": "coronal", "age": 40.0}
    for path in tmp_path.iterdir():
        image = nib.load(path)
        assert image.shape == (112, 96, 1)
        np.testing.assert_allclose(np.linalg.norm(image.affine[:3, :2], axis=0), 2.0, rtol=1e-5)


def test_what_is_skipped_has_a_reason_and_the_rest_is_written(record, tmp_path):
    outcome = slices_of_scan(record, SliceOptions(positions=[60.0, 60.1, 900.0], image_size=128), tmp_path)
    assert len(outcome.items) == len(list(tmp_path.iterdir())) == 1
    assert [entry["file"] for entry in outcome.skipped] == [record.path.name] * 2
    taken, outside = (entry["reason"] for entry in outcome.skipped)
    assert "60.1 mm falls on a plane already taken" in taken
    assert "900 mm" in outside
    gone = slices_of_scan(record._replace(path=tmp_path / "gone.nii"), SliceOptions(), tmp_path)
    assert (gone.items, len(gone.skipped)) == ([], 1)
    assert np.isnan(gone.pixel_mm).all()


def test_a_range_stops_before_its_end():
    assert position_range(40, 100, 3) == [float(p) for p in range(40, 100, 3)]
    assert position_range(0, 0.3, 0.1) == [0, 0.1, 0.2]
    assert SliceOptions(start_mm=10, stop_mm=16, step_mm=2).positions_mm == (10, 12, 14)
    with pytest.raises(InputError, match="start < stop"):
        position_range(5, 5, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"plane": "oblique"},
        {"reference": "nose"},
        {"positions": []},
        {"step_mm": 0},
        {"pixel_mm": -1},
        {"image_size": (0, 4)},
        {"on_trim": "maybe"},
        {"lower": 99, "upper": 1},
    ],
)
def test_options_that_cannot_work_are_refused(options):
    SliceOptions().check()
    with pytest.raises(InputError):
        SliceOptions(**options).check()


def test_a_window_of_the_scans_own_units_takes_the_place_of_percentiles(tmp_path):
    """Of CT: the slice holds the volume's Hounsfield units, mapped by the window and clipped."""
    hounsfield = np.full((20, 20, 20), -1000, np.int16)
    hounsfield[4:16, 4:16, 4:16] = np.random.default_rng(0).integers(-100, 900, (12, 12, 12))
    nib.save(nib.Nifti1Image(hounsfield, np.diag([2.0, 2.0, 2.0, 1.0])), tmp_path / "ct.nii.gz")
    (tmp_path / "images").mkdir()
    options = SliceOptions(positions=10.0, pixel_mm=None, image_size=20, window=(0, 200))
    record = ScanRecord(tmp_path / "ct.nii.gz", "ct", "ct", {})
    (item,) = slices_of_scan(record, options, tmp_path / "images").items
    pixels = nib.load(tmp_path / item["image"]).get_fdata()
    plane = hounsfield[:, :, 15 - round(item["position_mm"] / 2)]
    expected = np.sort(np.clip(plane / 200, 0, 1).ravel())
    np.testing.assert_allclose(np.sort(pixels.ravel()), expected, atol=1e-6)
    assert 0.05 < ((expected > 0) & (expected < 1)).mean() < 0.2


@pytest.mark.parametrize("window", [(1,), (3, 3), (4, 1), "ab", 5, (0, float("nan"))])
def test_what_is_no_window_is_refused(window):
    with pytest.raises(InputError, match="expected \\(low, high\\) with low < high"):
        SliceOptions(window=window).check()
