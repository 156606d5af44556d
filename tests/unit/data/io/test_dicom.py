"""A folder of DICOM series gives the slices its NIfTI twin gives."""

from __future__ import annotations

import numpy as np
import pytest
from nibabel.affines import apply_affine

from monai_vqgen.data import SliceOptions, discover_volumes, extract_slices, make_phantom, read_volume
from monai_vqgen.errors import ScanError
from monai_vqgen.transforms import LoadSlice

pydicom = pytest.importorskip("pydicom")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*nvImageCodec.*:UserWarning"),  # MONAI looks for an optional CUDA decoder
    pytest.mark.filterwarnings("ignore:.*NvImgCodec.*:UserWarning"),
]


@pytest.fixture(scope="module")
def series(tmp_path_factory, write_series):
    folder = tmp_path_factory.mktemp("dicom")
    heads = []
    for index in range(3):
        head = make_phantom(5, index, voxel_mm=5.0, orientation=("LPS", "RAI", "IRP")[index])
        write_series(folder / f"sub-{index:02d}", np.rint(head.voxels_s), head.affine, str(index))
        heads.append(head)
    return folder, heads


def test_a_series_is_read_with_its_place_in_the_world(series):
    folder, heads = series
    records = discover_volumes(folder)
    assert [r.subject for r in records] == ["sub-00", "sub-01", "sub-02"]
    for record, head in zip(records, heads, strict=True):
        volume = read_volume(record.path)
        brightest = np.argwhere(volume.voxels_s == volume.voxels_s.max())[0]
        world = apply_affine(volume.affine, brightest)
        index = np.rint(apply_affine(np.linalg.inv(head.affine), world)).astype(int)
        assert np.rint(head.voxels_s)[tuple(index)] == volume.voxels_s.max()
        assert volume.voxels_s.sum() == pytest.approx(np.rint(head.voxels_s).sum())


def test_a_patients_series_are_one_subject_whatever_the_folders_are_called(tmp_path, write_series):
    for folder, patient in {"a/1.2.3": "P/1", "b/1.2.4": "P/1", "c/T1": "P2", "d/T1": "", "e/T1": None}.items():
        write_series(tmp_path / folder, np.zeros((2, 3, 2)), np.eye(4), "1", patient)
    found = discover_volumes(tmp_path)
    assert [(r.subject, r.name, r.guessed) for r in found] == [
        ("P/1", "1.2.3", False),
        ("P/1", "1.2.4", False),
        ("P2", "P2", False),
        ("d/T1", "d_T1", True),
        ("e/T1", "e_T1", True),
    ]
    assert [r.subject for r in discover_volumes(tmp_path, subject_pattern="^[a-e]")] == list("abcde")


def test_series_go_through_extraction(series, tmp_path):
    folder, _ = series
    report = extract_slices(
        folder, tmp_path / "s", slices=SliceOptions(positions=[60.0]), num_workers=0, progress=False
    )
    assert not report.skipped
    for file in (tmp_path / "s" / "images").iterdir():
        assert float(LoadSlice()(file).max()) > 0.8


def test_folders_that_are_no_series_are_named(series, tmp_path):
    folder, _ = series
    (tmp_path / "a").mkdir()
    for name in ("000.dcm", "001.dcm"):
        (tmp_path / "a" / name).write_bytes((folder / "sub-00" / name).read_bytes())
    (tmp_path / "a" / "x.dcm").write_bytes((folder / "sub-01" / "002.dcm").read_bytes())
    with pytest.raises(ScanError, match="2 DICOM series"):
        read_volume(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0.dcm").write_bytes((folder / "sub-00" / "000.dcm").read_bytes())
    with pytest.raises(ScanError, match="1 DICOM slices"):
        read_volume(tmp_path / "b")
