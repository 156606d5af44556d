"""The time of work on a device that runs ahead of Python."""

from __future__ import annotations

import time

import torch

__all__ = ["finished_time"]


def finished_time(device: torch.device | str) -> float:
    """Seconds of a monotonic clock, read once the device has done all that was asked of it.

    A GPU returns before it has computed: a clock read at once would measure how long it took to ask.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
