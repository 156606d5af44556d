"""Which device a process works on."""

from __future__ import annotations

import logging

import pytest
import torch

from monai_vqgen.engines import local_device, start_distributed
from monai_vqgen.errors import InputError


@pytest.mark.parametrize(
    ("cuda", "mps", "expected", "told"),
    [(True, False, "cuda:1", False), (False, True, "cpu", True), (False, False, "cpu", False)],
)
def test_a_cuda_gpu_is_taken_and_an_apple_gpu_is_offered(cuda, mps, expected, told, monkeypatch, caplog):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    with caplog.at_level(logging.INFO):
        assert local_device() == torch.device(expected)
    assert ("--device mps" in caplog.text) == told


def test_several_processes_on_apple_gpus_are_refused():
    with pytest.raises(InputError, match="not on mps: give --device cpu"):
        start_distributed("mps")
