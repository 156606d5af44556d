"""The figures of a run as Markdown: each number in its cell, and only the text between the marks is replaced."""

from __future__ import annotations

import pytest

from monai_vqgen.apps.results import replace_section, results_section
from monai_vqgen.apps.stages import StageRecord
from monai_vqgen.errors import InputError

SCORES = {"ssim": 0.9512, "ssim_brain": 0.9021, "psnr": 31.234, "psnr_brain": 26.111, "mae": 0.01}
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
        }
    ],
    "sampling": {"num_samples": 4, "seconds": 6.0, "ratio_to_whole_grid": 1234.4},
    "data": {"subjects": {"training": 3, "test": 1}, "slices": {"training": 30, "test": 10}, "image_size": [16, 24]},
    "codecs": {"at_rate": {"raw": {"WebP": {**SCORES, "psnr": 40.0}}, "coded": {"WebP": {**SCORES, "psnr": None}}}},
}


def test_every_figure_stands_in_its_cell():
    text = results_section(METRICS, [StageRecord("autoencoder", 90.0, "...")])
    assert "16x24 pixels: training 3 subjects with 30 slices, test 1 subjects with 10 slices" in text
    assert "| ours | 0.703 raw, 0.250 after the priors | 0.951 | 0.902 | 31.23 | 26.11 |" in text
    assert "| ours, coarsest level alone |  | 0.951 | n/a |" in text
    assert "| WebP at 0.703 | 0.703 | 0.951 | 0.902 | 40.00 |" in text
    assert "| WebP at 0.250 | 0.250 | 0.951 | 0.902 | n/a |" in text
    assert "| 0 | 95% of 512 | 302 | 3.000 | 2.500 | 4.000 | 25% | 9.00 |" in text
    assert "autoencoder 1.5" in text
    assert "1.50 s a sample, 1,234 times" in text


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
