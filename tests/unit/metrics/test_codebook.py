"""Usage and perplexity against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_vqgen.errors import CodesMismatchError
from monai_vqgen.metrics.codebook import CodebookCounter, codebook_use


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
