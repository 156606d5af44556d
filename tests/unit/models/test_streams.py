"""Images and scans through bytes: what comes back is what the codes hold, in the scan's own geometry and units."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib

import nibabel as nib
import numpy as np
import pytest
import torch
from factories import POSITIONS, tiny_autoencoder, tiny_model
from monai.data import MetaTensor
from PIL import Image

from monai_vqgen.coding import unpack_stream
from monai_vqgen.coding.container import pack_stream
from monai_vqgen.errors import DatalistError, InputError, OutputExistsError, ScanError, StreamError
from monai_vqgen.models import TrainedModel, compress_files, compress_scan, decompress_files, decompress_scan
from monai_vqgen.models.scans import as_volume
from monai_vqgen.models.streams import stored_scan

OBLIQUE = np.array([[0.1, -2.0, 0, 30], [2.5, 0.1, 0.2, -40], [0, 0.1, 3.1, 7], [0, 0, 0, 1]])


def scan(shape=(20, 18, 7), affine=OBLIQUE) -> MetaTensor:
    """An ellipsoid with contrast in a black volume whose first slice is blank."""
    axes = [np.linspace(-1.2, 1.2, n) if n > 1 else np.zeros(1) for n in shape]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    values = np.where(radius < 1, 600 + 300 * np.cos(5 * radius), 0).astype(np.float32)
    return MetaTensor(torch.from_numpy(values)[None], affine=torch.from_numpy(np.asarray(affine, dtype=np.float64)))


@pytest.mark.parametrize("size", [(16, 16), (13, 10), (24, 32)])
@pytest.mark.parametrize("mode", ["model", "anywhere"])
def test_images_of_any_size_come_back_as_decoded_codes(size, mode):
    model = tiny_model()
    images = torch.rand(3, 1, *size, generator=torch.Generator().manual_seed(0))
    stream = model.compress(images, mode=mode)
    with torch.no_grad():
        expected = model.autoencoder(images).clamp(0, 1)
    torch.testing.assert_close(model.decompress(stream), expected)


def test_volumes_of_a_model_of_volumes_come_back():
    model = tiny_model([16] * 3, autoencoder=tiny_autoencoder(spatial_dims=3), spatial_dims=3)
    images = torch.rand(2, 1, 16, 12, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.autoencoder(images).clamp(0, 1)
    torch.testing.assert_close(model.decompress(model.compress(images)), expected)


def test_conditions_by_name_are_for_all_images_or_one_each_and_refused_where_they_do_not_fit():
    model = tiny_model(condition=POSITIONS)
    images = torch.rand(2, 1, 16, 16)
    plain = model.decompress(model.compress(images))
    for given in (50.0, [50.0, 70.0]):
        stream = model.compress(images, position_mm=given)
        assert unpack_stream(stream)[0].conditions
        assert torch.equal(model.decompress(stream), plain)
    with pytest.raises(InputError, match="position_mm=5"):
        model.compress(images, position_mm=5.0)


@pytest.mark.parametrize("shape", [(20, 18, 7), (20, 18, 1), (9, 40, 5)])
@pytest.mark.parametrize("affine", [OBLIQUE, np.diag([-3.0, 3.0, 3.0, 1.0])])
def test_a_scan_comes_back_as_its_reconstruction_in_shape_place_and_units(shape, affine):
    model, image = tiny_model(), scan(shape, affine)
    found = decompress_scan(model, compress_scan(model, image))
    assert found.shape == image.shape
    assert torch.equal(found.affine, image.affine)
    inferer = model.reconstruction_inferer(pixel_mm=3.0, image_size=(16, 16))
    expected = inferer(image[None], model.autoencoder)[0].as_tensor()
    torch.testing.assert_close(found.as_tensor(), expected, atol=1e-3, rtol=1e-4)


def test_a_scan_comes_back_with_its_conditions():
    model = tiny_model(condition=POSITIONS)
    found = decompress_scan(model, compress_scan(model, scan(), condition={"position_mm": 60.0}))
    assert found.meta["plane"] == "axial"
    assert len(found.meta["conditions"]) == 5
    assert all(record["position_mm"] == pytest.approx(60.0, abs=0.001) for record in found.meta["conditions"])
    assert decompress_scan(model, compress_scan(model, scan())).meta["conditions"] == [{}] * 5


def test_what_cannot_be_compressed_is_refused():
    model = tiny_model()
    with pytest.raises(ScanError, match="no contrast"):
        compress_scan(model, torch.zeros(8, 8, 8))
    with pytest.raises(InputError, match="give"):
        model.compress(torch.rand(16, 16))
    with pytest.raises(InputError, match="without a place in space"):
        decompress_scan(model, model.compress(torch.rand(1, 1, 16, 16)))


def changed_geometry(stream: bytes, at: int, value: bytes) -> bytes:
    header, chunks = unpack_stream(stream)
    geometry = header.geometry[:at] + value + header.geometry[at + len(value) :]
    return pack_stream(header._replace(geometry=geometry), chunks)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, bytes([7])),
        (1, struct.pack("<3I", *[2**32 - 1] * 3)),
        (1, struct.pack("<I", 2**25)),
        (1, struct.pack("<I", 0)),
        (13, struct.pack("<d", 1e-9)),
        (13, struct.pack("<d", float("nan"))),
        (13, struct.pack("<d", 0.0)),
        (21, struct.pack("<f", float("inf"))),
        (33, bytes(48)),
        (-1, b"\0"),
    ],
)
def test_a_geometry_that_does_not_fit_is_refused_before_anything_of_its_size_is_made(at, value):
    model = tiny_model()
    stream = compress_scan(model, scan(affine=np.diag([3.0, 3.0, 3.0, 1.0])))
    at %= len(unpack_stream(stream)[0].geometry)
    with pytest.raises(StreamError, match="geometry does not fit"):
        decompress_scan(model, changed_geometry(stream, at, value))


@pytest.fixture
def saved(tmp_path):
    return str(tiny_model().save(tmp_path / "weights"))


def write(path, image: MetaTensor):
    nib.save(nib.Nifti1Image(image[0].numpy(), image.affine.numpy()), path)
    return path


def test_files_of_scans_and_pictures_go_through_and_keep_their_names(tmp_path, saved):
    model, volume = TrainedModel.from_bundle(saved), scan()
    path = write(tmp_path / "a.b.nii.gz", volume)
    picture = tmp_path / "p.png"
    pixels = np.random.default_rng(0).integers(0, 256, (16, 12), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)
    streams = compress_files([path, picture], tmp_path / "small", model=saved)
    assert [stream.name for stream in streams] == ["a.b.vqg", "p.vqg"]
    results = decompress_files(streams, tmp_path / "back", model=saved)
    assert [result.name for result in results] == ["a.b.nii.gz", "p.png"]
    loaded = nib.load(results[0])
    np.testing.assert_allclose(loaded.affine, nib.load(path).affine, atol=1e-6)
    np.testing.assert_array_equal(loaded.get_fdata(), decompress_scan(model, streams[0].read_bytes())[0].numpy())
    decoded = model.decompress(model.compress(torch.from_numpy(pixels)[None, None] / 255))[0, 0]
    assert np.abs(np.asarray(Image.open(results[1])) / 255 - decoded.numpy()).max() <= 0.5 / 255 + 1e-6


def test_several_images_of_a_stream_become_numbered_pictures(tmp_path, saved):
    stream = tmp_path / "many.vqg"
    stream.write_bytes(TrainedModel.from_bundle(saved).compress(torch.rand(3, 1, 16, 16)))
    names = [path.name for path in decompress_files([stream], tmp_path, model=saved)]
    assert names == ["many_0000.png", "many_0001.png", "many_0002.png"]


def test_bad_files_are_named_and_nothing_is_written_of_them(tmp_path, saved):
    good, output = write(tmp_path / "good.nii.gz", scan()), tmp_path / "out"
    (stream,) = compress_files([good], output, model=saved)
    with pytest.raises(OutputExistsError, match=r"good\.vqg"):
        compress_files([good], output, model=saved)
    assert compress_files([good], output, model=saved, mode="anywhere", overwrite=True) == [stream]
    bad = tmp_path / "bad.vqg"
    bad.write_bytes(stream.read_bytes()[:-4])
    with pytest.raises(StreamError, match=r"bad\.vqg: the stream is cut off"):
        decompress_files([bad], tmp_path / "back", model=saved)
    with pytest.raises(StreamError, match=r"good\.vqg: the stream was made with other weights"):
        decompress_files([stream], tmp_path / "back")
    with pytest.raises(StreamError, match=r"gone\.vqg cannot be read"):
        decompress_files([tmp_path / "gone.vqg"], tmp_path / "back", model=saved)
    assert not list((tmp_path / "back").glob("[!.]*"))
    with pytest.raises(InputError, match="compressed already"):
        compress_files([stream], tmp_path / "again", model=saved)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(DatalistError, match="would both be written as"):
        compress_files([good, write(other / "good.nii", scan())], tmp_path / "two", model=saved)
    blank = write(tmp_path / "blank.nii.gz", scan() * 0)
    with pytest.raises(ScanError, match=r"blank\.nii\.gz"):
        compress_files([blank], tmp_path / "three", model=saved)
    assert not list((tmp_path / "three").glob("*.vqg"))


@pytest.mark.slow
def test_a_stream_of_the_priors_is_read_by_a_processor_without_vector_instructions(tmp_path, saved):
    model = TrainedModel.from_bundle(saved)
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    stream = tmp_path / "many.vqg"
    stream.write_bytes(model.compress(images))
    script = """
import sys, torch
from monai_vqgen import TrainedModel
print(torch.backends.cpu.get_cpu_capability())
torch.save(TrainedModel.from_bundle(sys.argv[1]).decompress(open(sys.argv[2], "rb").read()), sys.argv[3])
"""
    plain = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    command = [sys.executable, "-c", script, saved, str(stream), str(tmp_path / "images.pt")]
    done = subprocess.run(command, env={**os.environ, **plain}, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(("DEFAULT", "NO AVX"))
    torch.testing.assert_close(torch.load(tmp_path / "images.pt"), model.decompress(stream.read_bytes()))


def test_colors_come_back_from_files_as_colors(tmp_path):
    model = tiny_model(autoencoder=tiny_autoencoder(in_channels=3))
    model.save(tmp_path / "run")
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    compress_files([tmp_path / "a.png"], tmp_path / "small", model=str(tmp_path / "run"))
    decompress_files([tmp_path / "small" / "a.vqg"], tmp_path / "back", model=str(tmp_path / "run"))
    back = np.asarray(Image.open(tmp_path / "back" / "a.png"))
    with torch.no_grad():
        images = torch.from_numpy(pixels).movedim(-1, 0)[None].float() / 255
        expected = (model.autoencoder(images).clamp(0, 1) * 255 + 0.5).floor()[0].movedim(0, -1).numpy()
    assert back.shape == (16, 16, 3)
    assert np.abs(back - expected).max() <= 1
    contrasts = tiny_model(autoencoder=tiny_autoencoder(in_channels=2))
    contrasts.save(tmp_path / "two")
    with pytest.raises(InputError, match="this model has 2 channels"):
        compress_files([tmp_path / "a.png"], tmp_path / "none", model=str(tmp_path / "two"))


def test_what_comes_back_can_be_changed_and_trained_on():
    model = tiny_model()
    back = model.decompress(model.compress(torch.rand(1, 1, 16, 16)))
    assert not back.is_inference()
    back.mul_(2)


def test_the_mode_for_anywhere_needs_no_priors_of_the_same_conditions():
    written, plain = tiny_model(condition=POSITIONS), tiny_model()
    images = torch.rand(1, 1, 16, 16)
    stream = written.compress(images, mode="anywhere", position_mm=50.0)
    assert torch.equal(plain.decompress(stream), written.decompress(stream))


def test_a_slice_of_two_axes_is_no_volume_of_one_plane(tmp_path):
    values = np.random.default_rng(0).random((24, 16), dtype=np.float32)
    for name, array in (("flat", values), ("deep", values[..., None])):
        nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 5.0, 1.0])), tmp_path / f"{name}.nii")
    model = tiny_model()
    flat, deep = (decompress_scan(model, compress_scan(model, tmp_path / f"{name}.nii")) for name in ("flat", "deep"))
    assert flat.shape == deep.shape == (1, 24, 16, 1)
    assert torch.equal(flat, deep)


def test_a_folder_of_slices_is_written_with_all_its_splits(tmp_path):
    for split in ("train", "validate", "test"):
        (tmp_path / "slices" / split).mkdir(parents=True)
        pixels = np.random.default_rng(len(split)).integers(0, 255, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "slices" / split / f"{split}.png")
    tiny_model().save(tmp_path / "run")
    files = compress_files([tmp_path / "slices"], tmp_path / "small", model=str(tmp_path / "run"))
    assert sorted(file.name for file in files) == ["test.vqg", "train.vqg", "validate.vqg"]


@pytest.mark.parametrize("mode", ["model", "anywhere"])
@pytest.mark.parametrize(("channels", "size"), [(1, (16, 16)), (3, (13, 10)), (1, (24, 32))])
def test_lossless_images_come_back_bit_for_bit_and_as_reconstructions_where_asked(channels, size, mode):
    model = tiny_model(autoencoder=tiny_autoencoder(in_channels=channels))
    images = torch.randint(0, 256, (3, channels, *size), generator=torch.Generator().manual_seed(0)) / 255
    stream = model.compress(images, mode=mode, lossless=True)
    assert torch.equal(model.decompress(stream), images)
    assert torch.equal(model.decompress(stream, lossy=True), model.decompress(model.compress(images, mode=mode)))


def test_lossless_volumes_of_a_model_of_volumes_come_back():
    model = tiny_model([16] * 3, autoencoder=tiny_autoencoder(spatial_dims=3), spatial_dims=3)
    images = torch.randint(0, 99, (2, 1, 16, 12, 16), generator=torch.Generator().manual_seed(0)) / 98
    assert torch.equal(model.decompress(model.compress(images, lossless=True)), images)


@pytest.mark.parametrize(
    ("dtype", "slope", "offset"),
    [
        ("u1", 7.936949, 0.0),
        ("i2", 1.0, -1024.0),
        ("i2", -1.0, 1000.0),
        (">i2", 0.5, 0.0),
        ("f4", 1.0, 0.0),
        ("f8", 1.0, 0.0),
        ("u4", 1.0, 0.0),
        ("i8", 1.0, 0.0),
        ("u8", 2.0, 0.0),
    ],
)
def test_a_lossless_file_gives_back_the_scan_as_it_was_stored(tmp_path, saved, dtype, slope, offset):
    stored = (scan()[0].numpy() / 4).astype(dtype)
    if dtype == "f4":
        stored[10, 9, 3] = np.nan
    order = ">" if dtype == ">i2" else "<"
    image = nib.Nifti1Image(stored, OBLIQUE, nib.Nifti1Header(endianness=order), dtype=np.dtype(dtype))
    content = bytearray(image.to_bytes())
    content[112:120] = struct.pack(f"{order}2f", slope, offset)
    path = tmp_path / "scan.nii"
    path.write_bytes(content)
    (stream,) = compress_files([path], tmp_path / "small", model=saved, lossless=True)
    (back,) = decompress_files([stream], tmp_path / "back", model=saved)
    was, now = nib.load(path), nib.load(back)
    assert now.get_data_dtype() == np.dtype(dtype).newbyteorder("<")
    np.testing.assert_array_equal(now.dataobj.get_unscaled(), stored)
    assert (now.dataobj.slope, now.dataobj.inter) == (was.dataobj.slope, was.dataobj.inter)
    np.testing.assert_array_equal(now.affine, was.affine)
    model = TrainedModel.from_bundle(saved)
    found = decompress_scan(model, stream.read_bytes())
    np.testing.assert_array_equal(found[0].numpy(), as_volume(path)[0].numpy())
    assert torch.equal(found.affine, torch.from_numpy(was.affine))
    (lossy,) = decompress_files([stream], tmp_path / "lossy", model=saved, lossy=True)
    expected = decompress_scan(model, compress_scan(model, path))
    np.testing.assert_array_equal(nib.load(lossy).get_fdata(dtype=np.float32), expected[0].numpy())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_lossless_pictures_come_back_with_their_bits(tmp_path, saved, dtype):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (16, 12), dtype=dtype)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    streams = compress_files([tmp_path / "p.png"], tmp_path / "small", model=saved, lossless=True)
    (back,) = decompress_files(streams, tmp_path / "back", model=saved)
    found = np.asarray(Image.open(back))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, pixels)


def test_a_scan_of_too_many_values_says_what_to_do_and_nothing_is_written(tmp_path, saved):
    values = np.random.default_rng(0).random((44, 44, 44)).astype(np.float32)
    path = tmp_path / "noise.nii"
    nib.save(nib.Nifti1Image(values, np.diag([3.0, 3.0, 3.0, 1.0])), path)
    with pytest.raises(InputError, match=r"noise\.nii: .* different values.*16-bit integers, or compress it without"):
        compress_files([path], tmp_path / "small", model=saved, lossless=True)
    assert not list((tmp_path / "small").glob("*.vqg"))


def test_exact_values_need_no_weights_and_lossy_streams_have_none():
    model = tiny_model()
    assert stored_scan(compress_scan(model, scan())) is None
    stored = stored_scan(compress_scan(model, scan(), lossless=True))
    assert stored is not None
    np.testing.assert_array_equal(stored.voxels_s, scan()[0].numpy())
    assert stored.slope == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda told: b"",
        lambda told: told[:5],
        lambda told: b"\3" + told[1:],
        lambda told: b"\1" + told[1:],
        lambda told: told[:1] + struct.pack("<d", float("nan")) + told[9:],
        lambda told: told[:1] + struct.pack("<d", 1e300) + told[9:],
        lambda told: told[:1] + bytes(8) + told[9:],
        lambda told: told[:9] + struct.pack("<d", float("inf")) + told[17:],
        lambda told: told[:-4],
    ],
)
def test_exact_values_that_do_not_fit_the_geometry_are_refused_with_a_right_checksum_too(change):
    model = tiny_model()
    header, chunks = unpack_stream(compress_scan(model, scan(), lossless=True))
    told = change(header.exact[4:])
    changed = pack_stream(header._replace(exact=struct.pack("<I", zlib.crc32(told)) + told), chunks)
    with pytest.raises(StreamError, match="exact values"):
        decompress_scan(model, changed)
    assert decompress_scan(model, changed, lossy=True).shape == (1, 20, 18, 7)


def test_no_flipped_bit_of_the_exact_values_of_a_cube_goes_unseen():
    """Of which no shape tells one axis from another."""
    model = tiny_model()
    header, chunks = unpack_stream(compress_scan(model, scan((9, 9, 9)), lossless=True))
    for bit in range(8 * min(len(header.exact), 120)):
        exact = bytearray(header.exact)
        exact[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StreamError, match="damaged"):
            stored_scan(pack_stream(header._replace(exact=bytes(exact)), chunks))


def test_lossless_images_need_the_weights_that_compressed_them():
    stream = tiny_model().compress(torch.zeros(1, 1, 16, 16), lossless=True)
    with pytest.raises(StreamError, match="other weights"):
        tiny_model(autoencoder=tiny_autoencoder(seed=5)).decompress(stream)


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
def test_lossless_images_in_half_precision_come_back_in_single(dtype):
    images = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    model = tiny_model()
    assert torch.equal(model.decompress(model.compress(images, lossless=True)), images.float())


def test_exact_values_are_not_made_where_the_stream_is_too_short_for_them(monkeypatch):
    stream = compress_scan(tiny_model(), scan(), lossless=True)
    monkeypatch.setattr("monai_vqgen.models.streams.allowed_bytes", lambda length: 8 * 20 * 18 * 7)
    with pytest.raises(StreamError, match=r"exact values of shape \(7, 20, 18\) are more than"):
        stored_scan(stream)
