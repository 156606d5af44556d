"""What stands beside weights is what their training slices were made with."""

from __future__ import annotations

import pytest

from monai_vqgen.data import SliceOptions, extract_slices, make_phantoms
from monai_vqgen.errors import InputError
from monai_vqgen.models import ModelRecord, autoencoder_record
from monai_vqgen.networks import HierarchicalVQVAE


def test_plane_pixels_size_and_intensity_window_come_from_the_slices(tmp_path):
    make_phantoms(tmp_path / "scans", 3, seed=1, voxel_mm=6.0, progress=False)
    window = {"lower": 5.0, "upper": 95.0}
    options = SliceOptions(plane="coronal", positions=[90.0], pixel_mm=6.0, image_size=48, on_trim="warn", **window)
    extract_slices(tmp_path / "scans", tmp_path / "slices", slices=options, progress=False)
    content = autoencoder_record(HierarchicalVQVAE(channels=8, residual_channels=4), tmp_path / "slices")
    record = ModelRecord.from_json(content)
    assert (record.plane, record.pixel_mm, record.image_size) == ("coronal", 6.0, (48, 48))
    assert record.percentiles == (5.0, 95.0)
    assert record.license == ""  # nobody has said what may be done with them


@pytest.mark.parametrize("window", [[100, -20], [5], [float("nan"), 3]])
def test_a_window_that_is_none_is_refused(window):
    assert ModelRecord.from_json({"window": [-20, 100]}).window == (-20.0, 100.0)
    with pytest.raises(InputError, match="window is"):
        ModelRecord.from_json({"window": window})
