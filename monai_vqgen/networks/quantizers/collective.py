"""What codebooks share over processes: sums, gathered rows, and one rank's tensor for all."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["all_gather_rows", "all_reduce_sum", "is_parallel"]


def is_parallel() -> bool:
    """Say whether more than one process trains together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Add ``tensor`` up over all processes, in place; alone, leave it."""
    if is_parallel():
        dist.all_reduce(tensor)
    return tensor


def all_gather_rows(rows_nd: Tensor) -> Tensor:
    """Return the rows of all processes, rank by rank; the number of rows may differ between processes."""
    if not is_parallel():
        return rows_nd
    world = dist.get_world_size()
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows_nd.device) for _ in range(world)]
    dist.all_gather(sizes, torch.tensor([rows_nd.shape[0]], device=rows_nd.device))
    longest = int(max(sizes))
    padded = rows_nd.new_zeros(longest, rows_nd.shape[1])
    padded[: rows_nd.shape[0]] = rows_nd
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])
