"""Codecs against Pillow and imagecodecs by hand, the bound of 8-bit rounding, and numpy's interpolation."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from monai_vqgen.errors import InputError
from monai_vqgen.metrics import CODECS, Codec, CodecPoint, at_rate, codec_curves
from monai_vqgen.metrics.reconstruction import PSNR_CEILING, reconstruction_scores

JPEG, JPEG2000, *_ = CODECS
LOSSLESS = Codec("WebP lossless", "WEBP", "webp", (100,), lambda quality: {"lossless": True, "quality": int(quality)})
HALF_LEVEL = 0.5 / 255  # of the intensity range: the most that rounding to 8 bits moves a pixel


def brain_like(count: int, height: int = 48, width: int = 40) -> torch.Tensor:
    """Textured ellipses on black, not square, so that rows and columns cannot be confused."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    images = []
    for _ in range(count):
        inside = ((rows / height - 0.5) / 0.45) ** 2 + ((columns / width - 0.5) / 0.4) ** 2 < 1
        waves = 0.5 + 0.25 * np.sin(rows / rng.uniform(2, 5)) + 0.2 * np.cos(columns / rng.uniform(2, 5))
        images.append(inside * (waves + 0.02 * rng.standard_normal((height, width))))
    return torch.tensor(np.clip(images, 0, 1), dtype=torch.float32)[:, None]


def to_stream(image: np.ndarray, format: str, **options) -> bytes:
    if format == "JXL":
        return bytes(pytest.importorskip("imagecodecs").jpegxl_encode(image, **options))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=format, **options)
    return buffer.getvalue()


def test_a_point_is_what_pillow_does_by_hand():
    originals = brain_like(3)
    (point,) = codec_curves([originals[:2], originals[2:]], codecs=[JPEG._replace(settings=(30,))]).points["JPEG"]
    rates, psnr, ssim, ssim_brain, all_decoded = [], [], [], [], []
    for original in originals[:, 0].double().numpy():
        stream = to_stream(np.round(original * 255).astype(np.uint8), "JPEG", quality=30, optimize=True)
        decoded = np.asarray(Image.open(io.BytesIO(stream))) / 255
        assert decoded.shape == (48, 40)
        full_ssim = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
        mean, full = structural_similarity(decoded, original, data_range=1, **full_ssim)
        rates.append(len(stream) * 8 / (48 * 40))
        psnr.append(peak_signal_noise_ratio(original, decoded, data_range=1))
        ssim.append(mean)
        ssim_brain.append(full[original > 0.02].mean())
        all_decoded.append(decoded)
    assert point.setting == 30
    assert point.bits_per_pixel == pytest.approx(np.mean(rates), rel=1e-12)
    assert point.psnr == pytest.approx(np.mean(psnr), abs=1e-3)
    assert point.ssim == pytest.approx(np.mean(ssim), abs=1e-4)
    assert point.ssim_brain == pytest.approx(np.mean(ssim_brain), abs=1e-4)
    scores = reconstruction_scores(torch.tensor(np.stack(all_decoded)[:, None], dtype=torch.float32), originals)
    assert point.ms_ssim == pytest.approx(float(scores.ms_ssim.mean()), abs=1e-5)
    assert point.ms_ssim_brain == pytest.approx(float(scores.ms_ssim_brain.mean()), abs=1e-5)
    assert 0.9 < min(point.ms_ssim, point.ms_ssim_brain) < max(point.ms_ssim, point.ms_ssim_brain) < 1


def test_a_lossless_codec_loses_the_rounding_to_8_bits_and_nothing_else():
    on_levels = torch.round(brain_like(2) * 255) / 255
    (exact,) = codec_curves([on_levels], codecs=[LOSSLESS]).points["WebP lossless"]
    assert exact.psnr == exact.psnr_brain == PSNR_CEILING  # what infinity is reported as
    assert exact.ssim == pytest.approx(1, abs=1e-6)
    between = torch.where(on_levels > 0, on_levels + 0.99 * HALF_LEVEL, 0.0).clamp(max=1)
    (rounded,) = codec_curves([between], codecs=[LOSSLESS]).points["WebP lossless"]
    floor = -20 * math.log10(HALF_LEVEL)
    assert floor < rounded.psnr_brain < floor + 0.2  # nearly every brain pixel is moved by nearly half a level


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_richer_setting_costs_more_bits_and_is_nearer_to_the_original(codec):
    curves = codec_curves([brain_like(2, 64, 64)], codecs=[codec])
    if codec.name in curves.skipped:
        pytest.skip(curves.skipped[codec.name])
    points = curves.points[codec.name]
    assert [point.setting for point in points] == list(codec.settings)
    rates = [point.bits_per_pixel for point in points]
    assert rates == sorted(rates)
    for name in ("psnr", "psnr_brain", "ssim_brain"):
        values = [getattr(point, name) for point in points]
        assert all(b > a - 0.01 * abs(a) for a, b in itertools.pairwise(values)), name
        assert values[-1] > values[0]
    assert points[-1].psnr > 35


def test_jpeg_2000_keeps_to_the_rate_it_is_given():
    points = codec_curves([brain_like(2, 64, 64)], codecs=[JPEG2000]).points["JPEG 2000"]
    for point in points:
        if point.setting >= 2 * point.header_bits_per_pixel:  # a lower target than its headers cannot be kept
            assert point.bits_per_pixel == pytest.approx(point.setting, rel=0.05)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_headers_are_what_a_black_slice_costs(codec):
    setting = codec.settings[len(codec.settings) // 2]
    originals = brain_like(1)
    black = to_stream(np.zeros((48, 40), np.uint8), codec.format, **codec.options(setting))
    (point,) = codec_curves([originals], codecs=[codec._replace(settings=(setting,))]).points[codec.name]
    assert point.header_bits_per_pixel == len(black) * 8 / (48 * 40)
    assert 0 < point.header_bits_per_pixel < point.bits_per_pixel


def test_jpeg_xl_comes_back_as_it_is_stored():
    imagecodecs = pytest.importorskip("imagecodecs")
    original = brain_like(1)
    (codec,) = [codec for codec in CODECS if codec.name == "JPEG XL"]
    (point,) = codec_curves([original], codecs=[codec._replace(settings=(1.0,))]).points["JPEG XL"]
    pixels = np.round(original[0, 0].double().numpy() * 255).astype(np.uint8)
    stream = imagecodecs.jpegxl_encode(pixels, distance=1.0, effort=7)
    again = imagecodecs.jpegxl_decode(stream) / 255
    assert point.bits_per_pixel == len(stream) * 8 / (48 * 40)
    assert point.psnr == pytest.approx(
        peak_signal_noise_ratio(original[0, 0].double().numpy(), again, data_range=1), abs=1e-3
    )


def test_a_codec_that_is_not_here_is_skipped_and_named(monkeypatch):
    monkeypatch.setattr("monai_vqgen.metrics.codecs.features.check", lambda feature: feature not in ("webp", "avif"))
    monkeypatch.setattr("monai_vqgen.metrics.codecs.find_spec", lambda package: None)
    curves = codec_curves([brain_like(1)], codecs=[codec._replace(settings=codec.settings[:1]) for codec in CODECS])
    assert list(curves.points) == ["JPEG", "JPEG 2000"]
    assert curves.skipped == {
        "WebP": "Pillow was built without webp",
        "AVIF": "Pillow was built without avif",
        "JPEG XL": "the package imagecodecs is not installed",
    }


def made_up(bits: float, psnr: float) -> CodecPoint:
    return CodecPoint(10 * bits, bits, 0.1, psnr, psnr - 2, psnr / 50, psnr / 60, psnr / 45, psnr / 55)


def test_a_rate_between_two_points_is_interpolated_linearly():
    points = [made_up(1.0, 40.0), made_up(0.25, 30.0), made_up(0.5, 36.0)]  # the order does not matter
    between = at_rate(points, 0.75)
    assert between == pytest.approx(CodecPoint(7.5, 0.75, 0.1, 38, 36, 38 / 50, 38 / 60, 38 / 45, 38 / 55))
    assert at_rate(points, 0.25) == pytest.approx(points[1])
    assert at_rate(points, 1.0) == pytest.approx(points[0])


def test_nothing_is_extrapolated_outside_the_ladder():
    points = [made_up(0.25, 30.0), made_up(1.0, 40.0)]
    for rate in (0.2, 1.1):
        outside = at_rate(points, rate)
        assert outside.bits_per_pixel == rate
        assert all(math.isnan(value) for value in outside[2:])
    with pytest.raises(InputError, match="no points"):
        at_rate([], 0.5)


@pytest.mark.parametrize("shape", [(1, 1, 16, 16, 16), (1, 3, 16, 16), (16, 16), (0, 1, 16, 16)])
def test_what_is_no_slice_is_refused(shape):
    with pytest.raises(InputError, match="cannot be written as pictures"):
        codec_curves([torch.zeros(shape)], codecs=[JPEG])


def test_no_slices_at_all_is_an_error():
    with pytest.raises(InputError, match="empty"):
        codec_curves([], codecs=[JPEG])
