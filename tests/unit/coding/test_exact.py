"""Values kept exactly: any type and shape comes back bit for bit, in few bytes, and no damage goes unseen."""

from __future__ import annotations

import tracemalloc
import zlib
from itertools import pairwise

import numpy as np
import pytest

from monai_vqgen.coding.exact import MOST_VALUES, TYPES, _ordered, pack_exact, unpack_exact
from monai_vqgen.coding.pixel_stack import PixelStack
from monai_vqgen.errors import InputError, StreamError

stream = pytest.importorskip("constriction").stream


def smooth(shape=(5, 24, 20), most=255, seed=0):
    """Waves that move slowly from image to image, with noise and a black frame, in 0..most."""
    random, axes = np.random.default_rng(seed), np.indices(shape)
    values = 0.4 + 0.3 * np.sin(axes[1] / 5 + axes[0] / 7) * np.cos(axes[2] / 6) + random.normal(0, 0.01, shape)
    values[:, :2] = 0
    return np.rint(values * most)


def back(values):
    return unpack_exact(pack_exact(values, stream), values.shape, stream)


def assert_same(found, values):
    assert found.dtype == values.dtype
    assert found.tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", [dtype.str for dtype in TYPES])
def test_values_of_every_type_come_back_bit_for_bit(dtype):
    values = smooth(most=100).astype(dtype)
    if np.dtype(dtype).kind != "u":
        values -= 50
    assert_same(back(values), values)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 9), (1, 9, 1), (7, 1, 1), (1, 40, 3), (3, 2, 2), (30, 12, 5)])
def test_images_of_any_size_come_back(shape):
    assert_same(back(smooth(shape).astype(np.uint8)), smooth(shape).astype(np.uint8))


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((2, 8, 8), np.int16),
        np.full((2, 8, 8), -7, np.int16),
        np.random.default_rng(0).integers(0, 2**16, (2, 64, 64)).astype(np.uint16),
        np.random.default_rng(0).choice([0, 65535], (3, 32, 32)).astype(np.uint16),
        np.random.default_rng(0).choice([-(2**31), 2**31 - 1, 0], (3, 8, 8)).astype(np.int32),
        np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -3.5, 7.25], np.float32).reshape(2, 2, 2),
        np.asfortranarray(smooth().astype(np.uint8)),
        smooth().astype(np.uint8)[:, ::-1, ::2],
    ],
    ids=["zeros", "one value", "noise", "extremes", "far apart", "floats", "by columns", "a view"],
)
def test_odd_values_come_back(values):
    assert_same(back(values), np.ascontiguousarray(values))


def test_bytes_of_the_other_order_come_back_in_ours():
    values = smooth().astype(">u2")
    assert_same(back(values), values.astype("<u2"))


def test_errors_that_no_token_has_come_back():
    values = smooth(most=2000).astype(np.uint16)
    values[2, 10, 10] = 65000
    values[3, 11, 11] = 30000
    assert_same(back(values), values)


def test_a_stack_of_similar_images_takes_fewer_bytes_than_each_alone_and_than_deflate():
    values = smooth((12, 64, 64)).astype(np.uint8)
    together = len(pack_exact(values, stream))
    assert together < 0.9 * sum(len(pack_exact(image[None], stream)) for image in values)
    assert together < 0.7 * len(zlib.compress(values.tobytes(), 9))


def test_all_that_a_pixel_is_predicted_from_is_in_earlier_waves():
    stack = PixelStack((3, 5, 4))
    waves = list(stack.waves())
    inside = np.concatenate([*stack.images()])
    assert sorted(np.concatenate(waves)) == sorted(inside)
    wave_of = {place: number for number, wave in enumerate(waves) for place in wave.tolist()}
    for place in inside.tolist():
        for step in stack._steps.tolist():
            assert wave_of.get(place + step, -1) < wave_of[place]


def test_more_values_than_can_be_kept_and_other_types_are_refused():
    with pytest.raises(InputError, match=r"65,537 different values, of which 65,536.*16-bit"):
        pack_exact(np.arange(MOST_VALUES + 1, dtype=np.float32).reshape(1, 1, -1), stream)
    with pytest.raises(InputError, match="complex64"):
        pack_exact(np.zeros((1, 2, 2), np.complex64), stream)


def test_every_cut_is_refused():
    packed = pack_exact(smooth((2, 9, 8)).astype(np.uint8), stream)
    for length in range(len(packed)):
        with pytest.raises(StreamError, match="damaged"):
            unpack_exact(packed[:length], (2, 9, 8), stream)


def test_no_flipped_bit_gives_other_values():
    values = smooth((2, 9, 8)).astype(np.uint8)
    packed = bytearray(pack_exact(values, stream))
    refused = 0
    for bit in range(8 * len(packed)):
        packed[bit // 8] ^= 1 << bit % 8
        try:
            found = unpack_exact(bytes(packed), values.shape, stream)
        except StreamError:
            refused += 1
        else:
            assert_same(found, values)
        packed[bit // 8] ^= 1 << bit % 8
    assert refused > 8 * len(packed) * 0.9


@pytest.mark.parametrize("shape", [(2, 8, 9), (1, 9, 8), (3, 9, 8), (2, 90, 80)])
def test_images_of_another_shape_are_refused(shape):
    packed = pack_exact(smooth((2, 9, 8)).astype(np.uint8), stream)
    with pytest.raises(StreamError, match="damaged"):
        unpack_exact(packed, shape, stream)


def test_a_model_that_unfolds_to_more_than_any_is_refused():
    packed = pack_exact(smooth((2, 9, 8)).astype(np.uint8), stream)
    bomb = zlib.compress(bytes(1 << 26))
    tracemalloc.start()
    with pytest.raises(StreamError, match="damaged"):
        unpack_exact(len(bomb).to_bytes(4, "little") + packed[4:9] + bomb, (2, 9, 8), stream)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 24


def test_bytes_that_follow_the_models_end_are_refused():
    packed = pack_exact(smooth((2, 9, 8)).astype(np.uint8), stream)
    length = int.from_bytes(packed[:4], "little")
    longer = (length + 4).to_bytes(4, "little") + packed[4 : 9 + length] + b"more" + packed[9 + length :]
    with pytest.raises(StreamError, match="damaged"):
        unpack_exact(longer, (2, 9, 8), stream)


@pytest.mark.parametrize("shape", [(500_000_000, 1, 1), (70_000, 1, 1), (1, 1 << 20, 1), (1, 1 << 16, 1 << 16)])
def test_shapes_that_take_too_much_memory_or_time_are_refused_before_anything_is_made(shape):
    packed = pack_exact(smooth((2, 9, 8)).astype(np.uint8), stream)
    with pytest.raises(StreamError, match="more than a stream of that length may hold"):
        unpack_exact(packed, shape, stream, most_bytes=1 << 27)


def test_too_many_images_for_a_stream_are_refused():
    with pytest.raises(InputError, match="write several"):
        pack_exact(np.zeros((70_000, 1, 1), np.uint8), stream)


def test_the_order_of_values_is_that_of_their_numbers():
    values = np.array([-np.inf, -2.5, -0.0, 0.0, 1e-45, 3.0, np.inf], np.float32)

    assert all(a < b for a, b in pairwise(_ordered(values).tolist()))
