"""The time of work on a device that runs ahead of Python, threads for small products, and memory that runs out."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from monai_vqgen.errors import InputError

__all__ = ["finished_time", "in_memory", "one_thread"]

T = TypeVar("T")
logger = logging.getLogger(__name__)


def in_memory(work: Callable[[slice], T], part: slice) -> list[T]:
    """Do work on a batch, the part of a whole; where memory runs out, once more on the batch's two halves.

    Args:
        work: called with the part; what it did before it failed is done again.
        part: with its start and stop.

    Returns:
        One result, or one of each half.

    Raises:
        InputError: memory ran out again; what the batch took is free by then.

    Examples:
        >>> in_memory(lambda part: list(range(10))[part], slice(2, 5))
        [[2, 3, 4]]
    """
    count, middle = part.stop - part.start, (part.start + part.stop + 1) // 2
    told = ""
    for parts in ([part], [slice(part.start, middle), slice(middle, part.stop)] if count > 1 else [part]):
        try:
            return [work(each) for each in parts]
        except (MemoryError, RuntimeError) as error:
            told = str(error).split("\n")[0]  # the error itself holds the frames, and with them the memory
            scarce = ("out of memory", "can't allocate memory", "not enough memory")
            if not (isinstance(error, MemoryError) or any(words in told.lower() for words in scarce)):
                raise
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning("Memory ran out with a batch of %d", parts[0].stop - parts[0].start)
    raise InputError(
        f"memory ran out with a batch of {count}, and with {'its halves' if count > 1 else 'it again'} ({told}): "
        "give a smaller batch_size, smaller images, or a device with more memory"
    )


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
