from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from monai_vqgen.errors import InputError
from monai_vqgen.inferers import Truncation


def oracle(logits, temperature=1.0, top_k=None, top_p=None):
    """Probabilities after truncation, one row at a time, in plain numpy."""
    rows = []
    for row in np.asarray(logits, dtype=np.float64) / temperature:
        order = sorted(range(len(row)), key=lambda code: (-row[code], code))[: top_k or len(row)]
        weights = np.exp(row - row.max())
        total, reached, kept = weights[order].sum(), 0.0, []
        for code in order:
            kept.append(code)
            reached += weights[code] / total
            if top_p is not None and reached >= top_p:
                break
        result = np.zeros(len(row))
        result[kept] = weights[kept] / weights[kept].sum()
        rows.append(result)
    return np.stack(rows)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 99])
@pytest.mark.parametrize("top_p", [None, 0.05, 0.5, 0.93, 1.0])
def test_the_distribution_is_that_of_the_oracle(temperature, top_k, top_p):
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 9)) * 2)
    before = logits.clone()
    kept = Truncation(temperature=temperature, top_k=top_k, top_p=top_p).apply(logits)
    np.testing.assert_allclose(kept.softmax(1).numpy(), oracle(logits, temperature, top_k, top_p), atol=1e-12)
    assert torch.equal(logits, before)


def test_of_equal_logits_exactly_top_k_are_kept():
    kept = Truncation(top_k=2).apply(torch.zeros(1, 4))
    assert torch.isfinite(kept).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf])
def test_a_temperature_of_zero_or_less_is_refused_and_the_mend_named(temperature):
    with pytest.raises(InputError, match=r"temperature.*top_k=1"):
        Truncation(temperature=temperature)


@pytest.mark.parametrize(
    "arguments", [{"top_k": 0}, {"top_k": 1.5}, {"top_p": 0}, {"top_p": 1.01}, {"top_p": math.nan}]
)
def test_truncation_out_of_range_is_refused(arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        Truncation(**arguments)


def test_a_whole_number_of_codes_may_be_a_float():
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]])
    assert torch.equal(Truncation(top_k=3.0).apply(logits), Truncation(top_k=3).apply(logits))
