"""What a compressed stream takes and keeps: rate, exactness, time, also lossless, and other codecs at equal rate.

`python -m tools bitstream --slices SLICES` goes through the test subjects, one stream a subject with its positions, and
writes `bitstream.json`. Seconds are those of the process on one thread, without loading; bits count the whole stream.
"""

from __future__ import annotations

import contextlib
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from monai_vqgen.coding import CodeCodec
from monai_vqgen.coding.codec import entropy_coder
from monai_vqgen.coding.exact import pack_exact, unpack_exact
from monai_vqgen.data import load_datalist
from monai_vqgen.engines.conditions import fitted_conditions
from monai_vqgen.files import write_json
from monai_vqgen.metrics.codecs import CODECS, at_rate, codec_curves
from monai_vqgen.metrics.reconstruction import mean_scores, reconstruction_scores
from monai_vqgen.models import TrainedModel
from monai_vqgen.transforms import LoadSlice

__all__ = ["measure_bitstream"]

T = TypeVar("T")


def measure_bitstream(
    slices: str | Path,
    output: str | Path,
    *,
    model: str = "faithful",
    split: str = "test",
    subjects: int | None = None,
    condition: Sequence[str] = ("position_mm",),
    codecs: bool = True,
) -> dict[str, Any]:
    """Compress and decompress the slices of a split, and compare.

    Args:
        slices: a folder of `extract_slices`.
        output: folder of `bitstream.json`.
        model: of `TrainedModel.from_bundle`.
        split: whose slices.
        subjects: how many of them, from the first; None takes all.
        condition: names that are told to the priors.
        codecs: compare with other codecs.
    """
    trained = TrainedModel.from_bundle(model)
    volumes = [[*items] for _, items in groupby(load_datalist(slices, split), lambda item: item["subject"])][:subjects]
    size = tuple(trained.record.image_size)
    images = [torch.stack([_loaded(item["image"], size) for item in items]) for items in volumes]
    codes = [trained.encode(batch) for batch in images]
    features = [_features(trained, items, condition) for items in volumes]
    bits = [
        -sum(float(nats.double().sum()) for nats in trained.sampler().log_prob(grids, condition=given)) / math.log(2)
        for grids, given in zip(codes, features, strict=True)
    ]
    figures: dict[str, Any] = {"model": model, "slices": sum(map(len, images)), "subjects": len(volumes)}
    pixels = sum(batch.numel() for batch in images)
    figures["cross_entropy_bits_per_pixel"] = sum(bits) / pixels
    coder = CodeCodec(trained.autoencoder, trained.priors)
    for mode in ("model", "anywhere"):
        figures[mode] = _coded(coder, codes, features, size, mode)
        figures[mode]["bits_per_pixel"] = 8 * figures[mode]["bytes"] / pixels
        figures[mode]["over_cross_entropy"] = 8 * figures[mode]["bytes"] / sum(bits) - 1
    scores = [reconstruction_scores(trained.decode(c), x) for c, x in zip(codes, images, strict=True)]
    figures["quality"] = mean_scores(scores)
    Path(output).mkdir(parents=True, exist_ok=True)
    write_json(Path(output) / "bitstream.json", figures)  # the other codecs take longer than all before
    figures["lossless"] = _lossless(images, figures)
    if codecs:
        figures["codecs"] = _others(images, [figures[mode]["bits_per_pixel"] for mode in ("model", "anywhere")])
    write_json(Path(output) / "bitstream.json", figures)
    return figures


def _lossless(images: Sequence[Tensor], figures: Mapping[str, Any]) -> dict[str, Any]:
    """Bits a pixel of the slices at 8 bits, kept exactly: ours for a volume's slices together, others' a slice.

    JPEG-LS and JPEG XL are measured where the package `imagecodecs` is installed.
    """
    stacks = [np.rint(batch[:, 0].numpy() * 255).astype(np.uint8) for batch in images]
    pixels, coder = sum(stack.size for stack in stacks), entropy_coder()
    packed, written = _timed(lambda: [pack_exact(stack, coder) for stack in stacks])
    back, read = _timed(lambda: [unpack_exact(p, s.shape, coder) for p, s in zip(packed, stacks, strict=True)])
    bits = 8 * sum(map(len, packed)) / pixels
    found: dict[str, Any] = {
        "exact": all(np.array_equal(a, b) for a, b in zip(back, stacks, strict=True)),
        "residual_bits_per_pixel": bits,
        "bits_per_pixel": {mode: bits + figures[mode]["bits_per_pixel"] for mode in ("model", "anywhere")},
        "encode_cpu_s_per_slice": written / figures["slices"],
        "decode_cpu_s_per_slice": read / figures["slices"],
    }
    others: dict[str, Callable[[Any], bytes | bytearray]] = {"PNG": _png}
    with contextlib.suppress(ImportError):
        import imagecodecs

        others["JPEG-LS"] = imagecodecs.jpegls_encode
        others["JPEG XL"] = partial(imagecodecs.jpegxl_encode, lossless=True, effort=9)
    found["others"] = {n: 8 * sum(len(f(x)) for stack in stacks for x in stack) / pixels for n, f in others.items()}
    return found


def _png(slice_hw: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(slice_hw).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _loaded(path: str, size: Sequence[int]) -> Tensor:
    """A slice, its middle cut to the size that the weights were trained on where it is larger."""
    image = LoadSlice()(path).as_tensor()
    for axis, want in enumerate(size, start=1):
        image = image.narrow(axis, max(0, (image.shape[axis] - want) // 2), min(want, image.shape[axis]))
    return image


def _features(trained: TrainedModel, items: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Tensor | None:
    if trained.condition is None:
        return None
    records = [
        {name: row[name] for name in names if name in row} for row in fitted_conditions(trained.condition, items)
    ]
    return trained.condition.encode(records)


def _coded(
    coder: CodeCodec, codes: Sequence[Sequence[Tensor]], features: Sequence[Any], size: Sequence[int], mode: str
) -> dict[str, Any]:
    threads, written, read, exact = torch.get_num_threads(), 0.0, 0.0, 0
    streams = []
    for grids, given in zip(codes, features, strict=True):
        stream, seconds = _timed(partial(coder.encode, grids, size, mode=mode, features=given))
        torch.set_num_threads(threads + 1)  # a reader has another number of them
        found, more = _timed(partial(coder.decode, stream))
        torch.set_num_threads(threads)
        same = torch.stack([(a == b).flatten(1).all(1) for a, b in zip(grids, found.codes, strict=True)]).all(0)
        streams.append((len(stream), found.modes))
        written, read, exact = written + seconds, read + more, exact + int(same.sum())
    count = sum(len(grids[0]) for grids in codes)
    return {
        "bytes": sum(length for length, _ in streams),
        "exact_slices": exact,
        "chunks": sum(len(modes) for _, modes in streams),
        "fallback_chunks": sum(mode != found for _, modes in streams for found in modes),
        "encode_cpu_s_per_slice": written / count,
        "decode_cpu_s_per_slice": read / count,
    }


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def _others(images: Sequence[Tensor], rates: Sequence[float]) -> dict[str, Any]:
    """PSNR and brain SSIM of other codecs at our rates: of their whole streams, and with what black takes left out."""
    curves = codec_curves([torch.cat([*images])], codecs=CODECS)
    found: dict[str, Any] = {"skipped": curves.skipped}
    for name, points in curves.points.items():
        bare = [p._replace(bits_per_pixel=p.bits_per_pixel - p.header_bits_per_pixel) for p in points]
        found[name] = {"lowest_bits_per_pixel": min(point.bits_per_pixel for point in points)}
        for reading, ladder in (("whole", points), ("without_headers", bare)):
            at = [at_rate(ladder, rate) for rate in rates]
            found[name][reading] = [
                {key: None if np.isnan(value) else value for key, value in point._asdict().items()} for point in at
            ]
    return found
