"""How fast each stage runs here, and what a million slices would cost at these rates.

`python -m benchmarks.scaling` prints two tables and writes `out/bench/scaling.json`; `--data SCANS` takes real scans in
place of phantoms, `--device cuda` measures the networks on a GPU, `--quick` only shows that everything runs. One
process with one thread on a CPU: for several, divide the hours by their number (docs/SCALING.md says when that holds).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from monai_vqgen.data import SliceOptions, extract_slices, make_phantoms
from monai_vqgen.engines import AutoencoderObjective, PriorObjective, channels_last, place, write_codes
from monai_vqgen.networks import EMACodebook, GatedPixelCNN, HierarchicalVQVAE
from monai_vqgen.transforms import LoadSliced

__all__ = ["MODELS", "Estimate", "Model", "Rates", "estimate", "measure"]

MILLION = 1_000_000
EPOCHS = 20  # of the autoencoder and of each prior; the demo's real scans took 20 for the first
SECONDS_AN_HOUR = 3600
BYTES_A_PIXEL = 4  # float32, as slices lie in memory
WARM_UP = 1


class Model(NamedTuple):
    """A size of slices and the networks for it."""

    name: str
    image_size: int
    """Pixels a side."""
    pixel_mm: float
    strides: tuple[int, ...]
    """Of each level, coarsest first."""
    prior_layers: tuple[int, ...]
    attention_every: int = 5
    """In the coarsest level's prior; the others have none."""
    channels: int = 128
    num_codes: int = 512
    batch_size: int = 16

    def autoencoder(self) -> HierarchicalVQVAE:
        """Untrained, its codebooks ready for use."""
        quantizers = [EMACodebook(self.num_codes, 16, kmeans=False) for _ in self.strides]
        return HierarchicalVQVAE(
            channels=self.channels,
            residual_channels=max(1, self.channels // 4),
            strides=self.strides,
            quantizers=quantizers,
        )

    def prior(self, level: int) -> GatedPixelCNN:
        """Of one level, 0 = coarsest, conditioned on the position."""
        return GatedPixelCNN(
            self.num_codes,
            channels=self.channels,
            num_layers=self.prior_layers[level],
            attention_every=0 if level else self.attention_every,
            coarser_codes=[self.num_codes] * level,
            condition_dim=2,
        )

    def grid(self, level: int) -> tuple[int, int]:
        """Codes of one level."""
        return (self.image_size // self.strides[level],) * 2


MODELS = (
    Model("128x128, two levels", 128, 1.736, (8, 4), (15, 12)),
    Model("256x256, three levels", 256, 0.868, (16, 8, 4), (15, 12, 12), batch_size=4),
)
QUICK = Model("quick", 32, 7.0, (8, 4), (2, 2), attention_every=2, channels=8, num_codes=16, batch_size=2)


class Rates(NamedTuple):
    """What was measured of one model, with one process."""

    slices_cut_per_s: float
    slices_encoded_per_s: float
    """Reading them included."""
    slices_trained_per_s: float
    """Autoencoder, steps alone."""
    grids_trained_per_s: tuple[float, ...]
    """Prior of each level, coarsest first."""
    training_mb: tuple[float, ...]
    """Peak memory of a training step beyond the libraries': autoencoder, then each prior."""
    slice_bytes: float
    """On disk, as NIfTI with gzip."""
    code_bytes: float
    """On disk, all levels of a slice."""


class Estimate(NamedTuple):
    """A cost: a product of rates."""

    what: str
    value: float
    unit: str


class _Steps(NamedTuple):
    items_per_s: float
    peak_mb: float


def measure(model: Model, scans: Path, *, device: str = "cpu", steps: int = 5, scratch: Path) -> Rates:
    """Run every stage of a model on a few slices.

    Args:
        model: what to measure.
        scans: folder with at least three subjects.
        device: "cpu" or "cuda", for the networks.
        steps: training steps to take the time of.
        scratch: empty folder for slices and codes.
    """
    slices, codes = scratch / "slices", scratch / "codes"
    start = time.perf_counter()
    report = extract_slices(
        scans,
        slices,
        slices=SliceOptions(image_size=model.image_size, pixel_mm=model.pixel_mm, on_trim="warn"),
        num_workers=0,
        progress=False,
    )
    number, cutting_s = sum(report.num_slices.values()), time.perf_counter() - start
    network = place(model.autoencoder(), device)
    start = time.perf_counter()
    load: Any = LoadSliced("image")
    write_codes(network, slices, codes, preprocessing=load, batch_size=model.batch_size)
    encoding_s = time.perf_counter() - start
    cases = [_alone(_train_autoencoder, model, device, steps)]
    cases += [_alone(_train_prior, model, device, steps, level) for level in range(len(model.strides))]
    code_bytes = sum(2 * side * side for side, _ in map(model.grid, range(len(model.strides))))
    return Rates(
        slices_cut_per_s=number / cutting_s,
        slices_encoded_per_s=number / encoding_s,
        slices_trained_per_s=cases[0].items_per_s,
        grids_trained_per_s=tuple(case.items_per_s for case in cases[1:]),
        training_mb=tuple(case.peak_mb for case in cases),
        slice_bytes=sum(path.stat().st_size for path in (slices / "images").iterdir()) / number,
        code_bytes=(codes / "codes.json").stat().st_size / number + code_bytes,
    )


def _alone(work: Callable[..., _Steps], *arguments: Any) -> _Steps:
    """In a fresh process, whose peak of memory is the work's."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _train_autoencoder(model: Model, device: str, steps: int) -> _Steps:
    images_bcs = torch.rand(model.batch_size, 1, model.image_size, model.image_size, device=device)
    objective = AutoencoderObjective(model.autoencoder())
    return _time_steps(objective, (channels_last(images_bcs),), device, steps)


def _train_prior(model: Model, device: str, steps: int, level: int) -> _Steps:
    grids = [
        torch.randint(model.num_codes, (model.batch_size, *model.grid(i)), device=device) for i in range(level + 1)
    ]
    condition_bf = torch.rand(model.batch_size, 2, device=device)
    return _time_steps(PriorObjective(model.prior(level)), (grids[-1], grids[:-1], condition_bf), device, steps)


def _time_steps(objective: nn.Module, batch: Sequence[Any], device: str, steps: int) -> _Steps:
    """Forward, backward and optimizer, after a step that warms up."""
    torch.set_num_threads(1)
    place(objective, device).train()
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-4, fused=True)
    before_mb, start = _peak_mb(device), 0.0
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            start = _now(device)
        optimizer.zero_grad(set_to_none=True)
        objective(*batch)["loss"].backward()
        optimizer.step()
    seconds = _now(device) - start
    return _Steps(steps * len(batch[0]) / seconds, _peak_mb(device) - before_mb)


def _now(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak_mb(device: str) -> float:
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e6
    # proc(5); getrusage(2) would count the parent's peak as well, as the process starts as its copy
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def estimate(model: Model, rates: Rates, *, slices: int = MILLION, epochs: int = EPOCHS) -> list[Estimate]:
    """Hours of one process, memory and disk for a number of slices."""

    def hours(per_s: float, times: int = 1) -> float:
        return slices * times / per_s / SECONDS_AN_HOUR

    priors = [
        Estimate(f"prior of level {level}, {epochs} epochs", hours(per_s, epochs), "h")
        for level, per_s in enumerate(rates.grids_trained_per_s)
    ]
    return [
        Estimate("cutting the slices", hours(rates.slices_cut_per_s), "h"),
        Estimate(f"autoencoder, {epochs} epochs", hours(rates.slices_trained_per_s, epochs), "h"),
        Estimate("encoding", hours(rates.slices_encoded_per_s), "h"),
        *priors,
        Estimate("slices on disk", slices * rates.slice_bytes / 1e9, "GB"),
        Estimate("codes on disk", slices * rates.code_bytes / 1e9, "GB"),
        Estimate(
            "all slices in memory (cache_rate 1), each process",
            slices * model.image_size**2 * BYTES_A_PIXEL / 1e9,
            "GB",
        ),
        Estimate(f"a training step at batch_size {model.batch_size}, at most", max(rates.training_mb) / 1e3, "GB"),
    ]


def _rows(rates: Rates) -> list[Estimate]:
    priors = [
        Estimate(f"prior of level {level}, training", per_s, "grids/s")
        for level, per_s in enumerate(rates.grids_trained_per_s)
    ]
    return [
        Estimate("cutting slices", rates.slices_cut_per_s, "slices/s"),
        Estimate("autoencoder, training", rates.slices_trained_per_s, "slices/s"),
        Estimate("encoding", rates.slices_encoded_per_s, "slices/s"),
        *priors,
        Estimate("a slice on disk", rates.slice_bytes / 1e3, "kB"),
        Estimate("a slice's codes on disk", rates.code_bytes / 1e3, "kB"),
    ]


def _table(head: str, columns: Sequence[str], rows: Sequence[Sequence[Estimate]]) -> str:
    """Markdown: a line for each thing, a column for each model; what a model has not is left empty."""
    names = list(dict.fromkeys(row.what for column in sorted(rows, key=len, reverse=True) for row in column))
    found = [{row.what: f"{row.value:,.3g} {row.unit}" for row in column} for column in rows]
    lines = [f"| {' | '.join([head, *columns])} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {' | '.join([name, *(column.get(name, '') for column in found)])} |" for name in names]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print both tables, keep the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of scans, of three subjects or more; phantoms by default")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--steps", type=int, default=5, help="training steps to take the time of")
    parser.add_argument("--quick", action="store_true", help="one tiny model, to see that everything runs")
    parser.add_argument("--output", type=Path, default=Path("out/bench/scaling.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    models, steps = ((QUICK,), 1) if options.quick else (MODELS, options.steps)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        scans = options.data or Path(name) / "scans"
        if options.data is None:
            make_phantoms(scans, 3, voxel_mm=4.0 if options.quick else 1.0, progress=False)
        rates = [
            measure(model, scans, device=options.device, steps=steps, scratch=Path(name) / str(model.image_size))
            for model in models
        ]
    names = [model.name for model in models]
    where = f"{options.device}, load of the machine before: {load_before:.1f} on {os.cpu_count()} cores"
    print(_table(f"rate, one process ({where})", names, [_rows(found) for found in rates]), end="\n\n")
    costs = [estimate(model, found) for model, found in zip(models, rates, strict=True)]
    print(_table("a million slices, one process", names, costs))
    content = {"device": options.device, "load_before": load_before, "torch": torch.__version__}
    content["rates"] = {name: found._asdict() for name, found in zip(names, rates, strict=True)}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(content, indent=4) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
