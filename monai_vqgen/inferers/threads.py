"""The time of work on a device that runs ahead of Python, and how many threads work on small products."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["finished_time", "one_thread"]


def finished_time(device: torch.device | str) -> float:
    """Seconds of a monotonic clock, read once the device has done all that was asked of it.

    A GPU returns before it has computed: a clock read at once would measure how long it took to ask.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work on one CPU thread inside, and on as many as before afterwards.

    A position of cached sampling is some hundred products of a few microseconds. Threads that share such a product
    wait for each other longer than they compute: on two idle cores one thread took two thirds of the time of two, and
    beside other work two threads took many times as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
