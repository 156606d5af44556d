"""Codes come back exactly, in both modes, whatever the batch and the threads; else there is an error."""

from __future__ import annotations

import copy
import logging
import math
import sys

import numpy as np
import pytest
import torch
from factories import POSITIONS, tiny_autoencoder, tiny_model

from monai_vqgen.coding import CodeCodec, codec, unpack_stream
from monai_vqgen.errors import CheckpointError, CodesMismatchError, InputError, StreamError

CASES = {"one level": (2, (4,)), "two levels": (2, (8, 4)), "three levels": (2, (8, 4, 2)), "volumes": (3, (8, 4))}


def made(dims: int, strides: tuple[int, ...], **options):
    network = tiny_autoencoder(8, strides=strides, spatial_dims=dims)
    return tiny_model([16] * dims, autoencoder=network, spatial_dims=dims, **options)


def random_codes(model, count: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(8, (count, *grid), generator=generator) for grid in model.grids]


def same(mine, theirs) -> bool:
    return all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("mode", ["model", "anywhere"])
@pytest.mark.parametrize(("dims", "strides"), CASES.values(), ids=CASES)
def test_codes_of_any_levels_and_dimensions_come_back(dims, strides, mode):
    model = made(dims, strides)
    codes = random_codes(model, 5)
    coder = CodeCodec(model.autoencoder, model.priors)
    stream = coder.encode(codes, [16] * dims, mode=mode, chunk_size=2)
    found = coder.decode(stream)
    assert same(found.codes, codes)
    assert found.modes == (mode,) * 3
    assert [chunk.images for chunk in unpack_stream(stream)[1]] == [2, 2, 1]


def test_a_stream_of_the_model_takes_the_bits_that_the_prior_says(tmp_path):
    model = made(2, (8, 4))
    codes = random_codes(model, 64)
    bits = -sum(float(nats.double().sum()) for nats in model.log_prob(codes)) / math.log(2)
    stream = CodeCodec(model.autoencoder, model.priors).encode(codes, (16, 16), chunk_size=64)
    payload = sum(8 * len(chunk.payload) for chunk in unpack_stream(stream)[1])
    assert bits < payload < 1.001 * bits + 64


def test_conditions_are_kept_and_change_what_is_expected():
    model = made(2, (8, 4), condition=POSITIONS)
    codes, coder = random_codes(model, 3), CodeCodec(model.autoencoder, model.priors)
    features = POSITIONS.encode([{"position_mm": mm} for mm in (50.0, 60.0, 70.0)])
    known, unknown = (coder.encode(codes, (16, 16), features=given) for given in (features, torch.zeros_like(features)))
    assert same(coder.decode(known).codes, codes)
    assert same(coder.decode(unknown).codes, codes)
    np.testing.assert_allclose(coder.decode(known).features, features, atol=2e-5)
    anywhere = coder.decode(coder.encode(codes, (16, 16), mode="anywhere", features=features))
    assert torch.equal(anywhere.features, coder.decode(known).features)
    payloads = [unpack_stream(stream)[1][0].payload for stream in (known, unknown)]
    assert payloads[0] != payloads[1]


def test_another_number_of_threads_and_another_batch_give_the_same_bytes():
    model = made(2, (8, 4))
    codes, coder = random_codes(model, 6), CodeCodec(model.autoencoder, model.priors)
    threads = torch.get_num_threads()
    streams = []
    for count in (1, 3):
        torch.set_num_threads(count)
        streams.append(coder.encode(codes, (16, 16)))
        assert torch.get_num_threads() == count
    torch.set_num_threads(threads)
    assert streams[0] == streams[1]
    # Each image's frequencies are those that it has alone, so that one of a batch is expected as in its own batch.
    alone = [coder._prior(0, (), (1, 2, 2), None) for _ in range(6)]
    together = coder._prior(0, (), (6, 2, 2), None)
    for position in range(4):
        found = together.next()
        for image, steps in enumerate(alone):
            np.testing.assert_array_equal(steps.next()[0], found[image])
            steps.push(codes[0].flatten(1)[image : image + 1, position].numpy().astype(np.int32))
        together.push(codes[0].flatten(1)[:, position].numpy().astype(np.int32))


def disturbed(model, size: float):
    """The model as a machine sees it whose sums are a little different."""
    other = copy.deepcopy(model.priors)
    coder = CodeCodec(model.autoencoder, model.priors)
    coder._priors = [prior.double() for prior in other]
    for prior in coder._priors:
        bias = prior.head[-1].bias.data
        bias += size * torch.linspace(-1, 1, len(bias), dtype=torch.float64)
    return coder


def test_logits_that_differ_as_between_machines_decode_and_others_are_an_error_and_never_other_codes():
    model = made(2, (8, 4))
    codes = random_codes(model, 64)
    stream = CodeCodec(model.autoencoder, model.priors).encode(codes, (16, 16))
    assert same(disturbed(model, 1e-11).decode(stream).codes, codes)
    with pytest.raises(StreamError, match="on another machine than this"):
        disturbed(model, 1e-2).decode(stream)
    anywhere = CodeCodec(model.autoencoder, model.priors).encode(codes, (16, 16), mode="anywhere")
    assert same(disturbed(model, 1e-2).decode(anywhere).codes, codes)


def test_a_chunk_that_does_not_come_back_is_written_in_the_other_mode(monkeypatch, caplog):
    model = made(2, (8, 4))
    codes, coder = random_codes(model, 4), CodeCodec(model.autoencoder, model.priors)
    read, calls = codec.CodeCodec._decode_chunk, []

    def wrong_once(self, chunk, *given):
        found = read(self, chunk, *given)
        calls.append(chunk.mode)
        return tuple(grid.roll(1) for grid in found) if len(calls) == 1 else found

    monkeypatch.setattr(codec.CodeCodec, "_decode_chunk", wrong_once)
    with caplog.at_level(logging.WARNING):
        stream = coder.encode(codes, (16, 16), chunk_size=2)
    assert calls == ["model", "anywhere", "model"]
    assert "did not decode to what was written" in caplog.text
    assert coder.decode(stream).modes == ("anywhere", "model")
    assert same(coder.decode(stream).codes, codes)


def test_a_chunk_with_a_logit_at_each_edge_is_written_in_the_other_mode(monkeypatch):
    model = made(2, (4,))
    codes, coder = random_codes(model, 2), CodeCodec(model.autoencoder, model.priors)
    monkeypatch.setattr(codec, "spoiled_shifts", lambda logits: set(range(8)))
    assert coder.decode(coder.encode(codes, (16, 16))).modes == ("anywhere",)
    monkeypatch.setattr(codec, "spoiled_shifts", lambda logits: {0, 1, 2, 4})
    (chunk,) = unpack_stream(coder.encode(codes, (16, 16)))[1]
    assert (chunk.mode, chunk.shifts) == ("model", (3,))


def test_other_weights_are_refused_and_say_which():
    model, other = made(2, (8, 4)), made(2, (8, 4))
    codes = random_codes(model, 2)
    stream = CodeCodec(model.autoencoder, model.priors).encode(codes, (16, 16))
    with torch.no_grad():
        next(other.priors[1].parameters()).add_(1)
    with pytest.raises(StreamError, match=r"other weights \(priors "):
        CodeCodec(other.autoencoder, other.priors).decode(stream)
    anywhere = CodeCodec(model.autoencoder).encode(codes, (16, 16))
    assert same(CodeCodec(other.autoencoder, other.priors).decode(anywhere).codes, codes), "needs no prior"
    with torch.no_grad():
        next(other.autoencoder.parameters()).add_(1)
    with pytest.raises(StreamError, match=r"other weights \(autoencoder "):
        CodeCodec(other.autoencoder, other.priors).decode(anywhere)
    with pytest.raises(StreamError, match="this model has none"):
        CodeCodec(model.autoencoder).decode(stream)


def test_words_that_no_encoder_writes_are_an_error_of_ours(monkeypatch):
    model = made(2, (8, 4))
    codes, coder = random_codes(model, 2), CodeCodec(model.autoencoder, model.priors)
    stream = coder.encode(codes, (16, 16))

    class Refusing:
        def decode(self, *_):
            raise AssertionError("invalid for the employed entropy model")

    monkeypatch.setattr(coder._coder, "decoder", lambda payload: Refusing())
    with pytest.raises(StreamError, match="invalid for the employed entropy model"):
        coder.decode(stream)


def test_wrong_arguments_are_refused():
    model = made(2, (8, 4))
    codes, coder = random_codes(model, 2), CodeCodec(model.autoencoder, model.priors)
    with pytest.raises(InputError, match="mode is 'fast'"):
        coder.encode(codes, (16, 16), mode="fast")
    with pytest.raises(InputError, match="chunk_size is 0"):
        coder.encode(codes, (16, 16), chunk_size=0)
    with pytest.raises(InputError, match=r"images of \(32, 16\) pixels have grids"):
        coder.encode(codes, (32, 16))
    with pytest.raises(CodesMismatchError, match=r"level 1 has codes outside 0\.\.7"):
        CodeCodec(model.autoencoder).encode([codes[0], codes[1] + torch.tensor([0, 8])[:, None, None]], (16, 16))
    with pytest.raises(CheckpointError, match="no priors"):
        CodeCodec(model.autoencoder).encode(codes, (16, 16), mode="model")


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    model = made(2, (8, 4))
    with pytest.raises(InputError, match=r"pip install 'monai-vqgen\[bitstream\]'"):
        CodeCodec(model.autoencoder, model.priors)
