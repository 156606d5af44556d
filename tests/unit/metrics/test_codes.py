"""Use of codebooks and bits per code against numpy and what is known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from monai_vqgen.errors import CodesMismatchError, InputError
from monai_vqgen.metrics.codes import (
    CodebookCounter,
    PositionHistogram,
    bits_per_code,
    codebook_use,
    uniform_bits_per_code,
)


def test_usage_and_perplexity_of_batches_equal_numpy_over_all_codes():
    random = np.random.default_rng(0)
    codes = random.zipf(1.5, (5, 7, 9)) % 20
    counter = CodebookCounter(40)
    for batch in np.array_split(codes, 3):
        counter.update(torch.from_numpy(batch))
    frequencies = np.unique(codes, return_counts=True)[1] / codes.size
    result = counter.compute()
    assert result.codes_in_use == len(frequencies)
    assert result.usage == len(frequencies) / 40
    assert result.perplexity == pytest.approx(np.exp(-np.sum(frequencies * np.log(frequencies))))


def test_extremes():
    assert codebook_use(torch.ones(16)).perplexity == pytest.approx(16)
    assert codebook_use(torch.tensor([0, 9, 0])).perplexity == pytest.approx(1)
    assert codebook_use(torch.zeros(4)) == (4, 0, 0.0, 0.0)


def test_a_code_outside_the_codebook_is_refused():
    with pytest.raises(CodesMismatchError, match="outside"):
        CodebookCounter(4).update(torch.tensor([4]))


def test_a_uniform_model_pays_log2_k():
    log_prob = torch.full((3,), -6 * math.log(512))
    assert bits_per_code(log_prob, 6) == pytest.approx(uniform_bits_per_code(512)) == pytest.approx(9.0)


def test_histogram_equals_a_count_by_hand():
    random = np.random.default_rng(1)
    train, test = random.integers(0, 5, (11, 2, 3)), random.integers(0, 5, (4, 2, 3))
    bits = []
    for row, column in np.ndindex(2, 3):
        for code in test[:, row, column]:
            count = np.sum(train[:, row, column] == code)
            bits.append(-np.log2((count + 0.5) / (11 + 0.5 * 5)))
    histogram = PositionHistogram(5, smoothing=0.5).fit(torch.from_numpy(train))
    assert histogram.bits_per_code(torch.from_numpy(test)) == pytest.approx(np.mean(bits))


def test_probabilities_at_a_position_sum_to_one():
    histogram = PositionHistogram(6).fit(torch.randint(0, 6, (9, 1, 1), generator=torch.Generator().manual_seed(0)))
    total = sum(2 ** -histogram.bits_per_code(torch.full((1, 1, 1), code)) for code in range(6))
    assert total == pytest.approx(1.0)


def test_smoothing_is_chosen_as_leaving_one_out_by_hand_would():
    random = np.random.default_rng(2)
    train = random.zipf(1.7, (12, 2, 2)) % 16
    chosen = PositionHistogram(16).fit(torch.from_numpy(train)).smoothing

    def held_out_bits(smoothing: float) -> float:
        bits = []
        for left_out in range(12):
            rest = torch.from_numpy(np.delete(train, left_out, axis=0))
            histogram = PositionHistogram(16, smoothing=smoothing).fit(rest)
            bits.append(histogram.bits_per_code(torch.from_numpy(train[left_out : left_out + 1])))
        return float(np.mean(bits))

    tried = {smoothing: held_out_bits(smoothing) for smoothing in (1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0)}
    assert held_out_bits(chosen) <= min(tried.values()) + 1e-9
    histogram = PositionHistogram(16).fit(torch.from_numpy(train))
    for smoothing, bits in tried.items():
        assert histogram._mean_bits(torch.from_numpy(train).flatten(1), smoothing, left_out=1) == pytest.approx(bits)


def test_what_cannot_be_scored_is_refused():
    histogram = PositionHistogram(4).fit(torch.zeros(3, 2, 2, dtype=torch.int64))
    with pytest.raises(CodesMismatchError, match="Grids"):
        histogram.bits_per_code(torch.zeros(1, 2, 3, dtype=torch.int64))
    with pytest.raises(CodesMismatchError, match="0 to 3"):
        histogram.bits_per_code(torch.full((1, 2, 2), 4))
    with pytest.raises(InputError, match="positive"):
        PositionHistogram(4, smoothing=0.0)
    with pytest.raises(InputError):
        bits_per_code(torch.zeros(0), 4)
