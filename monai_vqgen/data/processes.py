"""Several processes that share one task: which of them this is, its part of a list, and how results come together.

Everything asks torch's process group, which `monai_vqgen.engines.start_distributed` joins; without one there is a
single process, and nothing here waits or sends.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from monai_vqgen.errors import InputError, StageError

__all__ = ["check_joined", "gather", "own_part", "process_count", "process_rank", "wait_for_all"]

Item = TypeVar("Item")

# One process may be hours ahead of another when a large data set is cut or encoded. A process that has died is noticed
# at once all the same: its connections close, and torchrun ends the others.
_PATIENCE = timedelta(days=7)


def process_rank() -> int:
    """Number of this process in the group, 0 when there is no group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def process_count() -> int:
    """Number of processes in the group, 1 when there is no group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def check_joined() -> None:
    """Refuse to work when several processes were started that do not know of each other.

    Raises:
        InputError: `torchrun` started several processes, and none joined the process group.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        raise InputError(
            "Several processes were started, but they are not joined. Add the multi_gpu file of this stage, for "
            "example --config_file \"['bundle/configs/train.json','bundle/configs/multi_gpu_train.json']\"."
        )


def own_part(items: Sequence[Item]) -> Sequence[Item]:
    """This process's part of a list: items that follow one another, as many as others have, or one more.

    With fewer items than processes some parts are empty. All parts, by rank, are the list again.
    """
    rank, count = process_rank(), process_count()
    return items[len(items) * rank // count : len(items) * (rank + 1) // count]


def gather(item: Item) -> list[Item]:
    """What each process brings, by rank; every process calls this and gets the whole list.

    Args:
        item: anything that can be pickled; it goes over the network, so nothing of many gigabytes.

    Raises:
        StageError: another process has ended before it came here.
    """
    if process_count() == 1:
        return [item]
    items: list[Any] = [None] * process_count()
    try:
        dist.all_gather_object(items, item, group=_patient_group())
    except RuntimeError as error:
        raise _left_alone() from error
    return items


def wait_for_all() -> None:
    """Go on once every process has come this far; alone, at once.

    Raises:
        StageError: another process has ended before it came here.
    """
    if process_count() == 1:
        return
    try:
        dist.barrier(group=_patient_group())
    except RuntimeError as error:
        raise _left_alone() from error


def _patient_group() -> Any:
    return _group_beside(dist.group.WORLD)


@functools.lru_cache(maxsize=1)
def _group_beside(world: Any) -> Any:
    """All processes once more, with patience, and on the CPU whatever the training uses; made at the first meeting."""
    return dist.new_group(backend="gloo", timeout=_PATIENCE)


def _left_alone() -> StageError:
    return StageError(
        f"Process {process_rank()} of {process_count()} stops because another one has ended; that one's error is the "
        "one to look at."
    )
