"""Our EMA codebook against MONAI's: time and peak extra memory of forward + EMA update, one thread.

`python -m benchmarks --only quantizer_time quantizer_memory`. Both run on the same latents, from a codebook that is
already initialized. Memory is the growth of the process' resident peak over its size before the step, each measured
in a fresh process: it counts every allocation, torch's and any library's.
"""

from __future__ import annotations

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from monai.networks.layers.vector_quantizer import EMAQuantizer
from torch import Tensor

from monai_vqgen.networks import EMACodebook

__all__ = ["QuantizerCase", "memory_ratio", "time_ratio"]

STEPS = ("ours", "monai")


class QuantizerCase(NamedTuple):
    """A batch of latents and a codebook; the defaults are the sizes of the project's promises."""

    side: int = 32
    batch: int = 32
    num_codes: int = 512
    dim: int = 64
    repeats: int = 9

    def latents(self, *, batch: int | None = None) -> Tensor:
        """`(batch, dim, side, side)`: by default 32,768 vectors."""
        torch.manual_seed(0)
        return torch.randn(batch or self.batch, self.dim, self.side, self.side)

    def step(self, which: str) -> Callable[[Tensor], object]:
        """One training step of a quantizer without gradients: forward and the update of its averages."""
        if which == "monai":
            theirs = EMAQuantizer(spatial_dims=2, num_embeddings=self.num_codes, embedding_dim=self.dim).train()
            return theirs.forward
        ours = EMACodebook(self.num_codes, self.dim, kmeans=False).train()

        def run(latents_bds: Tensor) -> object:
            ours.prepare(latents_bds)
            quantized = ours(latents_bds)
            ours.learn(latents_bds, quantized.codes_bs)
            return quantized

        return run


def time_ratio(case: QuantizerCase) -> dict[str, object]:
    """MONAI's time over ours, medians of alternating runs."""
    latents = case.latents()
    steps = {which: case.step(which) for which in STEPS}
    seconds: dict[str, list[float]] = {which: [] for which in STEPS}
    with torch.no_grad():
        for repeat in range(case.repeats + 1):
            for which, step in steps.items():
                start = time.perf_counter()
                step(latents)
                if repeat:  # the first run of each warms up
                    seconds[which].append(time.perf_counter() - start)
    ours, theirs = (statistics.median(seconds[which]) for which in STEPS)
    return {"ratio": theirs / ours, "ours_ms": 1e3 * ours, "monai_ms": 1e3 * theirs, "repeats": case.repeats}


def memory_ratio(case: QuantizerCase) -> dict[str, object]:
    """MONAI's peak extra memory over ours, each in a fresh process."""
    figures = {}
    for which in STEPS:
        command = [sys.executable, "-m", "benchmarks.quantizer", which, json.dumps(case._asdict())]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        root = Path(__file__).resolve().parents[1]
        result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root, env=environment)
        figures[which] = json.loads(result.stdout.splitlines()[-1])
    ratio = figures["monai"]["peak_extra_mb"] / max(figures["ours"]["peak_extra_mb"], 1e-3)
    return {
        "ratio": ratio,
        "ours_mb": figures["ours"]["peak_extra_mb"],
        "monai_mb": figures["monai"]["peak_extra_mb"],
        "measured_by": figures["ours"]["measured_by"],
    }


def peak_extra_megabytes(case: QuantizerCase, which: str) -> dict[str, object]:
    """Growth of this process' resident peak during one step, after a small step has loaded all code."""
    torch.set_num_threads(1)
    step, latents = case.step(which), case.latents()
    with torch.no_grad():
        step(case.latents(batch=1))
        before, how = _start_peak()
        step(latents)
    return {"peak_extra_mb": max(0.0, (_peak(how) - before) / 1e6), "measured_by": how}


def _start_peak() -> tuple[float, str]:
    """Bytes resident now, with the peak reset to it where the kernel can (Linux: 5 to clear_refs, proc(5))."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS"), "VmHWM"
    except OSError:
        return _maximum(), "ru_maxrss"


def _peak(how: str) -> float:
    return _status("VmHWM") if how == "VmHWM" else _maximum()


def _status(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return float(found.group(1)) * 1024


def _maximum() -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes on Linux (getrusage(2))
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


if __name__ == "__main__":
    print(json.dumps(peak_extra_megabytes(QuantizerCase(**json.loads(sys.argv[2])), sys.argv[1])))
