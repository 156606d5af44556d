"""Sums and rows over all processes that train together; a process alone keeps its own."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def _is_parallel() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Add ``tensor`` up over all processes, in place."""
    if _is_parallel():
        dist.all_reduce(tensor)
    return tensor


def all_gather_rows(rows_nd: Tensor) -> Tensor:
    """Return the rows of all processes, rank by rank; the number of rows may differ between processes."""
    if not _is_parallel():
        return rows_nd
    parts: list[Tensor] = [rows_nd] * dist.get_world_size()
    dist.all_gather_object(parts, rows_nd.cpu())
    return torch.cat(parts).to(rows_nd.device)
