"""The rate-distortion picture shows every point where it belongs, and the figures are the codecs' at our rates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from monai_vqgen.errors import InputError
from monai_vqgen.evaluation.rate_distortion import RatedSystem, codec_figures, rated_system, save_rate_distortion
from monai_vqgen.metrics import CodecCurves, CodecPoint


def point(bits: float, psnr: float, ssim_brain: float) -> CodecPoint:
    return CodecPoint(1, bits, 0.1, psnr, psnr - 4, ssim_brain + 0.05, ssim_brain, 0.99, 0.98)


CURVES = CodecCurves(
    points={
        "JPEG": [point(0.25, 28.0, 0.70), point(0.5, 31.0, 0.80), point(1.0, 35.0, 0.90)],
        "WebP": [point(0.2, 29.0, 0.75), point(0.8, 37.0, 0.95)],
    },
    skipped={"JPEG 2000": "Pillow was built without jpg_2000"},
)
OURS = RatedSystem("this model", 33.0, 0.93, 0.7, 0.4)
OTHER = RatedSystem("system B", 27.0, 0.8, 0.6)


@pytest.fixture
def drawn(monkeypatch):
    figures = []
    monkeypatch.setattr(
        "monai_vqgen.evaluation.rate_distortion.save_figure", lambda figure, path: figures.append(figure)
    )

    def draw(curves, system):
        save_rate_distortion(curves, system, "a.png")
        return figures[-1]

    return draw


def lines_by_label(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_xydata() for line in axes.lines}


def test_codecs_are_curves_and_the_system_is_marks_in_both_panels(drawn):
    left, right = drawn(CURVES, OURS).axes
    for axes, score, title in ((left, "psnr", "PSNR, dB"), (right, "ssim_brain", "SSIM over the brain")):
        assert axes.get_ylabel() == title
        assert axes.get_xlabel() == "bits a pixel"
        lines = lines_by_label(axes)
        for name, points in CURVES.points.items():
            np.testing.assert_array_equal(lines[name], [[p.bits_per_pixel, getattr(p, score)] for p in points])
        value = getattr(OURS, score)
        np.testing.assert_array_equal(lines["this model, raw codes"], [[0.7, value]])
        np.testing.assert_array_equal(lines["this model, after the priors"], [[0.4, value]])
    lines = lines_by_label(drawn(CURVES, OTHER).axes[0])
    np.testing.assert_array_equal(lines["system B, raw codes"], [[0.6, OTHER.psnr]])
    assert "system B, after the priors" not in lines


def test_headers_are_taken_off_in_the_dotted_curve(drawn):
    axes = drawn(CURVES, OURS).axes[0]
    dotted = [line.get_xydata() for line in axes.lines if line.get_linestyle() == ":" and len(line.get_xdata())]
    np.testing.assert_allclose(dotted[0], [[0.15, 28], [0.4, 31], [0.9, 35]])
    np.testing.assert_allclose(dotted[1], [[0.1, 29], [0.7, 37]])


def test_the_legend_names_everything_once_and_says_what_is_missing(drawn):
    figure = drawn(CURVES, OURS)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "JPEG",
        "WebP",
        "the same without headers",
        "no JPEG 2000: Pillow was built without jpg_2000",
        "this model, after the priors",
        "this model, raw codes",
    ]


def test_a_system_far_from_the_codecs_lies_inside_the_frame(drawn):
    for system in (OURS, RatedSystem("far", 12.0, 0.2, 3.0, 0.05)):
        for axes, score in zip(drawn(CURVES, system).axes, ("psnr", "ssim_brain"), strict=True):
            (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
            assert axes.get_xscale() == "log"
            assert all(left < rate < right for rate in system.rates.values())
            assert low < getattr(system, score) < high


@pytest.mark.parametrize(
    ("curves", "system"), [(CodecCurves({}, {}), OURS), (CURVES, OTHER), (CURVES, OURS._replace(ssim_brain=math.nan))]
)
def test_a_png_is_written_whatever_part_is_missing(tmp_path, curves, system):
    save_rate_distortion(curves, system, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        assert np.ptp(np.asarray(picture.convert("L"))) > 200  # there is ink on it


def test_a_system_is_read_from_its_metrics():
    metrics = {
        "reconstruction": {"psnr": 33.0, "ssim_brain": 0.93, "ssim": 0.95},
        "rate": {"raw_bits_per_pixel": 0.7, "coded_bits_per_pixel": 0.4},
    }
    assert rated_system("this model", metrics) == OURS
    without_brain = {**metrics["reconstruction"], "ssim_brain": None}  # JSON has no NaN
    assert math.isnan(rated_system("x", {**metrics, "reconstruction": without_brain}).ssim_brain)
    without_priors = {**metrics, "rate": {"raw_bits_per_pixel": 0.7}}
    assert rated_system("x", without_priors).rates == {"raw": 0.7}
    with pytest.raises(InputError, match=r"'x' have no 'rate'"):
        rated_system("x", {"reconstruction": metrics["reconstruction"]})


def test_the_figures_are_the_codecs_at_both_rates():
    figures = codec_figures(CURVES, OURS)
    raw, coded = figures["at_rate"]["raw"], figures["at_rate"]["coded"]
    assert raw["JPEG"]["psnr"] == pytest.approx(31 + 4 * 0.2 / 0.5)
    assert coded["JPEG"]["ssim_brain"] == pytest.approx(0.70 + 0.10 * 0.15 / 0.25)
    assert raw["WebP"]["bits_per_pixel"] == 0.7
    assert math.isnan(codec_figures(CURVES, OURS._replace(raw_bits_per_pixel=0.9))["at_rate"]["raw"]["WebP"]["psnr"])
    assert set(codec_figures(CURVES, OTHER)["at_rate"]) == {"raw"}
    assert figures["ladder"]["WebP"][1]["psnr"] == 37.0
    assert figures["skipped"] == CURVES.skipped
