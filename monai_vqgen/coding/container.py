"""A `.vqg` stream: images or the slices of one volume as codes, in chunks that decode each on its own.

::

    header  | 4  b"\\x89VQG"       | 1  version       | 1  levels L      | 1  spatial axes D  | 1  zero
            | 8  autoencoder       | 8  priors        the first bytes of the fingerprints of the weights
            | 4  images            | 4 D  their size in pixels
            | 2  bytes of the conditions | 2  bytes of the geometry | conditions | geometry
            | 4  CRC-32 of all bytes before
    chunk   | 1  mode              | L  shift of each level          | 2  images in it | 4  bytes of its payload
            | 4  CRC-32 of its codes (uint32, coarsest level first)  | payload
    chunk ... until all images are there; then a stream of version 1 ends, and in one of version 2 follow
    exact   | 4  bytes of the values | the values (`exact`)

Integers are unsigned and little-endian. Modes: 0 "model", 1 "anywhere" (`frequencies`). The grids follow from the size
of the images and the weights, so that a stream does not repeat them. The conditions are empty where none is known; the
geometry is empty but for scans (`monai_vqgen.models.streams`). The payload is that of `constriction`'s range coder:
words of 32 bits, levels coarsest first.

A reader knows how much a stream unfolds to before it allocates anything, and checks it against the stream's own length.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np
from torch import Tensor

from monai_vqgen.errors import InputError, StreamError

__all__ = [
    "MODES",
    "Chunk",
    "Header",
    "allowed_bytes",
    "check_stream",
    "codes_checksum",
    "pack_features",
    "pack_stream",
    "unpack_features",
    "unpack_stream",
]

MAGIC, VERSIONS = b"\x89VQG", (1, 2)
MODES = ("model", "anywhere")
_START, _IMAGES, _SECTIONS, _CHECKSUM = (struct.Struct(form) for form in ("<4s4B8s8s", "<I", "<2H", "<I"))
_CHUNK, _LENGTH = struct.Struct("<H2I"), struct.Struct("<I")
KEY_BYTES = 8  # of a fingerprint: enough that no two weights meet by chance
FREE_BYTES, MOST_BYTES = 2**27, 2**32  # of images as float32: any stream may unfold to the first, none to more
MOST_RATIO = 4096  # else to so many times its own length; slices of a head unfold to 100 times
LONGEST_SECTION = 65_535  # bytes; positions of some 10,000 images
LARGEST_CHUNK = 1024  # images; they are decoded together


class Header(NamedTuple):
    """What a stream says before its codes.

    Attributes:
        autoencoder: first bytes of the fingerprint of the weights that made the codes.
        priors: likewise of the priors together; zeros where no chunk needs them.
        images: how many.
        image_size: their pixels, one number an axis.
        levels: of codes.
        conditions: packed features of the priors' conditions; empty where nothing is known.
        geometry: how slices lie in a scan; empty for plain images.
        exact: the values that the images were made of, where they are kept exactly; else empty.
    """

    autoencoder: bytes
    priors: bytes
    images: int
    image_size: tuple[int, ...]
    levels: int
    conditions: bytes = b""
    geometry: bytes = b""
    exact: bytes = b""


class Chunk(NamedTuple):
    """Some consecutive images of a stream.

    Attributes:
        mode: one of `MODES`.
        shifts: of each level's rounding, in "model" mode (`frequencies.PriorFrequencies`); else zeros.
        images: how many.
        checksum: of their codes.
        payload: of the range coder.
    """

    mode: str
    shifts: tuple[int, ...]
    images: int
    checksum: int
    payload: bytes


def codes_checksum(codes: Sequence[Tensor]) -> int:
    """CRC-32 of integer grids, coarsest first."""
    checksum = 0
    for codes_bs in codes:
        checksum = zlib.crc32(codes_bs.cpu().numpy().astype("<u4").tobytes(), checksum)
    return checksum


def _gibibytes(count: int) -> str:
    """A number of bytes; the product of 255 axes, as a header may announce, is more than a float holds."""
    return f"{count / 2**30:.3g}" if count < 1 << 1000 else "over 2^970"


def pack_stream(header: Header, chunks: Sequence[Chunk]) -> bytes:
    """The bytes of a stream.

    Raises:
        InputError: more than a stream may hold.

    Examples:
        >>> header = Header(bytes(8), bytes(8), 1, (16, 16), 1)
        >>> stream = pack_stream(header, [Chunk("anywhere", (0,), 1, 7, b"code")])
        >>> len(stream), unpack_stream(stream)[1][0].payload
        (60, b'code')
    """
    if (unfolded := 4 * header.images * prod(header.image_size)) > MOST_BYTES:
        raise InputError(f"images of {_gibibytes(unfolded)} GiB: a stream takes {MOST_BYTES >> 30} GiB, write several")
    if max(len(header.conditions), len(header.geometry)) > LONGEST_SECTION:
        raise InputError(
            f"conditions of {len(header.conditions)} bytes and a geometry of {len(header.geometry)}: a stream takes "
            f"{LONGEST_SECTION}, write several"
        )
    start = _START.pack(
        MAGIC, VERSIONS[bool(header.exact)], header.levels, len(header.image_size), 0, header.autoencoder, header.priors
    ) + _IMAGES.pack(header.images)
    size = struct.pack(f"<{len(header.image_size)}I", *header.image_size)
    sections = _SECTIONS.pack(len(header.conditions), len(header.geometry)) + header.conditions + header.geometry
    told = start + size + sections
    parts = [told, _CHECKSUM.pack(zlib.crc32(told))]
    for chunk in chunks:
        parts += [bytes([MODES.index(chunk.mode), *chunk.shifts])]
        parts += [_CHUNK.pack(chunk.images, len(chunk.payload), chunk.checksum), chunk.payload]
    if header.exact:
        parts += [_LENGTH.pack(len(header.exact)), header.exact]
    stream = b"".join(parts)
    if unfolded > allowed_bytes(len(stream)):  # blank images, by the thousands: no reader would take it
        raise InputError(f"{header.images} images in a stream of {len(stream)} bytes, which none may be: write several")
    return stream


def allowed_bytes(stream_bytes: int) -> int:
    """What a stream of a length may unfold to."""
    return min(MOST_BYTES, max(FREE_BYTES, MOST_RATIO * stream_bytes))


class _Reader:
    """Takes bytes from the front; a stream that ends too early is an error."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self.at:
            raise StreamError(
                f"the stream is cut off: {len(self._data)} bytes, and at least {self.at + count} belong to it"
            )
        self.at += count
        return self._data[self.at - count : self.at]

    def unpack(self, form: struct.Struct) -> tuple[int, ...]:
        return form.unpack(self.take(form.size))

    @property
    def left(self) -> int:
        return len(self._data) - self.at


def unpack_stream(data: bytes) -> tuple[Header, list[Chunk]]:
    """Header and chunks of a stream, checked as far as can be without the weights.

    Raises:
        InputError: no bytes.
        StreamError: no stream, of a newer version, cut off, damaged, or with images larger than its length allows.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InputError(f"a stream is {type(data).__name__}; give the bytes of a .vqg file")
    reader = _Reader(bytes(data))
    if reader.left < _START.size or data[: len(MAGIC)] != MAGIC:
        raise StreamError("this is no stream of compressed images (.vqg): its first bytes are others")
    _, version, levels, axes, _, autoencoder, priors = _START.unpack(reader.take(_START.size))
    if version not in VERSIONS:
        newer = f"this version of monai_vqgen reads up to {VERSIONS[-1]}: upgrade it"
        why = newer if version > VERSIONS[-1] else "there is none"
        raise StreamError(f"the stream is of format {version}, and {why}")
    (count,) = reader.unpack(_IMAGES)
    image_size = reader.unpack(struct.Struct(f"<{axes}I"))
    lengths = reader.unpack(_SECTIONS)
    conditions, geometry = (reader.take(length) for length in lengths)
    told = data[: reader.at]
    if reader.unpack(_CHECKSUM)[0] != zlib.crc32(told):
        raise StreamError("the stream's header is damaged, by its checksum: copy the file again")
    unfolded = 4 * count * prod(image_size)
    allowed = allowed_bytes(len(data))
    if unfolded > allowed or 0 in (count, levels, axes, *image_size):
        shown = " x ".join(map(str, image_size[:4])) + " x ..." * (axes > 4)
        raise StreamError(
            f"the header announces {count} images of {shown or 'no'} pixels, "
            f"{_gibibytes(unfolded)} GiB: a stream of {len(data)} bytes may hold {_gibibytes(allowed)} GiB"
        )
    header = Header(autoencoder, priors, count, image_size, levels, conditions, geometry)
    chunks = _unpack_chunks(reader, header)
    if version == VERSIONS[-1]:
        header = header._replace(exact=reader.take(reader.unpack(_LENGTH)[0]))
    if reader.left:
        raise StreamError(f"{reader.left} bytes follow the stream's end: copy the file again")
    return header, chunks


def _unpack_chunks(reader: _Reader, header: Header) -> list[Chunk]:
    chunks: list[Chunk] = []
    missing = header.images
    while missing:
        mode, *shifts = reader.take(1 + header.levels)
        count, length, checksum = reader.unpack(_CHUNK)
        if mode >= len(MODES) or not 1 <= count <= min(missing, LARGEST_CHUNK) or length % 4:
            raise StreamError(f"chunk {len(chunks)} of the stream is damaged: copy the file again")
        chunks.append(Chunk(MODES[mode], tuple(shifts), count, checksum, reader.take(length)))
        missing -= count
    return chunks


def check_stream(header: Header, autoencoder: bytes, priors: bytes, *, needs_priors: bool) -> None:
    """Raise StreamError where a stream was made with other weights than those whose fingerprints are given."""
    pairs = [("autoencoder", header.autoencoder, autoencoder)]
    if needs_priors:
        pairs.append(("priors", header.priors, priors))
    for name, theirs, mine in pairs:
        if theirs != mine:
            raise StreamError(
                f"the stream was made with other weights ({name} {theirs.hex()}..., these are {mine.hex()}...): give "
                "the model that compressed it"
            )


def pack_features(features_bf: np.ndarray) -> bytes:
    """Features of conditions in [-1, 1] as steps of 1/32,767, differences along the images, deflated."""
    steps = np.rint(features_bf.astype(np.float64) * 32767).astype("<i2")
    return zlib.compress(np.diff(steps, axis=0, prepend=steps[:1] * 0).T.tobytes(), 9) if steps.any() else b""


def unpack_features(packed: bytes, count: int, features: int) -> np.ndarray:
    """Float64 `(count, features)`; zeros, which stand for unknown conditions, where nothing was packed.

    Raises:
        StreamError: they are damaged, or of another number.
    """
    if not packed:
        return np.zeros((count, features))
    inflating = zlib.decompressobj()
    try:
        raw = inflating.decompress(packed, 2 * count * features + 1)
    except zlib.error as error:
        raise StreamError(f"the stream's conditions are damaged ({error})") from error
    if len(raw) != 2 * count * features:
        raise StreamError(f"the stream's conditions are not {features} features of {count} images")
    steps = np.frombuffer(raw, "<i2").reshape(features, count).T
    return np.cumsum(steps, axis=0, dtype=np.int16) / 32767
