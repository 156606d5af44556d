"""The figures of a run as Markdown: each number in its cell, and only the text between the marks is replaced."""

from __future__ import annotations

from itertools import dropwhile, takewhile

import pytest

from monai_vqgen.demo.stages import StageRecord
from monai_vqgen.errors import InputError
from tools.results import replace_section, results_section

SIMILARITY = {"ssim": 0.9512, "ssim_brain": 0.9021, "ms_ssim": 0.9814, "ms_ssim_brain": 0.9715}
SCORES = {**SIMILARITY, "psnr": 31.234, "psnr_brain": 26.111, "mae": 0.01}


def kind(hundreds: int) -> dict:
    """Figures of one kind of images, all different, and of no other kind."""
    figure = [(hundreds + i) / 1000 for i in range(1, 12)]
    return {
        "two_sample": {
            "linear": {"accuracy": figure[0], "standard_error": figure[1], "held_out": 20},
            "cnn": {"accuracy": figure[2], "standard_error": figure[3], "held_out": 20},
        },
        **dict(zip(("frechet", "precision", "recall", "density", "coverage"), figure[4:9], strict=True)),
        "pairwise_ms_ssim": {"mean": figure[9], "standard_deviation": 0.5, "pairs": 500, "scales": 3},
        "authenticity": figure[10],
    }


def audit(tenths: int) -> dict:
    return {
        "share_below": tenths / 1000,
        "threshold": 0.5,
        "percentile": 1.0,
        "samples_median": tenths / 10000 + 0.0001,
        "held_out_median": tenths / 10000 + 0.0002,
        "num_samples": 48,
        "num_held_out": 36,
        "closest": [],
    }


SAMPLES = {
    "num_samples": 48,
    "compared": 36,
    "feature_space": "a stated space",
    "neighbors": "stated slices",
    "samples": kind(100),
    "real": kind(200),
    "reconstructions": kind(300),
    "independent_codes": kind(400),
    "position": {
        "samples_mm": 5.11,
        "held_out_mm": 2.22,
        "samples_bias_mm": 1.0,
        "constant_samples_mm": 9.33,
        "constant_held_out_mm": 8.0,
    },
    "memorization": {"pixels": audit(25), "features": audit(36)},
}
METRICS = {
    "reconstruction": {**SCORES, "baselines": {"all_black": dict.fromkeys(SCORES, 0.0), "mean_image": SCORES}},
    "top_only": {**SCORES, "ssim_brain": None},
    "rate": {"raw_bits_per_pixel": 0.703, "coded_bits_per_pixel": 0.2501},
    "codebook": [{"level": 0, "size": 512, "usage": 0.95, "perplexity": 301.6}],
    "prior": [
        {
            "level": 0,
            "bits_per_code": 3.0,
            "training_bits_per_code": 2.5,
            "histogram_bits_per_code": 4.0,
            "uniform_bits_per_code": 9.0,
            "inside_bits_per_code": 6.123,
            "explained_variance": 0.719,
        }
    ],
    "sampling": {"num_samples": 4, "seconds": 6.0, "ratio_to_whole_grid": 1234.4},
    "data": {"subjects": {"training": 3, "test": 1}, "slices": {"training": 30, "test": 10}, "image_size": [16, 24]},
    "codecs": {"at_rate": {"raw": {"WebP": {**SCORES, "psnr": 40.0}}, "coded": {"WebP": {**SCORES, "psnr": None}}}},
}


def test_every_figure_stands_in_its_cell():
    stages = [StageRecord("autoencoder", 90.0, "...", 1_260_000_000), StageRecord("older", 60.0, "...")]
    text = results_section(METRICS, stages, machine="a machine")
    assert "16x24 pixels: training 3 subjects with 30 slices, test 1 subjects with 10 slices" in text
    assert "| ours | 0.703 raw, 0.250 after the priors | 0.951 | 0.902 | 0.981 | 0.972 | 31.23 | 26.11 |" in text
    assert "| ours, coarsest level alone |  | 0.951 | n/a |" in text
    assert "| WebP at 0.703 | 0.703 | 0.951 | 0.902 | 0.981 | 0.972 | 40.00 |" in text
    assert "| WebP at 0.250 | 0.250 | 0.951 | 0.902 | 0.981 | 0.972 | n/a |" in text
    assert "| 0 | 95% of 512 | 302 | 3.000 | 2.500 | 4.000 | 25% | 9.00 | 6.12 | 0.72 |" in text
    assert "autoencoder 1.5, older 1.0" in text
    assert "largest process took 1.3 GB of main memory. On a machine." in text
    assert "1.50 s a sample, 1,234 times" in text


def cells(text: str, first: str) -> dict[str, dict[str, str]]:
    """The table whose header begins with a word: row name -> column name -> cell."""
    lines = dropwhile(lambda line: not line.startswith(f"| {first} |"), text.splitlines())
    table = takewhile(lambda line: line.startswith("|"), lines)
    header, rule, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in table)
    assert set(rule) == {"---"}
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}


def test_every_figure_of_the_samples_stands_in_its_cell():
    text = results_section({**METRICS, "samples": SAMPLES}, [], machine="a machine")
    table = cells(text, "")
    assert list(table) == ["samples", "real", "reconstructions", "independent codes"]
    for digit, row in enumerate(table.values(), start=1):
        assert row == {
            "linear classifier": f"0.{digit}01 ± 0.{digit}02",
            "CNN classifier": f"0.{digit}03 ± 0.{digit}04",
            "Frechet": f"0.{digit}05",
            "precision": f"0.{digit}06",
            "recall": f"0.{digit}07",
            "density": f"0.{digit}08",
            "coverage": f"0.{digit}09",
            "pairwise MS-SSIM": f"0.{digit}10",
        }
    assert "48 samples against training slices" in text
    assert "Features: a stated space." in text
    assert "neighbors being stated slices" in text
    assert "differ by 5.1 mm (real test slices 2.2 mm, a constant 9.3 mm)" in text


def test_every_figure_of_the_audits_stands_in_its_cell():
    text = results_section({**METRICS, "samples": SAMPLES}, [], machine="a machine")
    assert cells(text, "distance to the nearest training slice") == {
        "pixels": {
            "samples below the held-out slices' first percentile": "2.5%",
            "median of samples": "0.0026",
            "of held-out slices": "0.0027",
        },
        "features": {
            "samples below the held-out slices' first percentile": "3.6%",
            "median of samples": "0.0037",
            "of held-out slices": "0.0038",
        },
    }
    assert "Authenticity 0.11, of test slices 0.21." in text


def test_without_a_report_of_samples_there_are_no_tables_of_them():
    text = results_section(METRICS, [], machine="a machine")
    assert "classifier" not in text
    assert "Authenticity" not in text


def test_only_the_text_between_the_marks_is_replaced(tmp_path):
    path = tmp_path / "RESULTS.md"
    path.write_text("before\n<!-- a -->\nold\n\n| table |\n<!-- /a -->\nafter\n<!-- b -->\nkept\n<!-- /b -->\n")
    replace_section(path, "a", "new \\1 text")
    assert path.read_text() == ("before\n<!-- a -->\nnew \\1 text\n<!-- /a -->\nafter\n<!-- b -->\nkept\n<!-- /b -->\n")


def test_a_document_without_the_marks_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "RESULTS.md"
    path.write_text("no marks")
    with pytest.raises(InputError, match="<!-- a -->"):
        replace_section(path, "a", "new")
    assert path.read_text() == "no marks"
