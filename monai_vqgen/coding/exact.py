"""Stored values brought back exactly: each pixel predicted from those before it, and the error coded.

::

    values -> ranks among the values that occur -> prediction from known neighbors -> error -> range coder

Known neighbors are those above and to the left and, in the image before (the next slice of a volume, another channel),
all around. A linear predictor for each class of local activity is fitted to the images by least squares; an error is
coded with the histogram of its context, which says how much varies nearby. The bytes hold predictors and histograms.
After the fit there are only whole numbers, and what the range coder makes of them, so that any machine reads what
another wrote.

Predictors: Wu, Barthel and Zhang, "Piecewise 2D autoregression for predictive image coding" (ICIP 1998). Contexts of
errors: Wu and Memon, "Context-based, adaptive, lossless image coding" (IEEE Transactions on Communications 45, 1997),
section IV.

The bytes, little-endian::

    4  length of the model | 1  type of the values | 4  CRC-32 of the values | model | payload of the range coder
    model, deflated: 4  number of values V | 1  classes P | 1  contexts C | V times the type's size  their differences
                     4 P  thresholds of the classes   | 2 P F  weights of F features, in 4,096ths
                     4 C  thresholds of the contexts  | C  low bits of an error that are not modeled
                     64 C  histograms: 8 log2(count + 1)

What precedes these bytes in a stream is told in `monai_vqgen.models.streams`.

Legend of suffixes: c contexts, f features, k tokens, m pixels, n images, p classes, v values.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_vqgen.coding.pixel_stack import FEATURES, PixelStack, Whole, local_activity, wave_count, working_bytes
from monai_vqgen.errors import InputError, StreamError

__all__ = ["pack_exact", "unpack_exact"]

FRACTION = 4096.0  # of a weight
CLASSES, CONTEXTS, PIXELS_A_CONTEXT = 8, 24, 4096
FITTED = 1 << 21  # pixels that predictors are fitted to, about
TOKENS, WIDEST = 64, 31  # errors of -31 to 31, in units of their context, and a token for all others
RAW = 1 << 18  # what such an error may be
MOST_VALUES = 1 << 16
MOST_MODEL = 1 << 20  # bytes
MOST_WAVES = 1 << 18  # some hundred microseconds each
TYPES = tuple(np.dtype(f"<{name}") for name in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"))
_HEAD, _COUNTS = struct.Struct("<IBI"), struct.Struct("<I2B")
_OCTAVE = np.array([1024, 1117, 1218, 1328, 1448, 1579, 1722, 1878])  # 2^(i / 8), in 1,024ths


class _Model(NamedTuple):
    """What the decoder is told."""

    ordered_v: NDArray[np.uint64]
    activities_p: NDArray[np.uint32]
    weights_pf: NDArray[np.int16]
    spreads_c: NDArray[np.uint32]
    shifts_c: NDArray[np.uint8]
    logarithms_ck: NDArray[np.uint8]


def pack_exact(values_nhw: NDArray[Any], stream: Any) -> bytes:
    """The bytes of a stack of images.

    Args:
        values_nhw: numbers of any type but half precision and complex, of at most 65,536 different values.
        stream: `constriction.stream`.

    Raises:
        InputError: another type, more values, or more images than a stream takes.
    """
    values_nhw = np.ascontiguousarray(values_nhw)
    if wave_count(values_nhw.shape) > MOST_WAVES:
        raise InputError(f"{len(values_nhw)} images are more than are kept exactly in one stream: write several")
    plain = values_nhw.dtype.newbyteorder("<")
    if plain not in TYPES:
        raise InputError(f"values of type {values_nhw.dtype} are not kept exactly: give integers or float32")
    ordered_v, ranks = np.unique(_ordered(values_nhw.astype(plain, copy=False)), return_inverse=True)
    if len(ordered_v) > MOST_VALUES:
        raise InputError(
            f"{len(ordered_v):,} different values, of which {MOST_VALUES:,} are kept exactly: save the scan as 16-bit "
            "integers, or compress it without lossless"
        )
    stack = PixelStack(values_nhw.shape)
    stack.fill(ranks.reshape(values_nhw.shape))
    activities_p, weights_pf = _fitted(stack)
    model = _with_histograms(stack, ordered_v, activities_p, weights_pf)
    payload = _encoded(stack, model, stream)
    packed, checksum = _pack_model(model, plain), zlib.crc32(values_nhw.astype(plain, copy=False).tobytes())
    return _HEAD.pack(len(packed), TYPES.index(plain), checksum) + packed + payload


def unpack_exact(data: bytes, shape_nhw: Sequence[int], stream: Any, *, most_bytes: int = 1 << 34) -> NDArray[Any]:
    """The values `(n, h, w)`, in the type that they were given in.

    Args:
        data: of `pack_exact`.
        shape_nhw: of the values.
        stream: `constriction.stream`.
        most_bytes: that decoding may take.

    Raises:
        StreamError: damaged, of images of another shape, or too large.
    """
    if wave_count(shape_nhw) > MOST_WAVES or working_bytes(shape_nhw) > most_bytes:
        raise StreamError(f"exact values of shape {tuple(shape_nhw)} are more than a stream of that length may hold")
    damaged = StreamError("the exact values of the stream are damaged: copy the file again")
    if len(data) < _HEAD.size:
        raise damaged
    length, kind, checksum = _HEAD.unpack_from(data)
    payload = data[_HEAD.size + length :]
    if kind >= len(TYPES) or length > len(data) - _HEAD.size or len(payload) % 4:
        raise damaged
    model = _unpack_model(data[_HEAD.size : _HEAD.size + length], TYPES[kind], damaged)
    stack = PixelStack(shape_nhw)
    try:
        _decode(stack, model, payload, stream)
    except (AssertionError, ValueError) as error:  # words that no encoder writes
        raise damaged from error
    values_nhw = _unordered(model.ordered_v[stack.inside()], TYPES[kind])
    if zlib.crc32(values_nhw.tobytes()) != checksum:
        raise damaged
    return values_nhw


def _ordered(values: NDArray[Any]) -> NDArray[np.uint64]:
    """Unsigned numbers in the order of values of any type; different bits give different numbers."""
    bits = values.view(f"<u{values.dtype.itemsize}")
    top = bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
    if values.dtype.kind == "u":
        return bits.astype(np.uint64)
    ordered = bits ^ top if values.dtype.kind == "i" else np.where(bits & top, ~bits, bits | top)
    return ordered.astype(np.uint64)


def _unordered(ordered: NDArray[np.uint64], dtype: np.dtype[Any]) -> NDArray[Any]:
    bits = ordered.astype(f"<u{dtype.itemsize}")
    top = bits.dtype.type(1 << (8 * dtype.itemsize - 1))
    if dtype.kind == "i":
        bits = bits ^ top
    elif dtype.kind == "f":
        bits = np.where(bits & top, bits ^ top, ~bits)
    return bits.view(dtype)


def _predicted(known_mf: Whole, activity_m: Whole, model: Any) -> Whole:
    sums_mp = known_mf @ model.weights_pf.T.astype(np.float64)  # below 2^37, so exact
    classes_m = np.searchsorted(model.activities_p, activity_m, side="right")
    chosen_m = np.take_along_axis(sums_mp, np.maximum(classes_m - 1, 0)[:, None], 1)[:, 0]
    predicted_m: Whole = np.floor((chosen_m + FRACTION / 2) / FRACTION)
    return predicted_m


def _thresholds(sizes_m: Whole, most: int) -> NDArray[np.uint32]:
    """From 0, then so that as many of the sizes above 0 lie between each two."""
    above = sizes_m[sizes_m > 0]
    between = np.quantile(above, np.linspace(0, 1, most)[1:-1]) if len(above) else np.zeros(0)
    return np.unique([0.0, 1.0, *np.ceil(between)]).astype("<u4")


def _fitted(stack: PixelStack) -> tuple[NDArray[np.uint32], NDArray[np.int16]]:
    """Thresholds of the classes, and the weights that fit best in each."""
    total = int(np.prod(stack.shape))
    every, most = 1 + total // FITTED, min(CLASSES, 2 + total // (4 * PIXELS_A_CONTEXT))
    found = [(stack.features(places_m[::every]), stack.ranks[places_m[::every]]) for places_m in stack.images()]
    sizes = [local_activity(known_mf) for known_mf, _ in found]
    activities_p = _thresholds(np.concatenate(sizes), most)
    grams_pff = np.zeros((len(activities_p), FEATURES, FEATURES))
    sums_pf = np.zeros((len(activities_p), FEATURES))
    for (known_mf, ranks_m), activity_m in zip(found, sizes, strict=True):
        classes_m = np.searchsorted(activities_p, activity_m, side="right") - 1
        for chosen in np.unique(classes_m):
            mine_mf = known_mf[classes_m == chosen]
            grams_pff[chosen] += mine_mf.T @ mine_mf
            sums_pf[chosen] += mine_mf.T @ ranks_m[classes_m == chosen]
    grams_pff += np.eye(FEATURES) * (1 + 1e-6 * np.trace(grams_pff, axis1=1, axis2=2)[:, None, None] / FEATURES)
    weights_pf = np.linalg.solve(grams_pff, sums_pf[..., None])[..., 0]
    return activities_p, np.clip(np.rint(weights_pf * FRACTION), -32768, 32767).astype("<i2")


def _with_histograms(
    stack: PixelStack, ordered_v: NDArray[np.uint64], activities_p: NDArray[np.uint32], weights_pf: NDArray[np.int16]
) -> _Model:
    """The whole model; the stack's errors become those of its predictors."""
    model = _Model(ordered_v, activities_p, weights_pf, *[np.zeros(1, "<u4")] * 3)
    activities = []
    for places_m in stack.images():
        known_mf = stack.features(places_m)
        activities.append(local_activity(known_mf))
        predicted_m = _clipped(_predicted(known_mf, activities[-1], model), ordered_v)
        stack.errors[places_m] = abs(stack.ranks[places_m] - predicted_m)
    spreads = [stack.spread(at, activity) for at, activity in zip(stack.images(), activities, strict=True)]
    most = min(CONTEXTS, 2 + int(np.prod(stack.shape)) // PIXELS_A_CONTEXT)
    spreads_c = _thresholds(np.concatenate(spreads), most)
    contexts = np.searchsorted(spreads_c, np.concatenate(spreads), side="right") - 1
    sizes = np.concatenate([stack.errors[places_m] for places_m in stack.images()])
    counts_c = np.bincount(contexts, minlength=len(spreads_c))
    means_c = np.bincount(contexts, sizes, len(spreads_c)) / np.maximum(counts_c, 1)
    shifts_c = np.ceil(np.log2(np.maximum(8 * means_c / WIDEST, 1))).astype(np.uint8)
    model = model._replace(spreads_c=spreads_c, shifts_c=shifts_c)
    counts_ck = np.zeros((len(spreads_c), TOKENS))
    for places_m, spread_m in zip(stack.images(), spreads, strict=True):
        known_mf = stack.features(places_m)
        predicted_m = _clipped(_predicted(known_mf, local_activity(known_mf), model), ordered_v)
        contexts_m = np.searchsorted(spreads_c, spread_m, side="right") - 1
        errors_m = (stack.ranks[places_m] - predicted_m).astype(np.int64)
        np.add.at(counts_ck, (contexts_m, _tokens(errors_m, shifts_c[contexts_m])), 1)
    return model._replace(logarithms_ck=np.rint(8 * np.log2(counts_ck + 1)).astype(np.uint8))


def _clipped(predicted_m: Whole, ordered_v: NDArray[np.uint64]) -> Whole:
    clipped: Whole = np.clip(predicted_m, 0, len(ordered_v) - 1)
    return clipped


def _tokens(errors_m: NDArray[np.int64], shifts_m: Any) -> NDArray[np.int32]:
    units_m = errors_m >> shifts_m
    return np.where(abs(units_m) <= WIDEST, units_m + WIDEST, TOKENS - 1).astype(np.int32)


class _Coder:
    """The families of a model's contexts, for encoder and decoder."""

    def __init__(self, model: _Model, stream: Any) -> None:
        logarithms_ck = model.logarithms_ck.astype(np.int64)
        frequencies_ck = (_OCTAVE[logarithms_ck & 7] << (logarithms_ck >> 3)) - 1024 + (logarithms_ck == 0)
        categorical, uniform = stream.model.Categorical, stream.model.Uniform
        self.tokens = [categorical(row.astype(np.float64), perfect=False) for row in frequencies_ck]
        self.rests = [uniform(1 << int(shift)) if shift else None for shift in model.shifts_c]
        self.raw = uniform(RAW)


def _runs(contexts_m: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each context of a wave and which of the wave's pixels are its own."""
    order = np.argsort(contexts_m, kind="stable")
    found, firsts = np.unique(contexts_m[order], return_index=True)
    yield from zip(found.tolist(), np.split(order, firsts[1:]), strict=True)


def _wave(stack: PixelStack, model: _Model, places_m: NDArray[np.int64]) -> tuple[Whole, NDArray[np.int64]]:
    """Predictions and contexts of a wave's pixels, from what earlier waves hold."""
    known_mf = stack.features(places_m)
    activity_m = local_activity(known_mf)
    predicted_m = _clipped(_predicted(known_mf, activity_m, model), model.ordered_v)
    return predicted_m, np.searchsorted(model.spreads_c, stack.spread(places_m, activity_m), side="right") - 1


def _encoded(stack: PixelStack, model: _Model, stream: Any) -> bytes:
    coder, encoder = _Coder(model, stream), stream.queue.RangeEncoder()
    for places_m in stack.waves():
        predicted_m, contexts_m = _wave(stack, model, places_m)
        errors_m = (stack.ranks[places_m] - predicted_m).astype(np.int64)
        for context, mine in _runs(contexts_m):
            tokens = _tokens(errors_m[mine], model.shifts_c[context])
            encoder.encode(tokens, coder.tokens[context])
            known = tokens < TOKENS - 1
            if (rest := coder.rests[context]) is not None and known.any():
                kept = errors_m[mine][known] & ((1 << int(model.shifts_c[context])) - 1)
                encoder.encode(kept.astype(np.int32), rest)
            if not known.all():
                encoder.encode((errors_m[mine][~known] + RAW // 2).astype(np.int32), coder.raw)
    words: NDArray[np.uint32] = encoder.get_compressed()
    return words.astype("<u4").tobytes()


def _decode(stack: PixelStack, model: _Model, payload: bytes, stream: Any) -> None:
    coder = _Coder(model, stream)
    decoder = stream.queue.RangeDecoder(np.frombuffer(payload, "<u4").astype(np.uint32))
    for places_m in stack.waves():
        predicted_m, contexts_m = _wave(stack, model, places_m)
        errors_m = np.empty(len(places_m), np.int64)
        for context, mine in _runs(contexts_m):
            tokens = decoder.decode(coder.tokens[context], len(mine))
            errors = (tokens.astype(np.int64) - WIDEST) << int(model.shifts_c[context])
            known = tokens < TOKENS - 1
            if (rest := coder.rests[context]) is not None and known.any():
                errors[known] += decoder.decode(rest, int(known.sum()))
            if not known.all():
                errors[~known] = decoder.decode(coder.raw, int((~known).sum())).astype(np.int64) - RAW // 2
            errors_m[mine] = errors
        ranks_m = predicted_m + errors_m
        if ranks_m.min() < 0 or ranks_m.max() >= len(model.ordered_v):
            raise ValueError("a rank of no value")
        stack.ranks[places_m], stack.errors[places_m] = ranks_m, abs(errors_m)


def _pack_model(model: _Model, dtype: np.dtype[Any]) -> bytes:
    steps = np.diff(model.ordered_v, prepend=np.uint64(0)).astype(f"<u{dtype.itemsize}")
    counts = _COUNTS.pack(len(model.ordered_v), len(model.activities_p), len(model.spreads_c))
    return zlib.compress(counts + b"".join(part.tobytes() for part in (steps, *model[1:])), 9)


def _unpack_model(packed: bytes, dtype: np.dtype[Any], damaged: StreamError) -> _Model:
    try:
        inflating = zlib.decompressobj()
        raw = inflating.decompress(packed, MOST_MODEL)
        values, classes, contexts = _COUNTS.unpack_from(raw)
    except (zlib.error, struct.error) as error:
        raise damaged from error
    forms: list[tuple[str, tuple[int, ...]]] = [(f"<u{dtype.itemsize}", (values,))]
    forms += [("<u4", (classes,)), ("<i2", (classes, FEATURES))]
    forms += [("<u4", (contexts,)), ("<u1", (contexts,)), ("<u1", (contexts, TOKENS))]
    sizes = [int(np.dtype(form).itemsize * np.prod(shape)) for form, shape in forms]
    whole = inflating.eof and not inflating.unused_data and len(raw) == _COUNTS.size + sum(sizes)
    if 0 in (values, classes, contexts) or values > MOST_VALUES or not whole:
        raise damaged
    parts, first = [], _COUNTS.size
    for (form, shape), size in zip(forms, sizes, strict=True):
        parts.append(np.frombuffer(raw[first : first + size], form).reshape(shape))
        first += size
    parts[0] = np.cumsum(parts[0].astype(np.uint64), dtype=np.uint64)
    if parts[4].max() > 12 or parts[5].max() > 8 * 40:
        raise damaged
    return _Model(*parts)
