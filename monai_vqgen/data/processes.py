"""Several processes that share one task: rank and count, this process's part of a list, and gathering of results.

Everything here asks torch's process group, which `monai_vqgen.engines.start_distributed` joins; without one there is a
single process, and nothing waits or sends.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from monai_vqgen.errors import InputError, StageError
from monai_vqgen.files import replace_path

__all__ = [
    "check_joined",
    "end_distributed",
    "end_with_parent",
    "gather",
    "own_part",
    "parts_of_all",
    "process_count",
    "process_rank",
    "usable_cores",
    "wait_for_all",
]

Item = TypeVar("Item")

# One process may be hours ahead of another when a large data set is extracted or encoded. A process that dies is still
# noticed at once: its connections close, and torchrun ends the others.
_PATIENCE = timedelta(days=7)


_PR_SET_PDEATHSIG = 1  # prctl(2)
_SECONDS_BETWEEN_LOOKS = 1.0  # at whether the parent still lives, where the kernel does not tell


def end_with_parent(parent: int | None = None, *, by_kernel: bool = True) -> None:
    """End this process as soon as its parent has ended, however that ended: nothing goes on to write unseen.

    Args:
        parent: its number, where known: it may have ended before this call.
        by_kernel: let Linux end this process at once. Its signal also comes when only the parent's *thread* ends that
            started this process; without, and on other systems, a thread looks once a second.
    """
    started_by = os.getppid() if parent is None else parent
    if by_kernel and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != started_by:
            os._exit(1)
        return

    def watch() -> None:
        while os.getppid() == started_by:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def end_worker_with_parent(worker: int = 0) -> None:
    """`end_with_parent` as a `DataLoader` wants it of its `worker_init_fn`."""
    parent = multiprocessing.parent_process()
    if parent is None or os.getppid() == parent.pid:
        return end_with_parent(None if parent is None else parent.pid)

    def watch() -> None:  # started by a fork server, or its parent has just ended
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def process_rank() -> int:
    """Number of this process in the group, 0 without a group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_count() -> int:
    """Number of processes in the group, 1 without a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def check_joined() -> None:
    """Refuse to work when several processes were started without joining a process group.

    Raises:
        InputError: `torchrun` started several processes, and none joined the process group.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        raise InputError(
            "several processes were started, but they have not joined a process group; add the multi_gpu file of this "
            "stage, for example --config_file \"['bundle/configs/train.json','bundle/configs/multi_gpu_train.json']\""
        )


def own_part(items: Sequence[Item]) -> Sequence[Item]:
    """This process's part of a list: consecutive items, as many as other processes have or one more.

    With fewer items than processes some parts are empty. All parts together, by rank, are the list.
    """
    rank, count = process_rank(), process_count()
    return items[len(items) * rank // count : len(items) * (rank + 1) // count]


def gather(item: Item) -> list[Item]:
    """The items of all processes, by rank; every process calls this and gets the whole list.

    Args:
        item: anything that can be pickled; it is sent over the network, so not for gigabytes: see `parts_of_all`.

    Raises:
        StageError: another process ended before it reached this point.
    """
    if process_count() == 1:
        return [item]
    items: list[Any] = [None] * process_count()
    try:
        dist.all_gather_object(items, item, group=_group_beside(dist.group.WORLD))
    except RuntimeError as error:
        raise StageError(
            f"process {process_rank()} of {process_count()} stops because another one has ended; look at that one's "
            "error"
        ) from error
    return items


def wait_for_all() -> None:
    """Wait until every process has reached this point; a single process does not wait.

    Raises:
        StageError: another process ended before it reached this point.
    """
    gather(None)


@contextlib.contextmanager
def parts_of_all(own: Mapping[str, Tensor], output_dir: str | os.PathLike[str]) -> Iterator[list[Mapping[str, Tensor]]]:
    """Give the first process the tensors of all, by rank; the others wait until it has left the block.

    Every process calls this once, at the same place. The tensors pass through files in `output_dir`, which all must
    see: memory-mapped, they may take gigabytes. What a killed run left there is replaced.

    Args:
        own: this process's tensors by name.
        output_dir: created if missing; nothing of this is left in it afterwards.

    Raises:
        StageError: another process has ended.

    Examples:
        >>> with parts_of_all({"codes": Tensor([1.0])}, "out/codes") as parts:
        ...     [part["codes"].item() for part in parts]
        [1.0]
    """
    if process_count() == 1:
        yield [own]
        return
    folder = Path(output_dir) / ".parts"
    paths = [folder / f"{rank}.safetensors" for rank in range(process_count())]
    first = process_rank() == 0
    if first:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    wait_for_all()
    with replace_path(paths[process_rank()]) as partial:
        save_file(dict(own), partial)
    wait_for_all()
    try:
        yield [load_file(path) for path in paths] if first else []
    finally:
        if first:
            shutil.rmtree(folder, ignore_errors=True)
    wait_for_all()


def end_distributed() -> None:
    """Leave the process group and the one beside it, if there are any.

    Neither may outlive this call: the threads of a group that is alive when the interpreter ends can abort the process
    after all its work is done.
    """
    _group_beside.cache_clear()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@functools.lru_cache(maxsize=1)
def _group_beside(world: Any) -> Any:
    """A second group of all processes, patient and on the CPU whatever the training uses; made when first used."""
    return dist.new_group(backend="gloo", timeout=_PATIENCE)
