"""One process or several: devices, the process group, and which rows of a data set belong to this process.

`torchrun` tells each process who it is by RANK, LOCAL_RANK and WORLD_SIZE. Without these variables everything here
describes a single process.
"""

from __future__ import annotations

import os
from collections.abc import Sequence, Sized
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DistributedSampler

from monai_vqgen.errors import InputError

__all__ = [
    "distribute",
    "end_distributed",
    "local_device",
    "own_block",
    "process_count",
    "process_rank",
    "shard",
    "start_distributed",
    "wait_for_all",
]

Item = TypeVar("Item")


def local_device() -> torch.device:
    """The GPU of this process (LOCAL_RANK) where CUDA is available, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def process_rank() -> int:
    """Number of this process in the group, 0 when there is no group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def process_count() -> int:
    """Number of processes in the group, 1 when there is no group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def start_distributed(device: torch.device | str) -> None:
    """Join the process group that `torchrun` describes: NCCL for CUDA, gloo for the CPU.

    Raises:
        InputError: The process was not started by `torchrun`.
    """
    if dist.is_initialized():
        return
    if "WORLD_SIZE" not in os.environ:
        raise InputError(
            "The multi-GPU configuration needs torchrun, and WORLD_SIZE is not set. Start it with "
            "`torchrun --standalone --nproc_per_node=N -m monai.bundle run ...`, or leave the multi_gpu file out."
        )
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def end_distributed() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def distribute(objective: nn.Module, device: torch.device | str) -> nn.Module:
    """Wrap an objective for several processes; returned as it is when there is no process group.

    Buffers are not broadcast at every step: the quantisers all-reduce their statistics, so codebooks stay equal.
    """
    if not dist.is_initialized():
        return objective
    device = torch.device(device)
    device_ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(objective, device_ids=device_ids, broadcast_buffers=False)


def own_block(items: Sequence[Item]) -> Sequence[Item]:
    """This process's share of a list: items that follow one another, as many as others have, or one more.

    Raises:
        InputError: there are fewer items than processes.
    """
    rank, count = process_rank(), process_count()
    if len(items) < count:
        raise InputError(f"{len(items)} items for {count} processes: ask for more, or start fewer processes")
    bounds = [len(items) * part // count for part in (rank, rank + 1)]
    return items[slice(*bounds)]


def wait_for_all() -> None:
    """Go on once every process has come this far; alone, at once."""
    if process_count() > 1:
        dist.barrier()


def shard(dataset: Sized, *, shuffle: bool, seed: int = 0) -> DistributedSampler | range:
    """The rows of this process: every `process_count()`-th of an order that only seed and epoch decide.

    A single process walks through the same order as many do together, so that equal global batches hold equal rows.
    Shuffled rows, for training, are filled up to a multiple of the processes, because every process must take the same
    number of steps. Rows in order, for validation, are not: each counts once.

    Raises:
        InputError: There are fewer rows than processes, or several processes run without the multi-GPU configuration.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        raise InputError(
            "Several processes were started, but they are not joined. Add the multi_gpu file of this stage: "
            "--config_file \"['bundle/configs/train.json','bundle/configs/multi_gpu_train.json']\"."
        )
    rank, count = process_rank(), process_count()
    if len(dataset) < count:
        raise InputError(
            f"The data set has {len(dataset)} items for {count} processes. Check dataset_dir: it must hold slices "
            "(or codes) of this split, at least one a process."
        )
    if not shuffle:
        return range(rank, len(dataset), count)
    return DistributedSampler(
        dataset,  # type: ignore[arg-type]
        num_replicas=count,
        rank=rank,
        shuffle=True,
        seed=seed,
    )
