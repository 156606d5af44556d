"""A contact sheet shows evenly chosen subjects and positions, each slice where it belongs."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from monai_vqgen.data.io.nifti import write_slice_nifti
from monai_vqgen.data.slices.contact_sheet import LABEL_PX, write_contact_sheet


def test_rows_are_subjects_columns_are_positions_and_few_are_chosen(tmp_path):
    items = []
    for subject in range(5):
        for position in range(4):
            name = f"{subject}_{position}.nii.gz"
            gray = (1 + subject * 4 + position) / 21  # every slice has a gray value of its own
            write_slice_nifti(tmp_path / name, np.full((60, 40), gray), np.eye(4), {})
            items.append({"image": name, "subject": f"sub-{subject}", "plane": "axial", "position_mm": 10.0 * position})
    write_contact_sheet(tmp_path / "sheet.png", tmp_path, items, rows=3, columns=2)
    with Image.open(tmp_path / "sheet.png") as picture:
        sheet = np.asarray(picture)
    height, width = 60 * 3 + LABEL_PX, 40 * 3  # enlarged until 120 pixels wide
    assert sheet.shape == (3 * height, 2 * width)
    for row, subject in enumerate((0, 2, 4)):
        for column, position in enumerate((0, 3)):
            middle = sheet[row * height + LABEL_PX + 20, column * width + width // 2]
            assert middle == round((1 + subject * 4 + position) / 21 * 255)


@pytest.mark.parametrize("subject", ["sub-01", "a-very-long-name-of-a-subject-0123456789"])
def test_subject_and_position_stand_apart_and_within_their_own_tile(subject, tmp_path):
    """Black slices, so that every light pixel of the upper strip belongs to a letter."""
    write_slice_nifti(tmp_path / "s.nii.gz", np.zeros((40, 120)), np.eye(4), {})
    item = {"image": "s.nii.gz", "subject": subject, "plane": "axial"}
    items = [{**item, "position_mm": position} for position in (101.3, 104.5)]
    write_contact_sheet(tmp_path / "sheet.png", tmp_path, items)
    strip = np.asarray(Image.open(tmp_path / "sheet.png"))[:14]
    for tile in (strip[:, :120], strip[:, 120:]):
        lit = np.flatnonzero(tile.max(0) > 60)
        gaps = np.diff(lit)
        assert lit[0] >= 1
        assert lit[-1] < 120 - 1
        assert (gaps >= 7).sum() == 1, "two words, far enough apart"
