"""A DICOM segmentation lies over the series that it was made of, and says which image each of its frames shows."""

from __future__ import annotations

import numpy as np
import pytest

from monai_vqgen.data import CaptureLabels, make_phantom, read_volume, write_secondary_captures
from monai_vqgen.data.io.segmentations import write_segmentation
from monai_vqgen.errors import InputError, ScanError

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

LABELS = CaptureLabels("Unusual places", "Scores above 3")


def series(folder, write_series, orientation="LPS", **more):
    """An oblique series, as it is read, and a mask that no axis or end can be exchanged in."""
    head = make_phantom(3, 0, voxel_mm=7.0, orientation=orientation)
    write_series(folder, head.voxels_s / head.voxels_s.max() * 1000, head.affine, "7", "P9", **more)
    volume = read_volume(folder)
    mask_s = np.zeros(volume.voxels_s.shape, dtype=np.uint8)
    mask_s[2:5, 3:9, 1:4] = 1
    mask_s[7, 3, 6] = 1
    return volume, mask_s


@pytest.mark.parametrize("orientation", ["LPS", "RSA", "PIR"])
def test_read_back_it_marks_the_same_places_and_refers_to_the_images_there(tmp_path, write_series, orientation):
    volume, mask_s = series(tmp_path / "source", write_series, orientation)
    labels = LABELS._replace(source=tmp_path / "source")
    write_segmentation(tmp_path / "lesions.dcm", mask_s, affine=volume.affine, labels=labels)
    found = highdicom.seg.segread(tmp_path / "lesions.dcm")
    assert found.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.4"  # Segmentation Storage
    assert (found.PatientID, found.SeriesDescription) == ("P9", "Unusual places")
    images = {
        image.SOPInstanceUID: image for image in map(pydicom.dcmread, sorted((tmp_path / "source").glob("*.dcm")))
    }
    expected = {
        tuple(np.round(np.diag([-1, -1, 1, 1]) @ volume.affine @ [*place, 1], 2)[:3])
        for place in np.argwhere(mask_s).tolist()
    }
    seen = set()
    assert found.NumberOfFrames == 4, "one for each plane with a voxel"
    for pixels, frame in zip(found.pixel_array, found.PerFrameFunctionalGroupsSequence, strict=True):
        reference = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        position = [float(x) for x in frame.PlanePositionSequence[0].ImagePositionPatient]
        image = images[reference]
        np.testing.assert_allclose(position, [float(x) for x in image.ImagePositionPatient], atol=1e-3)
        right, down = np.array(image.ImageOrientationPatient, dtype=float).reshape(2, 3)
        height, width = (float(x) for x in image.PixelSpacing)
        for row, column in np.argwhere(pixels).tolist():
            seen.add(tuple(np.round(np.array(position) + column * width * right + row * height * down, 2)))
    assert len(seen) == len(expected)
    np.testing.assert_allclose(sorted(seen), sorted(expected), atol=0.03)


@pytest.mark.parametrize("named", [True, False])
def test_it_and_the_captures_of_a_series_lie_in_one_study_which_is_the_series_own(tmp_path, write_series, named):
    studies = set()
    for number in ("1", "2"):
        source = tmp_path / f"source{number}"
        head = make_phantom(3, 0, voxel_mm=7.0)

        def name_it(data, k, number=number):
            if named:
                data.StudyInstanceUID = f"1.2.3.4.{number}"

        write_series(source, head.voxels_s / head.voxels_s.max() * 1000, head.affine, number, "P9", edit=name_it)
        volume = read_volume(source)
        write_segmentation(
            tmp_path / "a.dcm", volume.voxels_s > 0, affine=volume.affine, labels=LABELS._replace(source=source)
        )
        labels = CaptureLabels("Reconstruction", "Another way", source=source)
        first, *_ = write_secondary_captures(
            tmp_path / number, volume.voxels_s, affine=volume.affine, plane="axial", labels=labels
        )
        study = pydicom.dcmread(tmp_path / "a.dcm").StudyInstanceUID
        assert pydicom.dcmread(first).StudyInstanceUID == study
        assert not named or study == f"1.2.3.4.{number}"
        studies.add(study)
    assert len(studies) == 2


def test_images_that_name_no_series_are_refused_by_name(tmp_path, write_series):
    def forget(data, k):
        data.FrameOfReferenceUID = "1.2.3.5"
        if k:
            del data.SeriesInstanceUID

    source = tmp_path / "source"
    write_series(source, np.arange(4 * 5 * 3).reshape(4, 5, 3), np.eye(4), edit=forget)
    labels = LABELS._replace(source=source)
    with pytest.raises(ScanError, match="2 images name no series"):
        write_segmentation(tmp_path / "a.dcm", np.ones((4, 5, 3)), affine=np.eye(4), labels=labels)
    assert not (tmp_path / "a.dcm").exists()


def test_the_same_mask_of_the_same_series_has_the_same_identifiers_and_another_mask_has_not(tmp_path, write_series):
    volume, mask_s = series(tmp_path / "source", write_series)
    labels = LABELS._replace(source=tmp_path / "source")
    identifiers = []
    for i, marked in enumerate((mask_s, mask_s * 255, mask_s[::-1])):
        write_segmentation(tmp_path / f"{i}.dcm", marked, affine=volume.affine, labels=labels)
        identifiers.append(pydicom.dcmread(tmp_path / f"{i}.dcm").SOPInstanceUID)
    assert identifiers[0] == identifiers[1] != identifiers[2]


def test_the_same_mask_of_two_series_has_other_identifiers(tmp_path, write_series):
    found = []
    for name in ("one", "two"):
        volume, mask_s = series(tmp_path / name, write_series)
        for path in (tmp_path / name).glob("*.dcm"):
            header = pydicom.dcmread(path)
            header.SeriesInstanceUID = f"1.2.3.{len(name)}.{len(found)}"
            header.save_as(path)
        labels = LABELS._replace(source=tmp_path / name)
        write_segmentation(tmp_path / f"{name}.dcm", mask_s * 0, affine=volume.affine, labels=labels)
        found.append(pydicom.dcmread(tmp_path / f"{name}.dcm"))
    assert found[0].SeriesInstanceUID != found[1].SeriesInstanceUID
    assert found[0].SOPInstanceUID != found[1].SOPInstanceUID


def test_a_mask_that_cannot_lie_over_the_series_is_refused_and_names_it(tmp_path, write_series):
    volume, mask_s = series(tmp_path / "source", write_series)
    sheared = volume.affine @ np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    labels = LABELS._replace(source=tmp_path / "source")
    with pytest.raises(ScanError, match=r"source: a segmentation cannot refer"):
        write_segmentation(tmp_path / "no.dcm", mask_s, affine=sheared, labels=labels)


def test_a_mask_that_marks_nothing_is_written_and_a_mask_without_a_series_is_not(tmp_path, write_series):
    volume, mask_s = series(tmp_path / "source", write_series)
    labels = LABELS._replace(source=tmp_path / "source")
    write_segmentation(tmp_path / "empty.dcm", mask_s * 0, affine=volume.affine, labels=labels)
    assert not highdicom.seg.segread(tmp_path / "empty.dcm").pixel_array.any()
    (tmp_path / "nothing").mkdir()
    for source, kind in ((None, InputError), (tmp_path / "nothing", ScanError)):
        with pytest.raises(kind, match="series"):
            write_segmentation(tmp_path / "no.dcm", mask_s, affine=volume.affine, labels=LABELS._replace(source=source))
    assert not (tmp_path / "no.dcm").exists()
