"""What ordinary codecs keep of a slice at a given rate: those of Pillow, and JPEG XL by imagecodecs.

Shape legend: b batch, c channels (always 1 here), h w rows and columns.

One protocol for all of them: the original is the slice in [0, 1]; rounding it to 8 bits belongs to the codec, for that
is what these codecs take. The rate counts the whole stream, headers and tables included, over all pixels of the slice,
the black ones too. On small slices the headers are a good part of it, so each point also says what a black slice of
the same size costs. Codes of a network are counted without any container: compare with both.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, features
from torch import Tensor

from monai_vqgen.errors import InputError
from monai_vqgen.metrics.reconstruction import mean_scores, reconstruction_scores

BITS_PER_BYTE = 8
LEVELS = 255  # the largest value of an 8-bit image


class Codec(NamedTuple):
    """An image codec and the ladder of settings that it is tried at.

    Attributes:
        name: what the reader of a picture knows it by.
        format: Pillow's name of the format.
        feature: what `PIL.features.check` calls it; Pillow may be built without.
        settings: from few bits to many, in the codec's own terms.
        options: what `Image.save` is given at a setting.
    """

    name: str
    format: str
    feature: str
    settings: tuple[float, ...]
    options: Callable[[float], dict[str, Any]]

    def lacking(self) -> str:
        """Why it cannot be tried here; empty where it can."""
        return "" if features.check(self.feature) else f"Pillow was built without {self.feature}"

    def encode(self, image_hw: NDArray[np.uint8], setting: float) -> bytes:
        """The whole stream, headers and all."""
        buffer = io.BytesIO()
        Image.fromarray(image_hw).save(buffer, format=self.format, **self.options(setting))
        return buffer.getvalue()

    def decode(self, stream: bytes) -> NDArray[np.uint8]:
        """The gray levels; WebP and AVIF have no gray images, so what they give is turned back into gray."""
        with Image.open(io.BytesIO(stream)) as image:
            return np.asarray(image.convert("L"))


class _ImagecodecsJpegXL(Codec):
    """JPEG XL, which Pillow does not write; `feature` is the package, `options` are those of `jpegxl_encode`."""

    def lacking(self) -> str:
        return "" if find_spec(self.feature) else f"the package {self.feature} is not installed"

    def encode(self, image_hw: NDArray[np.uint8], setting: float) -> bytes:
        import imagecodecs

        return bytes(imagecodecs.jpegxl_encode(image_hw, **self.options(setting)))

    def decode(self, stream: bytes) -> NDArray[np.uint8]:
        import imagecodecs

        return np.asarray(imagecodecs.jpegxl_decode(stream))


def _jpeg_options(quality: float) -> dict[str, Any]:
    return {"quality": int(quality), "optimize": True}  # Huffman tables made for the image: fewer bits, same pixels


def _jpeg2000_options(bits_per_pixel: float) -> dict[str, Any]:
    ratio = BITS_PER_BYTE / bits_per_pixel
    # 9/7 wavelet, the better one where loss is allowed, and a bare codestream, which saves the 85 bytes of a JP2 file
    return {"quality_mode": "rates", "quality_layers": [ratio], "irreversible": True, "no_jp2": True}


def _webp_options(quality: float) -> dict[str, Any]:
    return {"quality": int(quality), "method": 6}  # the slowest search, the fewest bits


def _avif_options(quality: float) -> dict[str, Any]:
    return {"quality": int(quality), "subsampling": "4:0:0"}  # gray: no bits for colors


def _jpegxl_options(distance: float) -> dict[str, Any]:
    return {"distance": distance, "effort": 7}


CODECS = (
    Codec("JPEG", "JPEG", "jpg", (1, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 95), _jpeg_options),
    Codec(
        "JPEG 2000",
        "JPEG2000",
        "jpg_2000",
        (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0),
        _jpeg2000_options,
    ),
    Codec("WebP", "WEBP", "webp", (0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95, 100), _webp_options),
    Codec("AVIF", "AVIF", "avif", (0, 10, 20, 30, 40, 50, 60, 70, 80, 90), _avif_options),
    _ImagecodecsJpegXL(
        "JPEG XL", "JXL", "imagecodecs", (15.0, 10.0, 7.0, 5.0, 4.0, 3.0, 2.0, 1.5, 1.0, 0.5), _jpegxl_options
    ),
)
"""JPEG, WebP and AVIF by their quality; JPEG 2000 by the bits a pixel that it is asked to keep to; JPEG XL by the
distance, in what an eye sees, that it may have from the original."""


class CodecPoint(NamedTuple):
    """Means over all slices of one codec at one setting.

    Attributes:
        setting: one of the codec's settings.
        bits_per_pixel: of the whole stream.
        header_bits_per_pixel: of a black slice of the same size at the same setting, which is nearly all container,
            headers and tables: about what a bare payload would save.
        psnr: in dB, over the slice; 100 for an exact copy.
        psnr_brain: the same over the brain.
        ssim: over the slice; at low quality JPEG turns black into dark gray, which this score punishes and no eye sees.
        ssim_brain: the same over the brain.
        ms_ssim: over the slice.
        ms_ssim_brain: the same over the brain.
    """

    setting: float
    bits_per_pixel: float
    header_bits_per_pixel: float
    psnr: float
    psnr_brain: float
    ssim: float
    ssim_brain: float
    ms_ssim: float
    ms_ssim_brain: float


class CodecCurves(NamedTuple):
    """The points of every codec in the order of its settings, and of those that are missing the reason."""

    points: dict[str, list[CodecPoint]]
    skipped: dict[str, str]


def _as_bytes(originals_bcs: Tensor) -> NDArray[np.uint8]:
    if originals_bcs.ndim != 4 or originals_bcs.shape[1] != 1 or len(originals_bcs) == 0:
        raise InputError(
            f"originals of shape {tuple(originals_bcs.shape)} cannot be written as pictures: give (batch, 1, H, W)"
        )
    return np.floor(originals_bcs[:, 0].clamp(0, 1).double().numpy() * LEVELS + 0.5).astype(np.uint8)


def _point(codec: Codec, setting: float, batches: Sequence[tuple[Tensor, NDArray[np.uint8]]]) -> CodecPoint:
    bits, header_bits, scores = [], [], []
    for originals_bcs, bytes_bhw in batches:
        streams = [codec.encode(image_hw, setting) for image_hw in bytes_bhw]
        header, pixels = codec.encode(np.zeros_like(bytes_bhw[0]), setting), bytes_bhw[0].size
        bits += [BITS_PER_BYTE * len(stream) / pixels for stream in streams]
        header_bits += [BITS_PER_BYTE * len(header) / pixels] * len(streams)
        levels_bhw = np.stack([codec.decode(stream) for stream in streams])
        decoded_bcs = torch.from_numpy(levels_bhw.astype(np.float32) / np.float32(LEVELS))[:, None]
        scores.append(reconstruction_scores(decoded_bcs, originals_bcs))
    means = {name: value for name, value in mean_scores(scores).items() if name in CodecPoint._fields}
    return CodecPoint(setting, float(np.mean(bits)), float(np.mean(header_bits)), **means)


def codec_curves(originals: Iterable[Tensor], *, codecs: Sequence[Codec] = CODECS) -> CodecCurves:
    """Rate and distortion of every codec at every setting of its ladder.

    Args:
        originals: batches (batch, 1, H, W) in [0, 1], gone through once.
        codecs: which ones; those that this Pillow was built without, or whose package is not installed (`pip install
            'monai-vqgen[codecs]'`), are skipped, with the reason.

    Raises:
        InputError: there is no original, or it is no single-channel slice.

    Examples:
        >>> curves = codec_curves([torch.rand(2, 1, 32, 32)], codecs=CODECS[:1])
        >>> few, many = curves.points["JPEG"][0], curves.points["JPEG"][-1]
        >>> few.bits_per_pixel < many.bits_per_pixel, few.psnr < many.psnr
        (True, True)
    """
    missing = {codec.name: reason for codec in codecs if (reason := codec.lacking())}
    present = [codec for codec in codecs if codec.name not in missing]
    plain = [torch.as_tensor(batch_bcs).as_subclass(Tensor).detach().cpu().float() for batch_bcs in originals]
    batches = [(originals_bcs, _as_bytes(originals_bcs)) for originals_bcs in plain]
    return CodecCurves(
        points={codec.name: [_point(codec, setting, batches) for setting in codec.settings] for codec in present},
        skipped=missing,
    )


def at_rate(points: Sequence[CodecPoint], bits_per_pixel: float) -> CodecPoint:
    """What a codec reaches at a rate: linear between the two points beside it.

    Outside the ladder every figure but the rate is NaN: nothing is extrapolated. Between two points the straight line
    lies a little below a curve that bends as these do.

    Args:
        points: of one codec, in any order.
        bits_per_pixel: the rate, of the whole stream.

    Raises:
        InputError: there are no points.

    Examples:
        >>> low = CodecPoint(1, 0.5, 0.1, 30, 28, 0.8, 0.7, 0.9, 0.8)
        >>> high = CodecPoint(2, 1.0, 0.1, 34, 32, 0.9, 0.8, 0.95, 0.9)
        >>> at_rate([low, high], 0.75).psnr, at_rate([low, high], 0.4).psnr
        (32.0, nan)
    """
    if not points:
        raise InputError("no points to interpolate between: the codec was skipped or has no settings")
    ordered = np.array(sorted(points, key=lambda point: point.bits_per_pixel), dtype=float)
    rates = ordered[:, CodecPoint._fields.index("bits_per_pixel")]
    values = [float(np.interp(bits_per_pixel, rates, column, left=np.nan, right=np.nan)) for column in ordered.T]
    return CodecPoint(*values)._replace(bits_per_pixel=float(bits_per_pixel))
