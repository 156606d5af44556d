"""A stream is read back as it was written, and says nothing that its reader takes on trust."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from monai_vqgen.coding.container import (
    FREE_BYTES,
    MAGIC,
    Chunk,
    Header,
    pack_features,
    pack_stream,
    unpack_features,
    unpack_stream,
)
from monai_vqgen.errors import InputError, StreamError

HEADER = Header(b"autoenco", b"--priors", 5, (128, 96), 2, b"conditions", b"geometry")
CHUNKS = [Chunk("model", (3, 7), 4, 123456789, b"12345678"), Chunk("anywhere", (0, 0), 1, 2**32 - 1, b"")]


def with_checksum(told: bytes) -> bytes:
    return told + struct.pack("<I", zlib.crc32(told))


def test_header_and_chunks_come_back_from_the_bytes_that_the_format_tells_of():
    stream = pack_stream(HEADER, CHUNKS)
    assert unpack_stream(stream) == (HEADER, CHUNKS)
    told = MAGIC + bytes([1, 2, 2, 0]) + b"autoenco" + b"--priors" + struct.pack("<III", 5, 128, 96)
    told = with_checksum(told + struct.pack("<HH", 10, 8) + b"conditionsgeometry")
    first = bytes([0, 3, 7]) + struct.pack("<HII", 4, 8, 123456789) + b"12345678"
    assert stream == told + first + bytes([1, 0, 0]) + struct.pack("<HII", 1, 0, 2**32 - 1)


def test_exact_values_follow_the_chunks_in_a_stream_of_version_2():
    lossy, exact = pack_stream(HEADER, CHUNKS), HEADER._replace(exact=b"values")
    stream = pack_stream(exact, CHUNKS)
    assert unpack_stream(stream) == (exact, CHUNKS)
    assert (lossy[4], stream[4]) == (1, 2)
    assert stream.endswith(lossy[-11:] + struct.pack("<I", 6) + b"values")


@pytest.mark.parametrize("header", [HEADER, HEADER._replace(exact=b"values")])
def test_every_cut_is_refused(header):
    stream = pack_stream(header, CHUNKS)
    for cut in range(len(stream)):
        with pytest.raises(StreamError, match=r"cut off|no stream"):
            unpack_stream(stream[:cut])


def test_bytes_that_follow_are_refused():
    with pytest.raises(StreamError, match="1 bytes follow"):
        unpack_stream(pack_stream(HEADER, CHUNKS) + b"\0")


@pytest.mark.parametrize("bit", range(8 * 62))
def test_each_flipped_bit_of_the_header_is_refused(bit):
    stream = bytearray(pack_stream(HEADER, CHUNKS))
    stream[bit // 8] ^= 1 << bit % 8
    with pytest.raises(StreamError):
        unpack_stream(bytes(stream))


def test_a_newer_version_says_so():
    stream = bytearray(pack_stream(HEADER, CHUNKS))
    stream[4] = 3
    with pytest.raises(StreamError, match="of format 3, and this version of monai_vqgen reads up to 2: upgrade it"):
        unpack_stream(bytes(stream))


@pytest.mark.parametrize(
    ("count", "size"),
    [(2**32 - 1, (2**32 - 1,) * 2), (1, (2**31, 2**32 - 1)), (3000, (128, 128)), (0, (8, 8)), (1, (0, 8))],
)
def test_a_header_of_absurd_sizes_is_refused_by_its_figures_alone(count, size):
    told = MAGIC + bytes([1, 2, 2, 0]) + bytes(16) + struct.pack("<III", count, *size) + bytes(4)
    with pytest.raises(StreamError, match=f"announces {count} images of {size[0]} x {size[1]} pixels"):
        unpack_stream(with_checksum(told))


def test_more_pixels_than_a_float_holds_are_refused_like_others():
    axes = 40
    told = (
        MAGIC + bytes([1, 2, axes, 0]) + bytes(16) + struct.pack(f"<{1 + axes}I", *[2**32 - 1] * (1 + axes)) + bytes(4)
    )
    with pytest.raises(StreamError, match=r"pixels, over 2\^970 GiB"):
        unpack_stream(with_checksum(told))


def test_what_a_stream_may_unfold_to_grows_with_its_length():
    images = FREE_BYTES // (4 * 128 * 128)
    assert unpack_stream(pack_stream(HEADER._replace(images=images), [CHUNKS[1]._replace(images=1024)] * 2))
    many = [Chunk("anywhere", (0, 0), 1000, 0, bytes(100_000))] * 3
    assert unpack_stream(pack_stream(HEADER._replace(images=3000), many))
    with pytest.raises(InputError, match="a stream takes 4 GiB"):
        pack_stream(HEADER._replace(images=10**6), [])
    with pytest.raises(InputError, match="conditions of 65536 bytes"):
        pack_stream(HEADER._replace(conditions=bytes(65536)), [])


@pytest.mark.parametrize("change", [{"images": 0}, {"images": 6}, {"payload": b"123"}])
def test_a_chunk_that_cannot_be_is_refused(change):
    with pytest.raises(StreamError, match="chunk 0 of the stream is damaged"):
        unpack_stream(pack_stream(HEADER, [CHUNKS[0]._replace(**change), CHUNKS[1]]))


def test_features_of_conditions_come_back_to_a_step_and_known_ones_exactly():
    features = np.stack([np.linspace(-1, 1, 60), np.ones(60), np.zeros(60), -np.ones(60)], axis=1)
    packed = pack_features(features)
    found = unpack_features(packed, 60, 4)
    assert np.abs(found - features).max() <= 0.5 / 32767 + 1e-12
    assert (found[:, 1:] == features[:, 1:]).all()
    assert len(packed) < 60, "a position that grows evenly is worth its bytes"
    assert pack_features(np.zeros((60, 4))) == b""
    assert (unpack_features(b"", 2, 3) == np.zeros((2, 3))).all()


@pytest.mark.parametrize("packed", [b"no deflate", zlib.compress(bytes(10**6)), zlib.compress(bytes(15)), b"x"])
def test_features_of_another_number_are_refused(packed):
    with pytest.raises(StreamError, match="conditions"):
        unpack_features(packed, 4, 2)
