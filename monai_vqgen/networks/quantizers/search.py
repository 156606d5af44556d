"""Nearest-code search and k-means over latent vectors, in little memory.

Shape suffixes: n vectors, d code dimension, k codebook size.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["canonical_order", "kmeans", "nearest_codes"]

_CPU_CHUNK_ELEMENTS = 1 << 17  # distances held at once: 512 KiB of float32, which stays in a core's second-level cache
_DEVICE_CHUNK_ELEMENTS = 1 << 24  # 64 MiB, enough to fill a GPU with one product
_LANES = 32  # columns left for argmin after amin; measured best of 16, 32 and 64 for 512 codes


@torch.no_grad()
def nearest_codes(rows_nd: Tensor, embeddings_kd: Tensor) -> Tensor:
    """Return the index of the nearest embedding (Euclidean) of each row, ``(n,)`` int64."""
    half_norms_k = embeddings_kd.square().sum(1).mul_(0.5)
    transposed_dk = embeddings_kd.t()
    if torch.jit.is_tracing() or torch.compiler.is_compiling():  # an exported graph takes any number of rows at once
        return torch.addmm(half_norms_k, rows_nd, transposed_dk, alpha=-1).argmin(1)
    elements = _CPU_CHUNK_ELEMENTS if rows_nd.device.type == "cpu" else _DEVICE_CHUNK_ELEMENTS
    chunk = max(1, elements // embeddings_kd.shape[0])
    codes_n = torch.empty(rows_nd.shape[0], dtype=torch.int64, device=rows_nd.device)
    for start in range(0, rows_nd.shape[0], chunk):
        rows = rows_nd[start : start + chunk]
        codes_n[start : start + chunk] = _argmin(torch.addmm(half_norms_k, rows, transposed_dk, alpha=-1))
    return codes_n


def _argmin(distances_nk: Tensor) -> Tensor:
    """Return the column of each row's least entry.

    On a CPU torch's ``amin`` is vectorised and its ``argmin`` is not, so the columns are first reduced by ``amin`` to
    :data:`_LANES`; the two short searches that remain find the lane, and the place within it.
    """
    rows, columns = distances_nk.shape
    if columns % _LANES or distances_nk.device.type != "cpu":
        return distances_nk.argmin(1)
    lanes = distances_nk.view(rows, columns // _LANES, _LANES)
    lane_n = lanes.amin(1).argmin(1)
    place_n = lanes[torch.arange(rows), :, lane_n].argmin(1)
    return place_n * _LANES + lane_n


@torch.no_grad()
def canonical_order(rows_nd: Tensor, generator: torch.Generator) -> Tensor:
    """Return ``rows_nd`` sorted by a seeded random projection.

    The same set of rows gives the same order however it was spread over batches or processes, so what is drawn by
    index afterwards does not depend on the number of processes.
    """
    direction_d = torch.randn(rows_nd.shape[1], generator=generator, dtype=torch.float64).to(rows_nd.device)
    return rows_nd[torch.argsort(rows_nd.double() @ direction_d)]


@torch.no_grad()
def kmeans(rows_nd: Tensor, num_codes: int, *, generator: torch.Generator, iterations: int = 10) -> Tensor:
    """Cluster rows into ``num_codes`` centers ``(k, d)`` by Lloyd's algorithm from k-means++ seeds.

    With fewer rows than centers the rows repeat with a small seeded jitter (1 % of the rows' deviation).

    Args:
        rows_nd: at least one finite row.
        num_codes: number of centers.
        generator: CPU generator that draws the seeds (Arthur and Vassilvitskii 2007).
        iterations: Lloyd steps.
    """
    if rows_nd.shape[0] < num_codes:
        return _repeat_with_jitter(rows_nd, num_codes, generator)
    centers_kd = _seed_plus_plus(rows_nd, num_codes, generator)
    for _ in range(iterations):
        codes_n = nearest_codes(rows_nd, centers_kd)
        sums_kd = torch.zeros_like(centers_kd).index_add_(0, codes_n, rows_nd)
        counts_k = torch.bincount(codes_n, minlength=num_codes).to(rows_nd.dtype)
        filled = counts_k > 0
        centers_kd[filled] = sums_kd[filled] / counts_k[filled, None]
    return centers_kd


def _seed_plus_plus(rows_nd: Tensor, num_codes: int, generator: torch.Generator) -> Tensor:
    uniform_k = torch.rand(num_codes, generator=generator, dtype=torch.float64)
    centers_kd = rows_nd.new_empty(num_codes, rows_nd.shape[1])
    squared_n = rows_nd.square().sum(1)
    distance_n = torch.full_like(squared_n, torch.inf)
    index = int(uniform_k[0] * rows_nd.shape[0])
    for k in range(num_codes):
        centers_kd[k] = rows_nd[index]
        to_center_n = (squared_n - 2 * (rows_nd @ rows_nd[index]) + squared_n[index]).clamp_min_(0)
        torch.minimum(distance_n, to_center_n, out=distance_n)
        cumulative_n = distance_n.double().cumsum(0)
        target = uniform_k[(k + 1) % num_codes].to(cumulative_n.device) * cumulative_n[-1]
        index = min(int(torch.searchsorted(cumulative_n, target)), rows_nd.shape[0] - 1)
    return centers_kd


def _repeat_with_jitter(rows_nd: Tensor, num_codes: int, generator: torch.Generator) -> Tensor:
    picks = torch.arange(num_codes, device=rows_nd.device) % rows_nd.shape[0]
    spread_d = rows_nd.std(0, unbiased=False) + 1e-3
    jitter_kd = torch.randn(num_codes, rows_nd.shape[1], generator=generator).to(rows_nd)
    jitter_kd[: rows_nd.shape[0]] = 0
    return rows_nd[picks] + 0.01 * spread_d * jitter_kd
