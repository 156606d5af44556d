"""What is one regular volume is read rightly in whatever order and form it comes; all else is refused by name."""

from __future__ import annotations

import contextlib
import os
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from monai_vqgen.data import discover_volumes, make_phantom, read_volume
from monai_vqgen.errors import ScanError

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

HEAD = make_phantom(5, 1, voxel_mm=8.0, orientation="LPS")  # oblique
VOXELS = np.rint(HEAD.voxels_s)
LAST = VOXELS.shape[2] - 1
STEP = (np.diag([-1, -1, 1, 1]) @ HEAD.affine)[:3, 2]  # from one plane to the next, mm


def canonical(voxels, affine):
    """Voxels and affine in the axes of nibabel's RAS+, so that the order of storage does not matter."""
    image = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(voxels, dtype=np.float64), affine))
    return image.get_fdata(), image.affine


def assert_is_the_head(volume):
    found, affine = canonical(volume.voxels_s * volume.slope, volume.affine)
    expected, right = canonical(VOXELS, HEAD.affine)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(affine, right, atol=1e-4)


def setting(**attributes):
    """An edit that sets attributes: values, functions of the plane's index, or None to remove one."""

    def edit(data, k):
        for name, value in attributes.items():
            value = value(k) if callable(value) else value
            if value is None:
                delattr(data, name)
            else:
                setattr(data, name, value)

    return edit


def moved(shift):
    """An edit that shifts each plane along its rows and along the stack, by `shift(k)` in steps between planes."""

    def edit(data, k):
        along, out = shift(k)
        row = np.array(data.ImageOrientationPatient[:3], dtype=float) * np.linalg.norm(STEP)
        place = np.array(data.ImagePositionPatient, dtype=float) + along * row + out * STEP
        data.ImagePositionPatient = [f"{value:.10g}"[:16] for value in place]

    return edit


def inverted(data, k):
    data.PhotometricInterpretation = "MONOCHROME1"
    data.PixelData = (VOXELS.max() - np.frombuffer(data.PixelData, "<i2")).astype("<i2").tobytes()


def inverse_shape(data, k):
    inverted(data, k)
    data.PhotometricInterpretation, data.PresentationLUTShape = "MONOCHROME2", "INVERSE"


def halved(data, k):
    """Stored twice as large and 6 above, and rescaled back."""
    data.PixelData = (2 * np.frombuffer(data.PixelData, "<i2") + 6).astype("<i2").tobytes()
    data.RescaleSlope, data.RescaleIntercept = "0.5", "-3"


def eight_bits(data, k):
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    data.PixelData = (np.frombuffer(data.PixelData, "<i2") // 4).astype(np.uint8).tobytes()


def mapped_to_units(data, k):
    item = pydicom.Dataset()
    item.RealWorldValueFirstValueMapped, item.RealWorldValueLastValueMapped = -100, 32000
    item.RealWorldValueSlope, item.RealWorldValueIntercept, item.LUTLabel = 5.0, 1.0, "T1"
    data.RealWorldValueMappingSequence = [item]


@pytest.mark.parametrize(
    "edit",
    [
        setting(InstanceNumber=lambda k: LAST - k),
        setting(InstanceNumber=lambda k: k // 2 if k % 2 else LAST - k),
        setting(InstanceNumber=1),
        setting(InstanceNumber=lambda k: None if k % 5 == 2 else k),
        inverted,
        inverse_shape,
        halved,
        mapped_to_units,
    ],
    ids=["backwards", "interleaved", "all-equal", "missing", "monochrome1", "inverse", "rescaled", "mapped"],
)
def test_positions_decide_and_dark_stays_dark(tmp_path, write_series, edit):
    write_series(tmp_path / "s", VOXELS, HEAD.affine, edit=edit)
    assert_is_the_head(read_volume(tmp_path / "s"))


def test_inverted_values_do_not_run_over(tmp_path, write_series):
    stored = np.where(VOXELS.mean() < VOXELS, 30000, -30000)
    write_series(tmp_path / "s", stored, HEAD.affine, edit=setting(PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(np.unique(read_volume(tmp_path / "s").voxels_s), [0, 60000])


@pytest.mark.parametrize("spread", [0, 0.004])
def test_times_that_scanners_round_are_those_of_one_scan(tmp_path, write_series, spread):
    write_series(tmp_path / "s", VOXELS, HEAD.affine, edit=setting(EchoTime=lambda k: f"{3 + spread * (k % 2):.3f}"))
    assert_is_the_head(read_volume(tmp_path / "s"))


def test_patients_are_told_apart_by_every_digit(tmp_path, write_series):
    write_series(tmp_path / "s", VOXELS, HEAD.affine, edit=setting(PatientID=lambda k: str(1001 + k % 2)))
    with pytest.raises(ScanError, match="several patients"):
        read_volume(tmp_path / "s")


@pytest.mark.parametrize("dark", [False, True], ids=["monochrome2", "monochrome1"])
@pytest.mark.parametrize("rescaled", [False, True])
def test_bright_padding_is_as_dark_as_the_darkest_voxel(tmp_path, write_series, dark, rescaled):
    padded = np.zeros(VOXELS.shape, dtype=bool)
    padded[:2] = True
    measured = VOXELS + 100
    stored = measured.max() + 50 - measured if dark else measured
    padding = -20000 if dark else 20000

    def edit(data, k):
        data.add_new("PixelPaddingValue", "SS", padding)
        if dark:
            data.PhotometricInterpretation = "MONOCHROME1"
        if rescaled:
            data.RescaleSlope, data.RescaleIntercept = "2", "7"

    write_series(tmp_path / "s", np.where(padded, padding, stored), HEAD.affine, edit=edit)
    found = canonical(*read_volume(tmp_path / "s")[::2])[0]
    darkest = measured[~padded].min()
    expected = canonical(np.where(padded, darkest, measured), HEAD.affine)[0]
    step = 2 if rescaled else 1
    np.testing.assert_array_equal(found - found.min(), step * (expected - darkest))


def test_a_deflated_series_is_read_and_one_that_unpacks_to_too_much_is_refused(tmp_path, write_series):
    write_series(tmp_path, VOXELS, HEAD.affine)
    for path in tmp_path.glob("*.dcm"):
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        data.save_as(path, enforce_file_format=True)
    assert_is_the_head(read_volume(tmp_path))
    data.add_new(0x00420011, "OB", bytes(2**27))  # what no image needs
    data.save_as(path, enforce_file_format=True)
    tracemalloc.start()
    with pytest.raises(ScanError, match=r"unpacks to more than .* MiB; export it without deflate"):
        read_volume(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2e7
    tracemalloc.stop()


def test_rounded_positions_are_still_a_volume(tmp_path, write_series):
    def rounded(data, k):
        data.ImagePositionPatient = [f"{float(value):.1f}" for value in data.ImagePositionPatient]

    write_series(tmp_path / "s", VOXELS, HEAD.affine, edit=rounded)
    np.testing.assert_array_equal(
        canonical(*read_volume(tmp_path / "s")[::2])[0], canonical(VOXELS, HEAD.affine)[0]
    )  # fields 0 and 2 are voxels and affine


SIDEWAYS = [0, 1, 0, 0, 0, -1]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (setting(ImagePositionPatient=None), rf"{LAST + 1} of {LAST + 1} images have no usable ImagePositionPatient"),
        (setting(ImageOrientationPatient=None), "no usable ImageOrientationPatient"),
        (setting(PixelSpacing=None), "no usable PixelSpacing"),
        (lambda d, k: k or setting(PixelSpacing=None)(d, k), r"1 of .* no usable PixelSpacing \(000.dcm\)"),
        (lambda d, k: k or setting(ImagePositionPatient=["1e400", "0", "0"])(d, k), "1 of .* no usable ImagePosition"),
        (setting(PixelSpacing=[0, 6]), "PixelSpacing .* positive millimeters"),
        (setting(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "unit vectors at right angles"),
        (lambda d, k: k or setting(ImageOrientationPatient=SIDEWAYS)(d, k), r"1 of .* \(000.dcm: .* a localizer"),
        (lambda d, k: k or setting(PixelSpacing=[7, 7])(d, k), "another PixelSpacing than the rest"),
        (lambda d, k: k or setting(Rows=d.Columns, Columns=d.Rows)(d, k), "another Rows and Columns than the rest"),
        (moved(lambda k: (k * np.tan(np.radians(12)), 0)), r"tilted by 12\.0 degrees.*dcm2niix"),
        (moved(lambda k: (k * np.tan(np.radians(1.5)), 0)), r"tilted by 1\.5 degrees"),
        (
            moved(lambda k: (0, 0.3 * (k == 4))),
            r"not evenly spaced: .* mm between .*004.dcm.*, elsewhere .* an even grid",
        ),
        (moved(lambda k: (0, 0.03 * abs(k - LAST / 2))), "not evenly spaced"),
        (moved(lambda k: (0, -(k % 2))), "lie on .* planes"),
        (
            lambda d, k: (moved(lambda k: (0, -(k % 2)))(d, k), setting(EchoTime=[3, 9][k % 2])(d, k)),
            "lie on .* EchoTime 3.* and 9.*: several echoes",
        ),
        (
            setting(EchoTime=lambda k: [3, 9][k % 2]),
            "several echoes in one series .EchoTime 3.0 of 000.dcm, 9.0 of 001",
        ),
        (setting(InversionTime=lambda k: 800 + 100 * (k > 4)), "several inversion times"),
        (setting(ImageType=lambda k: ["ORIGINAL", "PRIMARY", "MP"[k > 4], "ND"]), "several kinds of images"),
        (setting(PatientID=lambda k: f"p{k % 2}"), "several patients in one series"),
        (setting(StudyInstanceUID=lambda k: f"1.{1 + k % 2}"), "several studies in one series"),
        (setting(PixelRepresentation=lambda k: int(k > 0)), "pixels stored in several ways"),
        (lambda d, k: k or eight_bits(d, k), "pixels stored in several ways"),
        (setting(BitsStored=12, HighBit=15), "stores 12 bits up to bit 15; expected the lowest bits"),
        (setting(PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="IDENTITY"), "contradict each other"),
        (lambda d, k: k or inverted(d, k), "one kind of gray values"),
        (setting(PhotometricInterpretation="PALETTE COLOR"), "the pixels are PALETTE COLOR"),
        (setting(Rows=30000, Columns=30000), "announces 187.75 GiB, and 0.12 GiB are allowed"),
        (setting(PixelData=b"\0\0"), "unreadable DICOM series"),
    ],
)
def test_what_is_not_one_regular_volume_is_refused_by_name(tmp_path, write_series, edit, message):
    write_series(tmp_path / "series-7", VOXELS, HEAD.affine, edit=edit)
    with pytest.raises(ScanError, match=f"series-7: .*{message}"):
        read_volume(tmp_path / "series-7")


def test_missing_slices_are_counted_and_placed(tmp_path, write_series):
    write_series(tmp_path / "s", VOXELS, HEAD.affine)
    step = np.linalg.norm(STEP)
    told = f"{3 * step:.2f} mm between 003.dcm and 006.dcm, elsewhere {step:.2f} mm; about 3 slices are missing"
    for k in (4, 5, 9):
        (tmp_path / "s" / f"{k:03d}.dcm").unlink()
    with pytest.raises(ScanError, match=told):
        read_volume(tmp_path / "s")


def test_an_echo_beside_another_is_refused_with_what_sets_them_apart(tmp_path, write_series):
    for name, time in (("a", 3), ("b", 9)):
        write_series(tmp_path / name, VOXELS, HEAD.affine, edit=setting(EchoTime=time))
    for path in (tmp_path / "b").iterdir():
        path.rename(tmp_path / "a" / f"second_{path.name}")
    count = LAST + 1
    with pytest.raises(ScanError, match=rf"{2 * count} images lie on {count} planes \(.*EchoTime 3.* and 9"):
        read_volume(tmp_path / "a")


@pytest.fixture
def enhanced(tmp_path, write_series):
    """A series of many frames, by highdicom's conversion, and where it lies."""

    def full(data, k):
        data.PatientID, data.PatientName, data.PatientBirthDate, data.PatientSex = "P", "P^Q", "", ""
        data.StudyInstanceUID, data.FrameOfReferenceUID, data.StudyID, data.AccessionNumber = "1.2.3.8", "1.2.9", "", ""
        data.StudyDate, data.StudyTime, data.ReferringPhysicianName, data.Manufacturer = "", "", "", "M"
        data.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.PositionReferenceIndicator, data.AcquisitionNumber = "", 1
        data.InstanceNumber = (7 * k) % (LAST + 1)

    write_series(tmp_path / "parts", VOXELS, HEAD.affine, edit=full)
    parts = [pydicom.dcmread(path) for path in sorted((tmp_path / "parts").iterdir())]
    image = highdicom.legacy.LegacyConvertedEnhancedMRImage(
        parts, series_instance_uid="1.2.3.77", series_number=2, sop_instance_uid="1.2.3.78", instance_number=1
    )
    folder = tmp_path / "enhanced"
    folder.mkdir()
    return image, folder / "image.dcm"


def test_an_enhanced_image_of_many_frames_is_read_by_its_frames_places(enhanced):
    image, path = enhanced
    image.save_as(path)
    assert_is_the_head(read_volume(path.parent))
    image.SOPInstanceUID = "1.2.3.79"
    image.save_as(path.with_name("again.dcm"))
    with pytest.raises(ScanError, match="holds 2 images of many frames"):
        read_volume(path.parent)


def test_frames_that_are_no_volume_are_refused_by_number(enhanced):
    image, path = enhanced
    frames = image.PerFrameFunctionalGroupsSequence
    place = frames[3].PlanePositionSequence[0].ImagePositionPatient
    frames[3].PlanePositionSequence[0].ImagePositionPatient = frames[4].PlanePositionSequence[0].ImagePositionPatient
    image.save_as(path)
    with pytest.raises(ScanError, match=r"frame \d+ of image.dcm and frame \d+ of image.dcm on one"):
        read_volume(path.parent)
    frames[3].PlanePositionSequence[0].ImagePositionPatient = place
    del frames[3].PlanePositionSequence
    image.save_as(path)
    with pytest.raises(ScanError, match=r"1 of .* no usable ImagePositionPatient \(frame 4 of image.dcm\)"):
        read_volume(path.parent)


@pytest.mark.parametrize(("implicit", "little"), [(False, True), (True, True), (False, False)])
def test_files_without_preamble_are_found_and_read(tmp_path, write_series, implicit, little):
    write_series(tmp_path / "s", VOXELS, HEAD.affine, "1", "P3")
    for path in (tmp_path / "s").iterdir():
        data = pydicom.dcmread(path)
        bare = pydicom.Dataset({element.tag: element for element in data})
        if not little:
            bare["PixelData"].VR = "OW"
            bare.PixelData = np.frombuffer(bare.PixelData, "<i2").astype(">i2").tobytes()
        bare.save_as(path, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
        assert path.read_bytes()[128:132] != b"DICM"
    (record,) = discover_volumes(tmp_path)
    assert record.subject == "P3"
    assert_is_the_head(read_volume(record.path))


def test_a_series_is_found_and_read_whatever_lies_beside_it(tmp_path, write_series):
    write_series(tmp_path / "s", VOXELS, HEAD.affine)
    for name in "abcd":
        (tmp_path / "s" / f"000_{name}.xml").write_text("<report/>")
    (tmp_path / "s" / "000_numbers.bin").write_bytes(b"\x08\x00\x10\x00" * 100)  # begins as a header might
    os.mkfifo(tmp_path / "s" / "000_pipe")
    report = pydicom.dcmread(tmp_path / "s" / "000.dcm")
    for keyword in ("Rows", "Columns", "PixelData"):
        delattr(report, keyword)
    report.SeriesInstanceUID, report.SOPClassUID = "1.2.3.55", "1.2.840.10008.5.1.4.1.1.88.11"  # Basic Text SR
    report.save_as(tmp_path / "s" / "000_report.dcm")
    (record,) = discover_volumes(tmp_path)
    assert_is_the_head(read_volume(record.path))


@pytest.mark.parametrize("left", [200, 600])
def test_an_image_cut_short_is_not_taken_for_a_report(tmp_path, write_series, left):
    write_series(tmp_path / "s", VOXELS, HEAD.affine)
    last = tmp_path / "s" / f"{LAST:03d}.dcm"
    last.write_bytes(last.read_bytes()[:left])
    with pytest.raises(ScanError, match=rf"{last.name}: has no image|unreadable"):
        read_volume(tmp_path / "s")


@pytest.mark.parametrize("defined", [True, False])
@pytest.mark.parametrize("depth", [300, 3000])
def test_sequences_within_sequences_are_refused_by_name_or_read_and_end(tmp_path, write_series, depth, defined):
    write_series(tmp_path, VOXELS, HEAD.affine)
    path = sorted(tmp_path.glob("*.dcm"))[0]
    tag, item = b"\x40\x00\x75\x02SQ\0\0", b"\xfe\xff\x00\xe0"  # (0040,0275), and an item of it
    nested = b""
    for _ in range(depth):
        if defined:
            held = item + len(nested).to_bytes(4, "little") + nested
            nested = tag + len(held).to_bytes(4, "little") + held
        else:
            ends = b"\xfe\xff\x0d\xe0" + bytes(4) + b"\xfe\xff\xdd\xe0" + bytes(4)
            nested = tag + b"\xff" * 4 + item + b"\xff" * 4 + nested + ends
    content, pixels = path.read_bytes(), b"\xe0\x7f\x10\x00"
    at = content.index(pixels)
    path.write_bytes(content[:at] + nested + content[at:])
    with contextlib.suppress(ScanError):
        assert_is_the_head(read_volume(tmp_path))


@pytest.mark.parametrize("value", ["class", "series", "row"])
def test_a_value_that_cannot_be_decoded_is_refused_wherever_it_is_looked_at(tmp_path, write_series, value):
    write_series(tmp_path, VOXELS, HEAD.affine)
    path = sorted(tmp_path.glob("*.dcm"))[0]
    tag = {"class": b"\x08\x00\x16\x00", "series": b"\x20\x00\x0e\x00", "row": b"\x28\x00\x10\x00"}[value]
    content = bytearray(path.read_bytes())
    at = content.index(tag, 132) + 4
    assert content[at : at + 2] in (b"UI", b"US")
    content[at : at + 2] = b"U\x09"  # no kind of value
    path.write_bytes(content)
    with pytest.raises(ScanError, match="unreadable DICOM"):
        read_volume(tmp_path)


def test_a_length_that_lies_takes_no_memory(tmp_path, write_series):
    write_series(tmp_path, VOXELS, HEAD.affine)
    path = sorted(tmp_path.glob("*.dcm"))[0]
    content = path.read_bytes()
    at = content.index(b"\xe0\x7f\x10\x00OW") + 8
    path.write_bytes(content[:at] + (2**31 - 2).to_bytes(4, "little") + content[at + 4 :])
    tracemalloc.start()
    assert_is_the_head(read_volume(tmp_path))  # nothing is missing
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e7
