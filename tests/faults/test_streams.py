"""Compressed streams that were cut or changed give an error of ours or the right codes, never other images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from factories import POSITIONS, tiny_model

from monai_vqgen.coding import CodeCodec
from monai_vqgen.errors import StreamError
from monai_vqgen.models import compress_scan, decompress_scan


@pytest.fixture(params=["model", "anywhere"])
def made(request):
    """A model, a stream of three chunks with all its parts, and what it holds."""
    model = tiny_model(condition=POSITIONS)
    axes = np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in (16, 16, 9)), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    volume = torch.from_numpy(np.where(radius < 1, 1 + np.cos(9 * radius), 0).astype(np.float32))
    stream = compress_scan(model, volume, mode=request.param, chunk_size=3, pixel_mm=1.0, condition={"position_mm": 60})
    return model, stream, decompress_scan(model, stream)


def test_every_cut_is_refused(made):
    model, stream, _ = made
    codec = CodeCodec(model.autoencoder, model.priors)
    for length in range(len(stream)):
        with pytest.raises(StreamError, match=r"cut off|no stream"):
            codec.decode(stream[:length])


def test_three_hundred_flipped_bits_are_refused_or_give_the_right_codes(made):
    model, stream, volume = made
    codec = CodeCodec(model.autoencoder, model.priors)
    codes, refused = codec.decode(stream).codes, 0
    generator = np.random.default_rng(0)
    for bit in generator.choice(8 * len(stream), 300, replace=False).tolist():
        changed = bytearray(stream)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            found = codec.decode(bytes(changed)).codes
        except StreamError:
            refused += 1
        else:
            assert all(torch.equal(a, b) for a, b in zip(found, codes, strict=True)), bit
            assert torch.equal(decompress_scan(model, bytes(changed)), volume), bit
    assert refused > 250


def test_noise_in_place_of_a_stream_or_of_its_end_is_refused(made):
    model, stream, _ = made
    codec, generator = CodeCodec(model.autoencoder, model.priors), np.random.default_rng(1)
    for _ in range(100):
        kept = int(generator.integers(0, len(stream) - 8))
        with pytest.raises(StreamError):
            codec.decode(stream[:kept] + generator.bytes(len(stream) - kept))
