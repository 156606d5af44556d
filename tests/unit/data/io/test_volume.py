"""A scan is read whole and right, or refused by name."""

from __future__ import annotations

import gzip
import struct
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from monai_vqgen.data import read_volume
from monai_vqgen.errors import ScanError
from monai_vqgen.transforms.nifti import check_unfolding

AFFINE = np.array([[-2, 0.1, 0, 5], [0.1, 2, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1.0]])
VALUES = np.random.default_rng(0).integers(1, 3000, (12, 13, 14)).astype(np.int16)


def save(path, values=VALUES, affine=AFFINE, kind=nib.Nifti1Image):
    nib.save(kind(values, affine), path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<f4", ">f8", "u1"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_voxels_are_nibabels_for_every_type_order_and_version(tmp_path, suffix, dtype, kind):
    values = (VALUES % 250).astype(dtype)
    image = kind(values, AFFINE, kind.header_class(endianness=dtype[0]) if dtype[0] in "<>" else None)
    image.set_data_dtype(dtype)
    nib.save(image, tmp_path / f"a{suffix}")
    volume = read_volume(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(volume.voxels_s * volume.slope, nib.load(tmp_path / f"a{suffix}").get_fdata())
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert volume.voxels_s.dtype.isnative


@pytest.mark.parametrize(("slope", "inter"), [(0.5, 0), (2.0, -1024.0), (-1.0, 10.0)])
def test_slope_and_offset_are_nibabels(tmp_path, slope, inter):
    image = nib.Nifti1Image(VALUES.astype(np.float64) * slope + inter, AFFINE)
    image.header.set_data_dtype(np.int16)
    image.header.set_slope_inter(slope, inter)
    nib.save(image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert volume.slope > 0
    np.testing.assert_allclose(volume.voxels_s * volume.slope, nib.load(tmp_path / "a.nii.gz").get_fdata(), rtol=1e-5)


def test_one_flipped_bit_anywhere_in_the_gzip_is_caught(tmp_path):
    good = save(tmp_path / "a.nii.gz").read_bytes()
    bad = tmp_path / "bad.nii.gz"
    for place in np.linspace(400, len(good) - 5, 25).astype(int):  # deflate data and the CRC itself
        content = bytearray(good)
        content[place] ^= 1
        bad.write_bytes(content)
        with pytest.raises(ScanError, match=r"bad\.nii\.gz"):
            read_volume(bad)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("keep", [0, 3, 100, 348, 0.5, 0.999])
def test_truncated_files_are_named(tmp_path, suffix, keep):
    path = save(tmp_path / f"a{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(ScanError, match=r"a\.nii"):
        read_volume(path)


def test_what_is_no_volume_is_named(tmp_path):
    save(tmp_path / "flat.nii.gz", VALUES[:, :, 0])
    save(tmp_path / "one.nii.gz", VALUES[:, :, :1])
    color = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    save(tmp_path / "color.nii.gz", color)
    save(tmp_path / "complex.nii.gz", VALUES.astype(np.complex64))
    (tmp_path / "text.nii").write_text("hello, this is no scan " * 50)
    (tmp_path / "text.nii.gz").write_bytes(gzip.compress(b"x" * 5000))
    for name, fault in {
        "flat.nii.gz": "3-D volume",
        "one.nii.gz": "two voxels",
        "color.nii.gz": "gray",
        "complex.nii.gz": "gray",
        "text.nii": "unreadable",
        "text.nii.gz": "unreadable",
        "gone.nii": "no such file",
    }.items():
        with pytest.raises(ScanError, match=rf"{name}: .*{fault}"):
            read_volume(tmp_path / name)


def test_useless_geometry_is_named(tmp_path):
    path = save(tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    content[280:284] = np.float32(np.nan).tobytes()  # srow_x[0]
    (tmp_path / "nan.nii").write_bytes(content)
    with pytest.raises(ScanError, match=r"nan\.nii: .*affine"):
        read_volume(tmp_path / "nan.nii")
    content = bytearray(path.read_bytes())
    content[42:44] = b"\0\0"  # dim[1]
    (tmp_path / "zero.nii").write_bytes(content)
    with pytest.raises(ScanError, match=r"zero\.nii: "):
        read_volume(tmp_path / "zero.nii")


def test_nan_voxels_become_background_with_a_warning_and_all_nan_is_refused(tmp_path, caplog):
    values = VALUES.astype(np.float32)
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    with caplog.at_level("WARNING"):
        volume = read_volume(save(tmp_path / "a.nii.gz", values))
    assert "3 voxels are NaN" in caplog.text
    expected = values.copy()
    expected[0, 0, :3] = 0
    np.testing.assert_array_equal(volume.voxels_s, expected)
    with pytest.raises(ScanError, match="no voxel is a number"):
        read_volume(save(tmp_path / "b.nii.gz", np.full((4, 4, 4), np.nan, dtype=np.float32)))


def test_a_series_of_volumes_gives_its_first_with_a_warning(tmp_path, caplog):
    series = np.stack([VALUES, VALUES + 1], axis=3)
    with caplog.at_level("WARNING"):
        np.testing.assert_array_equal(read_volume(save(tmp_path / "a.nii.gz", series)).voxels_s, VALUES)
    assert "first of 2" in caplog.text


def test_a_gzip_bomb_is_refused_before_it_unfolds(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_shape((2000, 2000, 2000))
    header.set_data_dtype(np.float64)
    header["vox_offset"] = 352
    header.set_sform(AFFINE, 1)
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(4 + 50_000_000)))
    tracemalloc.start()
    with pytest.raises(ScanError, match=r"bomb\.nii\.gz: .*GiB"):
        read_volume(tmp_path / "bomb.nii.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6
    # a header that says little before a stream that holds much
    small = save(tmp_path / "a.nii").read_bytes()
    (tmp_path / "more.nii.gz").write_bytes(gzip.compress(small + bytes(50_000_000)))
    with pytest.raises(ScanError, match="more data than its header"):
        read_volume(tmp_path / "more.nii.gz")


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1e-3), ("micron", 1e3), ("mm", 1), ("unknown", 1)])
def test_positions_are_millimeters_whatever_the_unit(tmp_path, unit, factor, caplog):
    image = nib.Nifti1Image(VALUES, np.diag([factor, factor, factor, 1]) @ AFFINE)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii.gz").affine, AFFINE, atol=1e-5)
    assert ("positions are converted" in caplog.text) == (factor != 1)


def test_units_that_are_no_units_change_nothing(tmp_path):
    image = nib.Nifti2Image(VALUES, np.diag([1e-3, 1e-3, 1e-3, 1]) @ AFFINE)
    nib.save(image, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[500:504] = (0x12345601).to_bytes(4, "little")  # meters, and bits that nothing is known of
    (tmp_path / "a.nii").write_bytes(content)
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").affine, AFFINE, atol=1e-5)


def test_a_link_without_content_says_how_to_fetch_it(tmp_path):
    (tmp_path / "a.nii.gz").symlink_to("../.git/annex/objects/gone")
    with pytest.raises(ScanError, match=r"a\.nii\.gz: no such file, only a link .*git annex get"):
        read_volume(tmp_path / "a.nii.gz")


def test_how_much_a_file_may_unfold_to_depends_on_its_size(tmp_path):
    (tmp_path / "a").write_bytes(bytes(3 * 2**20))
    check_unfolding(tmp_path / "a", 3 * 64 * 2**20)
    check_unfolding(tmp_path / "a", 2**34, max_bytes=2**35)
    for count, limit in ((3 * 64 * 2**20 + 1, None), (11, 10)):
        with pytest.raises(ScanError, match=r"GiB are allowed for 3\.0 MiB"):
            check_unfolding(tmp_path / "a", count, limit)
    with pytest.raises(ScanError, match="announces"):
        check_unfolding(tmp_path / "a", 2**32 + 1, file_bytes=2**40)


def test_voxels_that_begin_within_the_header_are_refused(tmp_path):
    content = bytearray(save(tmp_path / "a.nii").read_bytes())
    content[108:112] = np.float32(0).tobytes()  # vox_offset
    content[344:348] = b"ni1\0"  # of a pair of files, whose voxels begin at 0
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(ScanError, match=r"a\.nii: "):
        read_volume(tmp_path / "a.nii")


def test_nan_becomes_the_background_of_a_volume_whose_background_is_not_zero(tmp_path):
    values = np.full((12, 13, 14), -1, dtype=np.float32)
    values[3:9, 3:9, 3:9] = np.linspace(0, 1, 216).reshape(6, 6, 6)
    values[0, 0, 0] = np.nan
    assert read_volume(save(tmp_path / "a.nii.gz", values)).voxels_s[0, 0, 0] == -1


def test_a_scan_that_does_not_fit_into_memory_is_named(tmp_path, monkeypatch):
    def scarce(*_, **__):
        raise MemoryError

    path = save(tmp_path / "a.nii")
    monkeypatch.setattr(np, "frombuffer", scarce)
    with pytest.raises(ScanError, match=r"a\.nii: does not fit into memory; crop it"):
        read_volume(path)


def test_a_scan_whose_header_does_not_say_how_it_lies_is_read_and_that_is_said(tmp_path, caplog):
    image = nib.Nifti1Image(VALUES, None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nib.save(image, tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").voxels_s.shape == VALUES.shape
    assert "does not give its orientation; anatomical planes are a guess" in caplog.text
    caplog.clear()
    read_volume(save(tmp_path / "b.nii"))
    assert not caplog.text


def test_of_a_scan_that_ends_early_it_is_told_how_much_is_there(tmp_path):
    path = save(tmp_path / "a.nii")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ScanError, match=r"a\.nii: truncated, has 4358 of 4368 bytes of voxels; download"):
        read_volume(path)


@pytest.mark.parametrize("factor", [1e300, 1e-300, 1e-42])
def test_values_that_single_precision_cannot_hold_are_refused(tmp_path, factor):
    save(tmp_path / "s.nii.gz", np.asarray(VALUES, dtype=np.float64) * factor)
    with pytest.raises(ScanError, match=r"s\.nii\.gz: values of up to .* expected 1e-30 to 1e\+37"):
        read_volume(tmp_path / "s.nii.gz")


@pytest.mark.parametrize(("slope", "offset"), [(1e36, 0), (1e36, 1), (1e-40, 0)])
def test_slopes_that_single_precision_cannot_hold_are_refused(tmp_path, slope, offset):
    content = bytearray(nib.Nifti1Image(np.full((4, 5, 6), 900, dtype=np.int16), AFFINE).to_bytes())
    struct.pack_into("<2f", content, 112, slope, offset)
    (tmp_path / "s.nii").write_bytes(content)
    with pytest.raises(ScanError, match=r"values of up to .*scl_slope"):
        read_volume(tmp_path / "s.nii")


@pytest.mark.parametrize(("sform", "refused"), [(0, True), (1, False)])
def test_a_voxel_size_of_zero_is_refused_where_the_place_depends_on_it(tmp_path, sform, refused):
    image = nib.Nifti1Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), AFFINE)
    image.set_sform(AFFINE, sform)
    image.set_qform(AFFINE, 1)
    content = bytearray(image.to_bytes())
    struct.pack_into("<f", content, 84, 0.0)  # pixdim[2]
    (tmp_path / "s.nii").write_bytes(content)
    if refused:
        with pytest.raises(ScanError, match=r"s\.nii: the header gives no voxel size"):
            read_volume(tmp_path / "s.nii")
    else:
        np.testing.assert_allclose(read_volume(tmp_path / "s.nii").affine, AFFINE, atol=1e-5)
