"""One process or several: devices, the process group, and which rows of a data set belong to this process.

`torchrun` tells each process who it is by RANK, LOCAL_RANK and WORLD_SIZE. Without these variables everything here
describes a single process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence, Sized
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DistributedSampler

from monai_vqgen.data.processes import (
    check_joined,
    end_distributed,
    end_with_parent,
    own_part,
    process_count,
    process_rank,
    wait_for_all,
)
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

logger = logging.getLogger(__name__)


def local_device() -> torch.device:
    """The GPU of this process (LOCAL_RANK) where CUDA is available, else the CPU.

    Apple's GPUs (MPS) are used where they are asked for by ``--device mps``, and never by themselves: what this package
    needs in float64, which they lack, is computed on the CPU, but no such GPU was there to try it on.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if torch.backends.mps.is_available():
        logger.info("The GPU of this machine is not used unless you give --device mps")
    return torch.device("cpu")


def start_distributed(device: torch.device | str) -> None:
    """Join the process group that `torchrun` describes: NCCL for CUDA, gloo for the CPU.

    Raises:
        InputError: The process was not started by `torchrun`, or the device is one that processes cannot share.
    """
    if dist.is_initialized():
        return
    if torch.device(device).type not in ("cuda", "cpu"):
        raise InputError(f"several processes work on CUDA devices or on the CPU, not on {device}: give --device cpu")
    if "WORLD_SIZE" not in os.environ:
        raise InputError(
            "The multi-GPU configuration needs torchrun, and WORLD_SIZE is not set. Start it with "
            "`torchrun --standalone --nproc_per_node=N -m monai.bundle run ...`, or leave the multi_gpu file out"
        )
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun's own; a shell that starts processes may end before them
        end_with_parent()
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "SLURM_JOB_ID" in os.environ and "LOCAL_RANK" in os.environ:
        # in a SLURM job ignite takes SLURM's word for the local rank, and SLURM counts torchruns, not their processes
        os.environ["SLURM_LOCALID"] = os.environ["LOCAL_RANK"]
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def distribute(objective: nn.Module, device: torch.device | str) -> nn.Module:
    """Wrap an objective for several processes; returned as it is when there is no process group.

    Buffers are not broadcast at every step: the quantizers all-reduce their statistics, so codebooks stay equal.
    """
    if not dist.is_initialized():
        return objective
    device = torch.device(device)
    device_ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(objective, device_ids=device_ids, broadcast_buffers=False)


def own_block(items: Sequence[Item]) -> Sequence[Item]:
    """This process's part of a list that has something for everyone; see `own_part`.

    Raises:
        InputError: there are fewer items than processes.
    """
    if len(items) < process_count():
        raise InputError(f"{len(items)} items for {process_count()} processes: ask for more, or start fewer processes")
    return own_part(items)


def shard(dataset: Sized, *, shuffle: bool, seed: int = 0) -> DistributedSampler | range:
    """The rows of this process: every `process_count()`-th of an order that only seed and epoch decide.

    A single process walks through the same order as many do together, so that equal global batches hold equal rows.
    Shuffled rows, for training, are filled up to a multiple of the processes, because every process must take the same
    number of steps. Rows in order, for validation, are not: each counts once.

    Raises:
        InputError: There are fewer rows than processes, or several processes run without the multi-GPU configuration.
    """
    check_joined()
    rank, count = process_rank(), process_count()
    if len(dataset) < count:
        raise InputError(
            f"The data set has {len(dataset)} items for {count} processes. Check dataset_dir: it must hold slices "
            "(or codes) of this split, at least one a process"
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
