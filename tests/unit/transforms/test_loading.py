"""Slice files: one shape, one range, faults named."""

from __future__ import annotations

import gzip
import json
import struct
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_vqgen.data.io.nifti import write_slice_nifti
from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.transforms import LoadSlice

GREY = np.arange(20, dtype=np.uint8).reshape(4, 5) * 12


def test_png_of_8_and_16_bit_and_gray_stored_as_color(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "8.png")
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "16.png")
    Image.fromarray(np.repeat(GREY[..., None], 3, axis=2)).save(tmp_path / "rgb.png")
    for name in ("8.png", "16.png", "rgb.png"):
        image = LoadSlice()(tmp_path / name)
        np.testing.assert_allclose(image.numpy(), GREY[None] / 255, atol=1e-6)
        assert str(image.dtype) == "torch.float32"


def test_color_is_an_error_or_its_luminance(tmp_path):
    Image.fromarray(np.stack([GREY, GREY // 2, 255 - GREY], axis=2)).save(tmp_path / "c.png")
    with pytest.raises(ScanError, match=r"c\.png: a color picture; convert it to gray, or load it in Python"):
        LoadSlice()(tmp_path / "c.png")
    expected = np.stack([GREY, GREY // 2, 255 - GREY], axis=2) @ [0.299, 0.587, 0.114] / 255
    np.testing.assert_allclose(LoadSlice(color="luminance")(tmp_path / "c.png").numpy()[0], expected, atol=1e-6)


def test_three_channels_are_red_green_and_blue_and_gray_is_all_alike(tmp_path):
    color = np.stack([GREY, GREY // 2, 255 - GREY], axis=2)
    Image.fromarray(color).save(tmp_path / "c.png")
    Image.fromarray(GREY).save(tmp_path / "g.png")
    load = LoadSlice(channels=3)
    np.testing.assert_allclose(load(tmp_path / "c.png").numpy(), color.transpose(2, 0, 1) / 255, atol=1e-6)
    np.testing.assert_allclose(load(tmp_path / "g.png").numpy(), np.stack([GREY] * 3) / 255, atol=1e-6)
    with pytest.raises(ScanError, match=r"has no 2 channels; give NIfTI \[H, W, 1, 2\]"):
        LoadSlice(channels=2)(tmp_path / "c.png")
    with pytest.raises(InputError, match="channels is 0"):
        LoadSlice(channels=0)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1)])
def test_nifti_in_array_order_with_its_affine(tmp_path, shape):
    affine = np.array([[0, -2.0, 0, 3], [-2, 0, 0, 4], [0, 0, -3, 5], [0, 0, 0, 1]])
    values = (GREY / 255).astype(np.float32)
    nib.save(nib.Nifti1Image(values.reshape(shape), affine), tmp_path / "s.nii.gz")
    image = LoadSlice()(tmp_path / "s.nii.gz")
    np.testing.assert_array_equal(image.numpy(), values[None])
    if len(shape) == 3:
        np.testing.assert_allclose(image.affine, affine)


def test_what_was_written_comes_back_with_subject_plane_and_position(tmp_path):
    values = (GREY / 255).astype(np.float32)
    about = {"subject": "sub-01", "plane": "axial", "position_mm": 40.5}
    write_slice_nifti(tmp_path / "s.nii.gz", values, np.diag([2.0, 2, 3, 1]), about)
    image = LoadSlice()(tmp_path / "s.nii.gz")
    np.testing.assert_array_equal(image.numpy()[0], values)
    assert {key: image.meta[key] for key in about} == about
    assert nib.load(tmp_path / "s.nii.gz").shape == (4, 5, 1)


def test_unknown_ranges_are_refused_unless_named(tmp_path):
    nib.save(nib.Nifti1Image(GREY.astype(np.float32) * 10, np.eye(4)), tmp_path / "s.nii")
    with pytest.raises(ScanError, match=r"values from 0 to 2280 .*value_range"):
        LoadSlice()(tmp_path / "s.nii")
    scaled = LoadSlice(value_range=(0, 1200))(tmp_path / "s.nii").numpy()
    np.testing.assert_allclose(scaled[0], np.clip(GREY / 120, 0, 1), atol=1e-6)
    nib.save(nib.Nifti1Image(GREY, np.eye(4)), tmp_path / "b.nii")
    np.testing.assert_allclose(LoadSlice()(tmp_path / "b.nii").numpy()[0], GREY / 255, atol=1e-6)


def test_faults_are_named(tmp_path):
    good = tmp_path / "good.nii.gz"
    write_slice_nifti(good, np.random.default_rng(0).random((40, 40)), np.eye(4), {})
    content = bytearray(good.read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / "flip.nii.gz").write_bytes(content)
    (tmp_path / "short.nii.gz").write_bytes(good.read_bytes()[:900])
    (tmp_path / "text.png").write_text("no picture")
    nib.save(nib.Nifti1Image(np.full((4, 4), np.nan, dtype=np.float32), np.eye(4)), tmp_path / "nan.nii")
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), dtype=np.float32), np.eye(4)), tmp_path / "volume.nii")
    for name, fault in {
        "flip.nii.gz": "damaged",
        "short.nii.gz": "damaged",
        "text.png": "unreadable",
        "nan.nii": "NaN",
        "volume.nii": "slice",
        "gone.png": "no such file",
    }.items():
        with pytest.raises(ScanError, match=rf"{name}.*{fault}"):
            LoadSlice()(tmp_path / name)


def test_options_that_cannot_work_are_refused():
    with pytest.raises(InputError, match="value_range"):
        LoadSlice(value_range=(1, 0))
    with pytest.raises(InputError, match="color"):
        LoadSlice(color="red")


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "jpg"])
def test_pictures_of_all_kinds_have_the_same_values(tmp_path, suffix):
    Image.fromarray(GREY).save(tmp_path / f"a.{suffix}", **({"quality": 100} if suffix == "jpg" else {}))
    np.testing.assert_allclose(LoadSlice()(tmp_path / f"a.{suffix}")[0], GREY / 255, atol=0.02)


def test_a_tiff_of_floats_has_their_values_and_16_bits_their_range(tmp_path):
    Image.fromarray(GREY.astype(np.float32) / 255).save(tmp_path / "f.tif")
    np.testing.assert_allclose(LoadSlice()(tmp_path / "f.tif")[0], GREY / 255, atol=1e-6)
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "g.tif")
    with pytest.raises(ScanError, match=r"g\.tif: values from 0 to 228"):
        LoadSlice()(tmp_path / "g.tif")
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "16.tif")
    np.testing.assert_allclose(LoadSlice()(tmp_path / "16.tif")[0], GREY / 255, atol=1e-6)


def test_what_is_not_one_gray_picture_is_refused(tmp_path):
    gray = Image.fromarray(GREY)
    gray.save(tmp_path / "two.tif", save_all=True, append_images=[gray])
    Image.fromarray(np.stack([GREY, GREY], axis=2), "LA").save(tmp_path / "clear.png")
    gray.convert("CMYK").save(tmp_path / "ink.tif")
    gray.save(tmp_path / "other.png", format="GIF")
    faults = {"two.tif": "holds 2 images", "clear.png": "transparent", "ink.tif": "CMYK", "other.png": "unreadable"}
    for name, fault in faults.items():
        with pytest.raises(ScanError, match=f"{name}: .*{fault}"):
            LoadSlice()(tmp_path / name)


def png(width, height, rows, *, color=0):
    """A PNG whose header may lie about its packed rows; all checksums of its parts are right."""

    def part(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">2I5B", width, height, 8, color, 0, 0, 0)
    packed = zlib.compress(rows) if isinstance(rows, bytes) else bytes(rows)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", packed) + part(b"IEND", b"")


def test_a_png_that_lies_or_has_a_wrong_checksum_is_refused(tmp_path):
    path, rows = tmp_path / "a.png", b"".join(b"\0" + row.tobytes() for row in GREY)
    path.write_bytes(png(5, 4, rows))
    np.testing.assert_allclose(LoadSlice()(path)[0], GREY / 255, atol=1e-6)
    flipped = bytearray(zlib.compress(rows, 0))
    flipped[12] ^= 8  # stored, not packed: only the sum at the end tells
    endless = zlib.compress(rows)[:-4]  # without that sum
    cases = (png(4, 4, rows), png(5, 3, rows), png(4, 3, rows), png(5, 5, rows), png(5, 4, [*flipped]))
    cases = (*cases, png(5, 4, [*endless]))
    for content in cases:
        path.write_bytes(content)
        with pytest.raises(ScanError, match=r"a\.png: "):
            LoadSlice()(path)
    broken = bytearray(png(5, 4, rows))
    broken[-20] ^= 1  # within the checksum of the pixels' part
    path.write_bytes(broken)
    with pytest.raises(ScanError, match="wrong checksum"):
        LoadSlice()(path)


def test_interlaced_pngs_pass(tmp_path):
    one = png(1, 1, b"\0\7")
    at = one.index(b"IHDR") + 4
    header = bytearray(one[at : at + 13])
    header[12] = 1
    one = one[:at] + bytes(header) + struct.pack(">I", zlib.crc32(b"IHDR" + bytes(header))) + one[at + 17 :]
    (tmp_path / "a.png").write_bytes(one)
    assert float(LoadSlice()(tmp_path / "a.png")[0, 0, 0]) == pytest.approx(7 / 255)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
def test_a_slice_is_read_to_its_last_byte(tmp_path, name):
    path = tmp_path / name
    write_slice_nifti(path, np.random.default_rng(0).random((40, 40)), np.eye(4), {})
    content = path.read_bytes()
    plain = gzip.decompress(content) if name.endswith("gz") else content
    for wrong in (plain + b"x", plain[:-1], plain + bytes(4000)):
        path.write_bytes(gzip.compress(wrong) if name.endswith("gz") else wrong)
        with pytest.raises(ScanError, match=r"more data|truncated"):
            LoadSlice()(path)
    lying = bytearray(plain)
    lying[42:46] = struct.pack("<2h", 39, 40)
    path.write_bytes(gzip.compress(bytes(lying)))
    with pytest.raises(ScanError, match="more data"):
        LoadSlice()(path)


def bomb(path, kind):
    """A small file that announces, or holds, two thousand million bytes."""
    if kind == "png":
        path.write_bytes(png(16_000, 10_000, bytes(10_000_000)))
        return
    header = nib.Nifti1Header()
    header.set_data_shape((30_000, 16_000, 1) if kind == "slice" else (4, 5, 1))
    header.set_data_dtype(np.float32)
    header.set_sform(np.eye(4), 1)
    header["vox_offset"] = 2_000_000_000 if kind == "long extension" else 1008
    size = {"lying extension": -16, "long extension": 1_999_999_000}.get(kind, 16)
    path.write_bytes(gzip.compress(header.binaryblock + b"\1\0\0\0" + struct.pack("<2i", size, 6) + bytes(80_000_000)))


@pytest.mark.parametrize("kind", ["slice", "png", "lying extension", "long extension"])
def test_a_small_file_is_refused_before_it_unfolds(tmp_path, kind):
    path = tmp_path / ("a.png" if kind == "png" else "a.nii.gz")
    bomb(path, kind)
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    with pytest.raises(ScanError, match="more data" if kind == "lying extension" else r"announces .* GiB"):
        LoadSlice()(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_pixels_that_unfold_to_more_than_the_header_of_a_png_announces_take_no_memory(tmp_path):
    (tmp_path / "a.png").write_bytes(png(5, 4, bytes(50_000_000)))
    tracemalloc.start()
    with pytest.raises(ScanError, match=r"a\.png: .*there are others"):
        LoadSlice()(tmp_path / "a.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6


def test_a_comment_is_looked_for_in_the_first_mebibyte_of_extensions_alone(tmp_path):
    about = {"subject": "sub-01"}
    for name, size in (("near.nii", 16), ("far.nii", 2**20)):
        image = nib.Nifti1Image((GREY / 255).astype(np.float32)[..., None], np.eye(4))
        image.header.extensions.append(nib.nifti1.Nifti1Extension(0, bytes(size)))
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", json.dumps(about).encode()))
        nib.save(image, tmp_path / name)
    assert LoadSlice()(tmp_path / "near.nii").meta["subject"] == "sub-01"
    assert "subject" not in LoadSlice()(tmp_path / "far.nii").meta


@pytest.mark.parametrize("size", [0, -16, 8, 2**31 - 1])
def test_an_extension_whose_size_lies_is_passed_over_and_the_search_ends(tmp_path, size):
    nib.save(nib.Nifti1Image((GREY / 255).astype(np.float32)[..., None], np.eye(4)), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[108:112] = np.float32(368).tobytes()  # vox_offset
    content[348:352] = b"\1\0\0\0"
    content[352:352] = struct.pack("<2i", size, 6) + bytes(8)
    (tmp_path / "a.nii").write_bytes(content)
    image = LoadSlice()(tmp_path / "a.nii")
    np.testing.assert_allclose(image[0], GREY / 255, atol=1e-6)
    assert "subject" not in image.meta


def test_a_slice_without_pixels_is_named(tmp_path):
    write_slice_nifti(tmp_path / "a.nii", np.ones((4, 5)), np.eye(4), {})
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[42:44] = b"\0\0"  # dim[1]
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(ScanError, match=r"a\.nii: shape \(0, 5, 1\) has an axis without voxels"):
        LoadSlice()(tmp_path / "a.nii")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_tiff_whose_zero_is_white_is_turned_over(tmp_path, kind):
    white = np.iinfo(kind).max
    stored = GREY.astype(kind) * (white // 255)
    Image.fromarray(stored).save(tmp_path / "s.tif")
    content = bytearray((tmp_path / "s.tif").read_bytes())
    entry = content.index(struct.pack("<HHIH", 262, 3, 1, 1))  # PhotometricInterpretation: BlackIsZero
    content[entry + 8] = 0
    (tmp_path / "s.tif").write_bytes(content)
    np.testing.assert_allclose(LoadSlice()(tmp_path / "s.tif").numpy()[0], 1 - GREY / 255, atol=1e-6)


def test_a_negative_of_floats_is_refused(tmp_path):
    Image.fromarray((GREY / 255).astype(np.float32)).save(tmp_path / "s.tif")
    content = bytearray((tmp_path / "s.tif").read_bytes())
    content[content.index(struct.pack("<HHIH", 262, 3, 1, 1)) + 8] = 0
    (tmp_path / "s.tif").write_bytes(content)
    with pytest.raises(ScanError, match=r"s\.tif: a negative"):
        LoadSlice()(tmp_path / "s.tif")


def test_uncompressed_pictures_with_more_pixels_than_announced_are_refused(tmp_path):
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "s.bmp")
    content = bytearray((tmp_path / "s.bmp").read_bytes())
    struct.pack_into("<i", content, 18, 32)
    (tmp_path / "s.bmp").write_bytes(content)
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "s.tif")
    content = bytearray((tmp_path / "s.tif").read_bytes())
    width = next(tag for kind in (3, 4) if (tag := struct.pack("<HHI", 256, kind, 1)) in content)
    content[content.index(width) + 8] = 32
    (tmp_path / "s.tif").write_bytes(content)
    for name in ("s.bmp", "s.tif"):
        with pytest.raises(ScanError, match=rf"{name}: .*the header announces 2048 bytes of pixels"):
            LoadSlice()(tmp_path / name)


@pytest.mark.parametrize(("shape", "channels"), [((4, 5, 6), 1), ((4, 5, 6, 1), 1), ((4, 5, 6, 2), 2)])
def test_a_volume_comes_in_the_files_own_axes_with_its_affine(tmp_path, shape, channels):
    voxels, affine = np.random.default_rng(0).random(shape, dtype=np.float32), np.diag([2.5, 2.5, 3.0, 1.0])
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "v.nii.gz")
    image = LoadSlice(dimensions=3, channels=channels)(tmp_path / "v.nii.gz")
    assert image.shape == (channels, 4, 5, 6)
    np.testing.assert_array_equal(image.numpy(), voxels.reshape(4, 5, 6, channels).transpose(3, 0, 1, 2))
    np.testing.assert_array_equal(image.affine, affine)


def test_slices_and_volumes_are_told_apart_with_the_mend(tmp_path):
    for name, shape in {"slice": (4, 5, 1), "volume": (4, 5, 6), "series": (4, 5, 6, 3)}.items():
        nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), np.eye(4)), tmp_path / f"{name}.nii.gz")
    with pytest.raises(ScanError, match=r"is not a slice \[H, W, 1\]; volumes want .*spatial_dims 3"):
        LoadSlice()(tmp_path / "volume.nii.gz")
    with pytest.raises(ScanError, match=r"is not a volume \[X, Y, Z\]; .* --dimensions 3"):
        LoadSlice(dimensions=3)(tmp_path / "slice.nii.gz")
    with pytest.raises(ScanError, match=r"shape \(4, 5, 6, 3\) is not a volume \[X, Y, Z\]"):
        LoadSlice(dimensions=3)(tmp_path / "series.nii.gz")
    Image.new("L", (4, 4)).save(tmp_path / "p.png")
    with pytest.raises(ScanError, match="a picture, where a volume"):
        LoadSlice(dimensions=3)(tmp_path / "p.png")
    with pytest.raises(InputError, match="give 2 for slices or 3 for volumes"):
        LoadSlice(dimensions=4)
