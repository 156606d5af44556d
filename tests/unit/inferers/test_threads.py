"""Times are those of finished work, and threads come back."""

from __future__ import annotations

import pytest
import torch

from monai_vqgen.errors import InputError
from monai_vqgen.inferers import finished_time, one_thread
from monai_vqgen.inferers.threads import in_memory


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
