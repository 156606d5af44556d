"""Frequencies are near the probabilities they stand for, and whole numbers that any machine finds."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from factories import tiny_priors

from monai_vqgen.coding import frequencies
from monai_vqgen.coding.frequencies import (
    AdaptiveFrequencies,
    PriorFrequencies,
    fine_steps,
    near_codes,
    spoiled_shifts,
    step_frequencies,
)
from monai_vqgen.errors import InputError


def test_the_table_of_exponentials_is_right_to_fifteen_digits():
    getcontext().prec = 40
    for i in (0, 1, 16, 100, 400):
        exact = Decimal(2) ** 40 * (-Decimal(i) / 16).exp()
        assert abs(Decimal(float(frequencies._WEIGHTS[i])) - exact) <= 1 + exact * Decimal("1e-13")
    assert frequencies._WEIGHTS[-1] == 0


def test_rounded_logits_cost_at_most_a_thousandth_of_a_bit():
    logits = np.random.default_rng(0).normal(0, 3, (200, 512))
    exact = np.exp(logits - logits.max(1, keepdims=True))
    exact /= exact.sum(1, keepdims=True)
    for shift in range(8):
        found = step_frequencies(fine_steps(logits), shift)
        assert (found == np.floor(found)).all()
        found /= found.sum(1, keepdims=True)
        lost = (exact * np.log2(exact / np.maximum(found, 2.0**-40))).sum(1).mean()
        assert 0 <= lost < 1e-3


def test_logits_that_differ_by_less_than_the_margin_give_equal_frequencies_at_a_shift_that_is_not_spoiled():
    generator = np.random.default_rng(1)
    logits = generator.normal(0, 3, (64, 512))
    logits[:, ::7] = np.rint(logits[:, ::7] * 128) / 128  # on edges of eighths, so that some shifts are spoiled
    logits[0, :] = 3 / 128 + np.arange(512) / 16
    spoiled = spoiled_shifts(logits[:1])
    assert spoiled == {3}
    other = logits[:1] + generator.uniform(-1, 1, (1, 512)) * 1e-10
    for shift in range(8):
        same = (step_frequencies(fine_steps(logits[:1]), shift) == step_frequencies(fine_steps(other), shift)).all()
        assert same == (shift not in spoiled)
    assert spoiled_shifts(logits) == set(range(8))


def test_a_prior_gives_the_frequencies_of_its_own_logits():
    (prior,) = [prior.double().eval() for prior in tiny_priors([8])]
    steps = PriorFrequencies(prior, (3, 4), batch_size=2, coarser=[], condition=None, shift=5)
    codes = torch.randint(8, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        shares = prior(codes).softmax(1).flatten(2).numpy()
    for i in range(12):
        found = steps.next()
        np.testing.assert_allclose(found / found.sum(1, keepdims=True), shares[:, :, i], atol=0.02)
        steps.push(codes.flatten(1)[:, i].numpy().astype(np.int32))


def brute_force(near, codes, coarser, place):
    """The formula of the class, by going through all codes before a place again, in exact fractions as integers."""
    places = [index for index in np.ndindex(codes.shape) if index < place]
    k = len(near)
    seen = np.ones(k, dtype=object) + sum((near[codes[index]].astype(object) for index in places), np.zeros(k, object))
    share = [(int(n) << 20) // int(seen.sum()) for n in seen]

    def contexts(index):
        found = []
        for axis in range(len(index)):
            before = list(index)
            before[axis] -= 1
            found.append(int(codes[tuple(before)]) if index[axis] else k)
        if coarser is not None:
            found.append(int(coarser[index[0], index[1] // 2, index[2] // 2]))
        return found

    total = np.zeros(k, object)
    for number, context in enumerate(contexts(place)):
        alike = [near[codes[index]].astype(object) for index in places if contexts(index)[number] == context]
        counts = sum(alike, np.zeros(k, object))
        total += [((int(n) << 20) + 16 * s) // (int(counts.sum()) + 16) for n, s in zip(counts, share, strict=True)]
    return total


@pytest.mark.parametrize("with_coarser", [False, True])
def test_adaptive_frequencies_are_those_of_the_formula(with_coarser):
    generator = np.random.default_rng(2)
    codes = generator.integers(0, 9, (3, 4, 4)).astype(np.int64)
    coarser = generator.integers(0, 9, (3, 2, 2)) if with_coarser else None
    near = near_codes(torch.from_numpy(generator.normal(size=(9, 2))))
    steps = AdaptiveFrequencies(near, (4, 4), images=3, coarser=coarser)
    for place in np.ndindex(codes.shape):
        assert steps.next()[0].tolist() == brute_force(near, codes, coarser, place).tolist()
        steps.push(np.array([codes[place]], dtype=np.int32))


def test_what_repeats_is_expected():
    near = near_codes(torch.randn(64, 4, generator=torch.Generator().manual_seed(0)))
    pattern = np.random.default_rng(3).integers(0, 64, 16)
    steps, bits = AdaptiveFrequencies(near, (4, 4), images=20, coarser=None), []
    for _ in range(20):
        for code in pattern:
            found = steps.next()[0]
            bits.append(-math.log2(found[code] / found.sum()))
            steps.push(np.array([code], dtype=np.int32))
    assert np.mean(bits[:16]) > 4
    assert np.mean(bits[-16:]) < 2.5


def test_near_codes_count_by_the_distance_of_their_vectors():
    near = near_codes(torch.arange(40.0)[:, None])
    assert near[20, 20] == 8
    assert near[20, [18, 19, 21, 22]].tolist() == [2] * 4
    assert near[20, [12, 14, 17, 23, 26]].tolist() == [1] * 5
    assert near[20].sum() == 8 + 4 * 2 + 12
    with pytest.raises(InputError, match="5000 codes"):
        near_codes(torch.zeros(5000, 1))
