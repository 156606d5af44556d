"""Times are those of finished work, and threads come back."""

from __future__ import annotations

import pytest
import torch

from monai_vqgen.inferers import finished_time, one_thread


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
