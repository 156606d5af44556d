"""Cached sampling against whole-grid passes of the same network, and against the floor that its weights set.

`python -m benchmarks --only sampling_32_attention_b1 sampling_64_b16 sampling_floor_b1`. One thread. The plain path
needs one forward of the whole grid for each position; a few are timed before and after every cached run, so that both
see the same machine and neither pays for the other's data in the caches, and the total is extrapolated. Cached time is
all of `AncestralSampler.sample`: set-up, every position, noise and drawing.
"""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monai_vqgen.inferers import AncestralSampler
from monai_vqgen.networks import GatedPixelCNN

__all__ = ["SamplingCase", "floor_ratio", "sampling_ratio"]


class SamplingCase(NamedTuple):
    """A prior, a grid and a batch; the defaults are the sizes of the project's promises."""

    grid: int = 32
    batch: int = 1
    attention_every: int = 5
    channels: int = 128
    num_layers: int = 15
    num_codes: int = 512
    passes: int = 20
    """Whole-grid passes timed, as many before as after each cached run."""
    repeats: int = 5
    """Cached runs; the medians count."""

    def prior(self) -> GatedPixelCNN:
        """The prior, with fixed random weights: speed does not depend on their values."""
        torch.manual_seed(0)
        return GatedPixelCNN(
            self.num_codes,
            channels=self.channels,
            num_layers=self.num_layers,
            attention_every=self.attention_every,
        ).eval()


def sampling_ratio(case: SamplingCase) -> dict[str, object]:
    """Time of whole-grid passes over time of cached sampling."""
    prior = case.prior()
    grid = (case.grid, case.grid)
    positions = case.grid**2
    codes = torch.randint(case.num_codes, (case.batch, *grid))
    plain, layout = _fastest_layout(prior, codes)
    sampler = AncestralSampler([prior], batch_size=case.batch)
    whole: list[float] = []
    cached: list[float] = []
    at_once = max(1, case.passes // (2 * case.repeats))
    for seed in range(case.repeats):
        whole += [_seconds(plain, codes) for _ in range(at_once)]
        start = time.perf_counter()
        sampler.sample([grid], num_samples=case.batch, seed=seed)
        cached.append(time.perf_counter() - start)
        whole += [_seconds(plain, codes) for _ in range(at_once)]
    whole_total, cached_total = positions * statistics.median(whole), statistics.median(cached)
    return {
        "ratio": whole_total / cached_total,
        "cached_s": cached_total,
        "whole_grid_s_extrapolated": whole_total,
        "passes_measured": len(whole),
        "passes_needed": positions,
        "memory_format": layout,
        "cached_ms_per_position": 1e3 * cached_total / positions,
        "max_logit_difference": _logit_difference(prior, codes, rows=min(case.grid, 4)),
    }


def floor_ratio(case: SamplingCase) -> dict[str, object]:
    """Milliseconds a position over a matrix-vector product with all weights that each position must read."""
    prior = case.prior()
    grid = (case.grid, case.grid)
    weights = _weights_of_a_position(prior)
    vector = torch.randn(weights.shape[1])
    floors: list[float] = []
    sampler = AncestralSampler([prior], batch_size=1)
    cached: list[float] = []
    for seed in range(case.repeats):
        spent = 0.0

        def between(done: int, total: int) -> None:
            nonlocal spent
            start = time.perf_counter()
            torch.mv(weights, vector)  # the first read finds other data in the caches, as a position does not
            middle = time.perf_counter()
            for _ in range(4):
                torch.mv(weights, vector)
            floors.append((time.perf_counter() - middle) / 4)
            spent += time.perf_counter() - start

        start = time.perf_counter()
        sampler.sample([grid], num_samples=1, seed=seed, progress=between)
        cached.append((time.perf_counter() - start - spent) / case.grid**2)
    ours, floor = statistics.median(cached), statistics.median(floors)
    return {
        "ratio": ours / floor,
        "ms_per_position": 1e3 * ours,
        "floor_ms": 1e3 * floor,
        "weights_mb": weights.numel() * weights.element_size() / 1e6,
    }


def _weights_of_a_position(prior: GatedPixelCNN) -> Tensor:
    """All weights of the horizontal stack, the attentions and the head, as rows of one matrix."""
    network: Any = prior
    modules = [*network.output_blocks, network.head]
    for attention in network.attentions.values():
        modules += [attention.qkv, attention.output]
    for layer in network.layers:
        modules += [layer.convs[-1], layer.outputs[-1]]
    matrices = [p.detach().flatten() for m in modules for p in m.parameters() if p.ndim > 1]
    row = 2 * prior.channels
    flat = torch.cat(matrices)
    return flat[: flat.numel() // row * row].view(-1, row)


def _fastest_layout(prior: GatedPixelCNN, codes: Tensor) -> tuple[GatedPixelCNN, str]:
    """The forward as fast as PyTorch makes it: weights in the memory format that is faster here."""
    candidates = {
        "weights as built": prior,
        "weights channels last": copy.deepcopy(prior).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    }
    best = {}
    for name, candidate in candidates.items():
        _seconds(candidate, codes)
        best[name] = min(_seconds(candidate, codes) for _ in range(2))
    name = min(best, key=lambda key: best[key])
    return candidates[name], name


def _seconds(prior: GatedPixelCNN, codes: Tensor) -> float:
    with torch.inference_mode():
        start = time.perf_counter()
        prior(codes)
        return time.perf_counter() - start


def _logit_difference(prior: GatedPixelCNN, codes: Tensor, *, rows: int) -> float:
    with torch.inference_mode():
        expected = prior(codes).flatten(2)
        steps = prior.incremental(tuple(codes.shape[1:]), batch_size=codes.shape[0])
        largest = 0.0
        for i in range(rows * codes.shape[-1]):
            largest = max(largest, float((steps.logits() - expected[:, :, i]).abs().max()))
            steps.push(codes.flatten(1)[:, i])
    return largest
