"""Secondary captures: what a viewer shows is the image, the right way round, and says that it was derived."""

from __future__ import annotations

import os

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import aff2axcodes

from monai_vqgen.data import CaptureLabels, make_phantom, read_volume, write_secondary_captures
from monai_vqgen.errors import InputError, ScanError

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

LABELS = CaptureLabels("Reconstruction", "Decoded from codes of a VQ-VAE-2", patient="sub-01")
OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


def gray_values(image) -> np.ndarray:
    return image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("orientation", ["RAS", "LPS", "IRP"])
def test_every_plane_is_drawn_as_its_orientation_says(tmp_path, plane, orientation):
    head = make_phantom(3, 0, voxel_mm=7.0, orientation=orientation)
    paths = write_secondary_captures(tmp_path, head.voxels_s, affine=head.affine, plane=plane, labels=LABELS)
    images = [pydicom.dcmread(path) for path in paths]
    stack = np.stack([gray_values(image) for image in images], axis=2)
    # an oracle of its own: walk through the volume by the letters that the file states
    right, down = (str(letter).replace("F", "I").replace("H", "S") for letter in images[0].PatientOrientation)
    through = {"axial": "I", "coronal": "P", "sagittal": "R"}[plane]
    axes, codes = [], aff2axcodes(head.affine)
    expected = head.voxels_s.astype(float)
    for letter in (down, right, through):
        axis = next(i for i, code in enumerate(codes) if code in (letter, OPPOSITE[letter]))
        axes.append(axis)
        if codes[axis] != letter:
            expected = np.flip(expected, axis)
    expected = expected.transpose(axes)
    assert stack.shape == expected.shape
    assert np.abs(stack - expected).max() <= (expected.max() - expected.min()) / 65535
    sizes = np.linalg.norm(head.affine[:3, :3], axis=0)[axes[:2]]
    assert [float(size) for size in images[0].PixelSpacing] == pytest.approx(sizes, rel=1e-6)


def test_they_say_that_they_are_derived_and_by_what(tmp_path):
    (path,) = write_secondary_captures(tmp_path, np.ones((4, 5, 1)), affine=np.eye(4), plane="axial", labels=LABELS)
    image = pydicom.dcmread(path)
    assert image.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture Image Storage
    assert list(image.ImageType[:2]) == ["DERIVED", "SECONDARY"]
    assert image.DerivationDescription == LABELS.derivation
    assert "not for diagnosis" in image.ImageComments
    assert (image.PatientID, image.BurnedInAnnotation) == ("sub-01", "NO")
    assert gray_values(image) == pytest.approx(np.ones((5, 4)))


def test_patient_and_study_are_the_sources(tmp_path, write_series):
    write_series(tmp_path / "source", np.zeros((3, 4, 2)), np.eye(4), "7", "P9")
    one = sorted((tmp_path / "source").iterdir())[0]
    header = pydicom.dcmread(one)
    header.StudyInstanceUID, header.PatientName = "1.2.3.4", "A^B"
    header.save_as(one)
    labels = LABELS._replace(source=tmp_path / "source")
    (path,) = write_secondary_captures(
        tmp_path / "out", np.ones((4, 5, 1)), affine=np.eye(4), plane="axial", labels=labels
    )
    image = pydicom.dcmread(path)
    assert (image.PatientID, str(image.PatientName), image.StudyInstanceUID) == ("P9", "A^B", "1.2.3.4")
    assert image.SeriesInstanceUID != header.SeriesInstanceUID


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("orientation", ["RAS", "IRP"])
def test_read_back_they_lie_where_they_were(tmp_path, plane, orientation):
    head = make_phantom(3, 1, voxel_mm=7.0, orientation=orientation)  # oblique
    write_secondary_captures(tmp_path / "c", head.voxels_s, affine=head.affine, plane=plane, labels=LABELS)
    volume = read_volume(tmp_path / "c")
    found, expected = (
        nib.as_closest_canonical(nib.Nifti1Image(np.asarray(voxels, dtype=float), affine))
        for voxels, affine in ((volume.voxels_s * volume.slope, volume.affine), (head.voxels_s, head.affine))
    )
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
    assert np.abs(found.get_fdata() - expected.get_fdata()).max() <= np.ptp(head.voxels_s) / 65535
    names = {pydicom.dcmread(path).FrameOfReferenceUID for path in (tmp_path / "c").iterdir()}
    write_secondary_captures(tmp_path / "d", head.voxels_s + 1, affine=head.affine, plane=plane, labels=LABELS)
    assert len(names) == 1  # one space; another scan of unknown origin is not said to share it
    assert names.isdisjoint({pydicom.dcmread(path).FrameOfReferenceUID for path in (tmp_path / "d").iterdir()})


def test_they_lie_in_their_sources_space_and_name_its_images(tmp_path, write_series):
    head = make_phantom(3, 1, voxel_mm=7.0, orientation="LPS")
    write_series(
        tmp_path / "s", head.voxels_s, head.affine, edit=lambda data, k: setattr(data, "FrameOfReferenceUID", "1.2.3.9")
    )
    sources = [pydicom.dcmread(path) for path in sorted((tmp_path / "s").iterdir())]
    labels = LABELS._replace(source=tmp_path / "s")
    for path in write_secondary_captures(
        tmp_path / "c", head.voxels_s, affine=head.affine, plane="coronal", labels=labels
    ):
        image = pydicom.dcmread(path)
        assert image.FrameOfReferenceUID == "1.2.3.9"
        named = [(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) for item in image.SourceImageSequence]
        assert named == [(source.SOPClassUID, source.SOPInstanceUID) for source in sources]
        assert image.SourceImageSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ScanError, match="empty: holds no DICOM image"):
        write_secondary_captures(
            tmp_path / "e",
            head.voxels_s,
            affine=head.affine,
            plane="coronal",
            labels=labels._replace(source=tmp_path / "empty"),
        )


def test_a_sheared_volume_has_no_position_in_its_captures_and_that_is_said(tmp_path, caplog):
    sheared = np.eye(4)
    sheared[0, 1] = 0.2
    paths = write_secondary_captures(tmp_path, np.ones((4, 5, 2)), affine=sheared, plane="axial", labels=LABELS)
    assert all("ImagePositionPatient" not in pydicom.dcmread(path) for path in paths)
    assert [record.message for record in caplog.records] == [
        "Reconstruction: rows and columns are not at right angles; the captures carry no position"
    ]


def test_equal_images_have_equal_identifiers_and_others_have_others(tmp_path):
    def identifiers(name, value, size=1.0):
        affine = np.diag([size, size, size, 1])
        paths = write_secondary_captures(
            tmp_path / name, np.arange(40.0).reshape(4, 5, 2) ** value, affine=affine, plane="axial", labels=LABELS
        )
        images = [pydicom.dcmread(path) for path in paths]
        return [(image.SeriesInstanceUID, image.SOPInstanceUID) for image in images]

    first, again, other = identifiers("a", 1), identifiers("b", 1), identifiers("c", 2)
    assert first == again
    assert len({uid for pair in first + other for uid in pair}) == 6
    assert not set(first) & set(identifiers("d", 1, size=2.0))


def test_what_cannot_be_written_is_refused_before_a_file_is_made(tmp_path):
    def write(volume=None, *, plane="axial", labels=LABELS):
        write_secondary_captures(
            tmp_path / "out",
            np.ones((4, 5, 1)) if volume is None else volume,
            affine=np.eye(4),
            plane=plane,
            labels=labels,
        )

    with pytest.raises(ScanError, match="NaN or infinite"):
        write(np.full((4, 5, 1), np.nan))
    with pytest.raises(InputError, match="plane 'oblique' is unknown"):
        write(plane="oblique")
    with pytest.raises(InputError, match="series_description has 65 characters; DICOM allows 64"):
        write(labels=LABELS._replace(series_description="x" * 65))
    (tmp_path / "text.dcm").write_text("no DICOM")
    with pytest.raises(ScanError, match=r"text\.dcm: not a DICOM file"):
        write(labels=LABELS._replace(source=tmp_path / "text.dcm"))
    assert not (tmp_path / "out").exists()


def test_a_capture_that_could_not_be_finished_has_no_name(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError("killed here")

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(OSError, match="killed here"):
        write_secondary_captures(tmp_path, np.ones((4, 5, 1)), affine=np.eye(4), plane="axial", labels=LABELS)
    assert list(tmp_path.iterdir()) == []
