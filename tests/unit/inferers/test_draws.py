"""Noise against scipy and numpy's own generator, truncation against plain numpy, times of finished work, threads."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import torch
from scipy import stats

from monai_vqgen.errors import InputError
from monai_vqgen.inferers import GumbelNoise, Truncation
from monai_vqgen.inferers.draws import finished_time, in_memory, one_thread


def test_noise_follows_the_standard_gumbel_distribution():
    noise = GumbelNoise(3, level=1, num_codes=50).rows(range(20), first=0, count=40).flatten().double().numpy()
    assert stats.kstest(noise, "gumbel_r").pvalue > 0.01


def test_rows_are_independent_of_the_block_the_batch_and_the_order_they_are_drawn_in():
    noise = GumbelNoise(3, level=0, num_codes=7)
    block = noise.rows([4, 5, 6], first=0, count=12)
    assert torch.equal(noise.rows([6], first=9, count=3), block[2:, 9:])
    assert torch.equal(noise.rows([6, 4], first=2, count=1), block[[2, 0], 2:3])


def test_seed_sample_and_level_each_give_noise_of_their_own():
    draws = [
        GumbelNoise(seed, level=level, num_codes=8).rows([sample], first=position, count=1).flatten().numpy()
        for seed in (0, 1, 2**63)
        for level in (0, 1)
        for sample in (0, 1, 2**40)
        for position in (0, 1)
    ]
    correlation = np.corrcoef(np.stack(draws))
    assert np.all(correlation[~np.eye(len(draws), dtype=bool)] < 0.999)
    assert len({draw.tobytes() for draw in draws}) == len(draws)


def test_the_numbers_stay_the_same_from_release_to_release():
    """Frozen: a change here changes every sample that anyone has drawn with a seed."""
    noise = GumbelNoise(7, level=1, num_codes=3).rows([2], first=5, count=1).flatten()
    words = np.random.Philox(counter=5, key=np.array([7, (2 << 16) + 1], dtype=np.uint64)).random_raw(3)
    expected = -np.log(-np.log((words >> np.uint64(11)) / 2.0**53))
    np.testing.assert_allclose(noise.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("arguments", [{"seed": -1}, {"seed": 2**64}, {"level": -1}, {"level": 2**16}])
def test_keys_out_of_range_are_refused(arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        GumbelNoise(arguments.get("seed", 0), level=arguments.get("level", 0), num_codes=3)
    with pytest.raises(InputError, match="sample index"):
        GumbelNoise(0, level=0, num_codes=3).rows([-1], first=0, count=1)


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
def test_a_temperature_of_zero_or_less_is_refused_with_what_to_do(temperature):
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


def test_the_clock_waits_for_a_gpu_and_for_nothing_else(monkeypatch):
    calls: list[str] = []
    monkeypatch.setattr("torch.cuda.synchronize", lambda device: calls.append(f"wait for {device}"))
    monkeypatch.setattr("time.perf_counter", lambda: calls.append("clock") or 1.5)
    assert finished_time("cuda:1") == 1.5
    assert finished_time(torch.device("cpu")) == 1.5
    assert calls == ["wait for cuda:1", "clock", "clock"]


def test_threads_are_given_back_also_after_an_error():
    def fail() -> None:
        with one_thread():
            assert torch.get_num_threads() == 1
            raise RuntimeError("inside")

    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="inside"):
            fail()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("numpy has none left"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    ],
)
def test_a_batch_that_does_not_fit_is_halved_once_and_then_named(error):
    most, seen = 2, []

    def work(part):
        seen.append((part.start, part.stop))
        if part.stop - part.start > most:
            raise error
        return list(range(10))[part]

    assert in_memory(work, slice(3, 7)) == [[3, 4], [5, 6]]
    assert seen == [(3, 7), (3, 5), (5, 7)]
    most = 1
    with pytest.raises(InputError, match=r"a batch of 4, and with its halves .*smaller batch_size"):
        in_memory(work, slice(3, 7))
    most = 0
    with pytest.raises(InputError, match="a batch of 1, and with it again"):
        in_memory(work, slice(3, 4))


def test_another_error_is_passed_on_at_once():
    calls = []

    def work(part):
        calls.append(part)
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        in_memory(work, slice(0, 4))
    assert len(calls) == 1


def test_what_a_batch_took_is_free_before_its_halves_are_tried_and_when_the_error_comes():
    class Activations:
        """Stands for gigabytes."""

    taken: list[weakref.ref] = []

    def work(part):
        assert all(each() is None for each in taken)
        activations = Activations()
        taken.append(weakref.ref(activations))
        raise MemoryError("none left")

    with pytest.raises(InputError):
        in_memory(work, slice(0, 4))
    assert len(taken) == 2
    assert all(each() is None for each in taken)
