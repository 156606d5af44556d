"""Grids of codes to a stream and back: one walk over positions for both, and each chunk read back as it is written.

Legend of suffixes: b batch, f condition features, k number of codes, n raster positions, s spatial axes.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_vqgen.coding.container import (
    KEY_BYTES,
    LARGEST_CHUNK,
    MODES,
    Chunk,
    Header,
    check_stream,
    codes_checksum,
    pack_features,
    pack_stream,
    unpack_features,
    unpack_stream,
)
from monai_vqgen.coding.frequencies import (
    LARGEST_BOOK,
    SHIFTS,
    AdaptiveFrequencies,
    Frequencies,
    PriorFrequencies,
    fine_steps,
    near_codes,
    spoiled_shifts,
    step_frequencies,
)
from monai_vqgen.errors import CheckpointError, CodesMismatchError, InputError, StreamError
from monai_vqgen.inferers.draws import check_codes, check_priors, one_thread
from monai_vqgen.weights import fingerprint

__all__ = ["CodeCodec", "DecodedStream", "entropy_coder"]

CHUNK_SIZES = {"model": 32, "anywhere": 256}
"""Images: larger batches of a prior gain little time, and each chunk begins to count anew in mode "anywhere"."""

logger = logging.getLogger(__name__)


class DecodedStream(NamedTuple):
    """What a stream holds.

    Attributes:
        codes: integers `(n, *grid)` a level, coarsest first.
        header: size of the images, conditions and geometry as they were packed.
        modes: of the chunks.
        features: float64 `(n, f)` of the conditions, zeros where they are unknown; None for priors without conditions.
    """

    codes: tuple[Tensor, ...]
    header: Header
    modes: tuple[str, ...]
    features: Tensor | None = None


class CodeCodec:
    """Writes grids of codes as a stream, and reads them back exactly.

        codes -> chunks of images -> level by level, position by position: frequencies -> range coder -> bytes

    Both directions take every position in one order and from one function, in batches of a chunk, on one thread. Each
    chunk is decoded right after it was encoded; one that does not come back the same is written in mode "anywhere".

    Args:
        autoencoder: that made the codes.
        priors: one a level, coarsest first; without them only mode "anywhere" is there.

    Raises:
        InputError: the package `constriction` is missing, or the priors do not fit one another.
    """

    def __init__(self, autoencoder: Any, priors: Sequence[Any] = ()) -> None:
        self._coder = _RangeCoder(entropy_coder())
        self._autoencoder, self._near = autoencoder, dict[int, NDArray[np.int64]]()
        self._key = bytes.fromhex(fingerprint(autoencoder))[:KEY_BYTES]
        self._priors: list[Any] = []
        self._priors_key = bytes(KEY_BYTES)
        if priors:
            check_priors(priors)
            self._priors = [copy.deepcopy(prior).cpu().double().eval() for prior in priors]
            together = "".join(fingerprint(prior) for prior in priors)
            self._priors_key = hashlib.sha256(together.encode()).digest()[:KEY_BYTES]

    def encode(
        self,
        codes: Sequence[Tensor],
        image_size: Sequence[int],
        *,
        mode: str | None = None,
        chunk_size: int | None = None,
        features: Tensor | None = None,
        geometry: bytes = b"",
        exact: bytes = b"",
    ) -> bytes:
        """The stream of codes.

        Args:
            codes: integers `(n, *grid)` a level, coarsest first.
            image_size: pixels of the images that they are the codes of.
            mode: "model" or "anywhere"; by default the first where there are priors.
            chunk_size: images coded together, at most 1,024; by default 32 in mode "model", 256 in mode "anywhere".
            features: of the conditions, `(n, f)` in [-1, 1]; None where they are unknown.
            geometry: kept as it is.
            exact: likewise; see `monai_vqgen.coding.exact`.

        Raises:
            InputError: an argument out of range, or codes that do not fit the weights.
            CheckpointError: mode "model" without priors.
        """
        mode = mode or ("model" if self._priors else "anywhere")
        if mode not in MODES:
            raise InputError(f"mode is {mode!r}: give 'model' or 'anywhere'")
        chunk_size = CHUNK_SIZES[mode] if chunk_size is None else chunk_size
        if not 1 <= chunk_size <= LARGEST_CHUNK:
            raise InputError(f"chunk_size is {chunk_size}: give 1 to {LARGEST_CHUNK}")
        if mode == "model" and not self._priors:
            raise CheckpointError("this model has no priors, which mode 'model' codes with: use mode 'anywhere'")
        codes = [codes_bs.cpu().long() for codes_bs in codes]
        self._check_codes(codes, image_size)
        count = len(codes[0])
        packed = b"" if features is None else pack_features(features.cpu().numpy())
        condition_bf = self._condition(packed, count)
        with one_thread(), torch.inference_mode():
            chunks = []
            for first in range(0, count, chunk_size):
                part = slice(first, min(first + chunk_size, count))
                chunks.append(self._encode_chunk([c[part] for c in codes], _cut(condition_bf, part), mode))
        named = bool(packed) or any(chunk.mode == "model" for chunk in chunks)  # conditions are those of the priors
        priors_key = self._priors_key if named else bytes(KEY_BYTES)
        header = Header(self._key, priors_key, count, tuple(image_size), len(codes), packed, geometry, exact)
        return pack_stream(header, chunks)

    def decode(self, stream: bytes) -> DecodedStream:
        """The codes of a stream.

        Raises:
            StreamError: it is damaged, was made with other weights, or does not decode on this machine.
        """
        header, chunks = unpack_stream(stream)
        modes = tuple(chunk.mode for chunk in chunks)
        if header.autoencoder == self._key and "model" in modes and not self._priors:
            raise StreamError(
                "the stream was coded with priors, and this model has none: give the model with its priors"
            )
        check_stream(header, self._key, self._priors_key, needs_priors="model" in modes)
        dims, levels = self._autoencoder.spatial_dims, self._autoencoder.num_levels
        if (len(header.image_size), header.levels) != (dims, levels):
            raise StreamError(
                f"the stream has {header.levels} levels of {len(header.image_size)} axes, not {levels} of {dims}"
            )
        known = "model" in modes or header.priors == self._priors_key
        condition_bf = self._condition(header.conditions, header.images) if known else None
        grids = self._autoencoder.grids(header.image_size)
        first, parts = 0, []
        with one_thread(), torch.inference_mode():
            for number, chunk in enumerate(chunks):
                part = slice(first, first := first + chunk.images)
                codes = self._decode_chunk(chunk, grids, _cut(condition_bf, part))
                if codes_checksum(codes) != chunk.checksum:
                    told = (
                        "on another machine than this, or the stream is damaged" if chunk.mode == "model" else "damaged"
                    )
                    raise StreamError(
                        f"chunk {number} of the stream does not decode to the codes that were written ({told}): "
                        "copy the file again, or compress with mode 'anywhere' for other machines"
                    )
                parts.append(codes)
        codes = tuple(torch.cat(level) for level in zip(*parts, strict=True))
        return DecodedStream(codes, header, modes, condition_bf)

    def _check_codes(self, codes: Sequence[Tensor], image_size: Sequence[int]) -> None:
        device = next(self._autoencoder.parameters()).device
        self._autoencoder.embed([codes_bs[:1].to(device) for codes_bs in codes])
        for level, (codes_bs, size) in enumerate(zip(codes, self._autoencoder.codebook_sizes, strict=True)):
            if int(codes_bs.min()) < 0 or int(codes_bs.max()) >= size:
                raise CodesMismatchError(f"level {level} has codes outside 0..{size - 1}: made by another autoencoder?")
        expected = [tuple(grid) for grid in self._autoencoder.grids(image_size)]
        if [tuple(codes_bs.shape[1:]) for codes_bs in codes] != expected:
            given = [tuple(codes_bs.shape) for codes_bs in codes]
            raise InputError(f"codes of shapes {given}: images of {tuple(image_size)} pixels have grids {expected}")
        if self._priors:
            check_codes(codes, self._priors)

    def _condition(self, packed: bytes, count: int) -> Tensor | None:
        """The priors' condition as a reader finds it."""
        dim = max((prior.condition_dim for prior in self._priors), default=0)
        return torch.from_numpy(unpack_features(packed, count, dim)) if dim else None

    def _encode_chunk(self, codes: Sequence[Tensor], condition_bf: Tensor | None, mode: str) -> Chunk:
        checksum, grids, count = codes_checksum(codes), [c.shape[1:] for c in codes], len(codes[0])
        encoder = self._coder.encoder()
        if mode == "anywhere":
            for level, codes_bs in enumerate(codes):
                self._write(self._adaptive(level, codes[:level], codes_bs.shape), codes_bs.reshape(-1, 1), encoder)
            chunk = Chunk(mode, (0,) * len(codes), count, checksum, self._coder.bytes_of(encoder))
            if not self._comes_back(chunk, grids, None):
                raise StreamError(f"{count} images do not decode to what was written: report it, with the weights")
            return chunk
        shifts = [self._write_level(level, codes, condition_bf, encoder) for level in range(len(codes))]
        chunk = Chunk(mode, tuple(shift or 0 for shift in shifts), count, checksum, self._coder.bytes_of(encoder))
        if None not in shifts and self._comes_back(chunk, grids, condition_bf):
            return chunk
        if (largest := max(self._autoencoder.codebook_sizes)) > LARGEST_BOOK:
            raise InputError(
                f"{count} images do not decode here to what was written, and a codebook of {largest} codes is "
                f"too large for mode 'anywhere' ({LARGEST_BOOK}): give a smaller chunk_size"
            )
        logger.warning("a chunk of %d images did not decode to what was written: it is in mode 'anywhere'", count)
        return self._encode_chunk(codes, condition_bf, "anywhere")

    def _comes_back(self, chunk: Chunk, grids: Sequence[Sequence[int]], condition_bf: Tensor | None) -> bool:
        try:
            return codes_checksum(self._decode_chunk(chunk, grids, condition_bf)) == chunk.checksum
        except StreamError:
            return False

    def _write_level(
        self, level: int, codes: Sequence[Tensor], condition_bf: Tensor | None, encoder: Any
    ) -> int | None:
        """Write a level with its prior; returns the shift, or None where each one has a logit at an edge."""
        codes_nb = codes[level].flatten(1).t().numpy().astype(np.int32)
        steps = self._prior(level, codes[:level], codes[level].shape, condition_bf)
        fine, spoiled = [], set[int]()
        for codes_b in codes_nb:
            logits_bk = steps.logits()
            fine.append(fine_steps(logits_bk))
            spoiled |= spoiled_shifts(logits_bk)
            steps.push(codes_b)
        shift = next((shift for shift in range(SHIFTS) if shift not in spoiled), None)
        for codes_b, fine_bk in zip(codes_nb, fine, strict=True):
            self._coder.encode(encoder, codes_b, step_frequencies(fine_bk, shift or 0))
        return shift

    def _write(self, frequencies: Frequencies, codes_nb: Tensor, encoder: Any) -> None:
        for codes_b in codes_nb.numpy().astype(np.int32):
            self._coder.encode(encoder, codes_b, frequencies.next())
            frequencies.push(codes_b)

    def _decode_chunk(
        self, chunk: Chunk, grids: Sequence[Sequence[int]], condition_bf: Tensor | None
    ) -> tuple[Tensor, ...]:
        decoder, codes = self._coder.decoder(chunk.payload), list[Tensor]()
        for level, grid in enumerate(grids):
            shape = (chunk.images, *grid)
            frequencies: Frequencies
            if chunk.mode == "model":
                frequencies = self._prior(level, codes, shape, condition_bf, chunk.shifts[level])
                read = self._read(frequencies, int(np.prod(grid)), decoder).t().reshape(shape)
            else:
                frequencies = self._adaptive(level, codes, shape)
                read = self._read(frequencies, int(np.prod(shape)), decoder).reshape(shape)
            codes.append(read.contiguous())
        return tuple(codes)

    def _read(self, frequencies: Frequencies, positions: int, decoder: Any) -> Tensor:
        codes = []
        for _ in range(positions):
            codes.append(self._coder.decode(decoder, frequencies.next()))
            frequencies.push(codes[-1])
        return torch.from_numpy(np.stack(codes).astype(np.int64))

    def _prior(
        self,
        level: int,
        coarser: Sequence[Tensor],
        shape: Sequence[int],
        condition_bf: Tensor | None,
        shift: int = 0,
    ) -> PriorFrequencies:
        return PriorFrequencies(
            self._priors[level],
            shape[1:],
            batch_size=shape[0],
            coarser=coarser,
            condition=condition_bf,
            shift=shift,
        )

    def _adaptive(self, level: int, coarser: Sequence[Tensor], shape: Sequence[int]) -> AdaptiveFrequencies:
        if level not in self._near:
            self._near[level] = near_codes(self._autoencoder.codebooks()[level])
        parents = coarser[-1].numpy() if coarser else None
        return AdaptiveFrequencies(self._near[level], shape[1:], images=shape[0], coarser=parents)


def _cut(condition_bf: Tensor | None, part: slice) -> Tensor | None:
    return None if condition_bf is None else condition_bf[part]


class _RangeCoder:
    """`constriction`'s range coder, one row of frequencies a symbol."""

    def __init__(self, stream: Any) -> None:
        self._queue, self._family = stream.queue, stream.model.Categorical(perfect=False)

    def encoder(self) -> Any:
        return self._queue.RangeEncoder()

    def encode(self, encoder: Any, codes_b: NDArray[np.int32], frequencies_bk: NDArray[np.float64]) -> None:
        encoder.encode(codes_b, self._family, frequencies_bk)

    def bytes_of(self, encoder: Any) -> bytes:
        words: NDArray[np.uint32] = encoder.get_compressed()
        return words.astype("<u4").tobytes()

    def decoder(self, payload: bytes) -> Any:
        return self._queue.RangeDecoder(np.frombuffer(payload, "<u4").astype(np.uint32))

    def decode(self, decoder: Any, frequencies_bk: NDArray[np.float64]) -> NDArray[np.int32]:
        try:
            codes_b: NDArray[np.int32] = decoder.decode(self._family, frequencies_bk)
        except AssertionError as error:  # words that no encoder writes
            raise StreamError(f"the stream does not decode ({error}): copy the file again") from error
        return codes_b


def entropy_coder() -> Any:
    """`constriction.stream`.

    Raises:
        InputError: the package is missing.
    """
    try:
        from constriction import stream
    except ImportError as error:
        raise InputError(
            "compressing needs the package constriction: install it with `pip install 'monai-vqgen[bitstream]'`"
        ) from error
    return stream
