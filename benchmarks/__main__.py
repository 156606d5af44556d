"""Run all benchmarks and write one JSON file: `python -m benchmarks --output out/bench/results.json`.

Every `ratio` is the other's figure over ours, but for `sampling_floor_b1` (ours over the floor that reading the
weights sets) and `extraction_to_gunzip` (ours over the bare decompression). One thread, all in one run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.quantizer import QuantizerCase, memory_ratio, time_ratio
from benchmarks.sampling import SamplingCase, floor_ratio, sampling_ratio

QUICK_SAMPLING = {"grid": 6, "channels": 8, "num_layers": 2, "attention_every": 2, "num_codes": 16, "repeats": 1}
QUICK_QUANTISER = {"side": 8, "batch": 2, "num_codes": 16, "dim": 8, "repeats": 1}


def sampling(*, quick: bool, **sizes: int) -> SamplingCase:
    return SamplingCase(**{**sizes, **(QUICK_SAMPLING if quick else {})})


def quantizer(*, quick: bool) -> QuantizerCase:
    return QuantizerCase(**(QUICK_QUANTISER if quick else {}))


def extraction(quick: bool) -> dict[str, object]:
    """Ours over the bare decompression; by the module that knows the scans."""
    from benchmarks.extraction import run

    figures = run(pairs=1, scaling=False) if quick else run()
    return {"ratio": figures.pop("extraction_to_gunzip"), **figures}


BENCHMARKS: Mapping[str, Callable[[bool], dict[str, object]]] = {
    "sampling_32_attention_b1": lambda quick: sampling_ratio(sampling(quick=quick)),
    "sampling_32_attention_b16": lambda quick: sampling_ratio(sampling(quick=quick, batch=16, repeats=2, passes=8)),
    "sampling_64_b16": lambda quick: sampling_ratio(
        sampling(quick=quick, grid=64, batch=16, attention_every=0, repeats=1, passes=4)
    ),
    "sampling_floor_b1": lambda quick: floor_ratio(sampling(quick=quick)),
    "quantizer_time": lambda quick: time_ratio(quantizer(quick=quick)),
    "quantizer_memory": lambda quick: memory_ratio(quantizer(quick=quick)),
    "extraction_to_gunzip": extraction,
}


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads_used": torch.get_num_threads(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_before": os.getloadavg()[0],
    }


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for; the file is written anew after each benchmark, so an interrupted run keeps its results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--output", type=Path, default=Path("out/bench/results.json"))
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)
    results: dict[str, object] = {"machine": machine(), "quick": options.quick}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    bar = tqdm(options.only, file=sys.stderr)
    for name in bar:
        bar.set_description(name)
        figures = BENCHMARKS[name](options.quick)
        results[name] = figures
        details = ", ".join(f"{k} {v:.4g}" for k, v in figures.items() if k != "ratio" and isinstance(v, float))
        bar.write(f"{name}: ratio {figures['ratio']:.4g} ({details})", file=sys.stdout)
        unfinished = options.output.with_suffix(".part")
        unfinished.write_text(json.dumps(results, indent=4) + "\n")
        unfinished.replace(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
