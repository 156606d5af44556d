"""One plane of a real scan, scaled and ready, against the bare decompression of the same file.

`python -m benchmarks.extraction` prints ours / bare (median of paired runs, one thread), and how several files scale
with two processes. Needs the float32 originals of ds002748 (MONAI_VQGEN_REAL_DATA or ../shared/data); without them
it measures phantoms and says so.
"""

from __future__ import annotations

import gzip
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_vqgen.data import SliceOptions, extract_slices, make_phantoms, read_volume
from monai_vqgen.transforms.intensity import scale_to_window
from monai_vqgen.transforms.size import apply_frame, place_frame
from monai_vqgen.transforms.volume_slicing import cut_plane, locate_planes, prepare_volume

POSITION_MM = 65.0  # below the top of the brain: basal ganglia


def extract_one(path: Path) -> NDArray:
    """Read, find the brain, cut one plane at 1.736 mm, scale, fit to 128 x 128."""
    volume = read_volume(path)
    prepared = prepare_volume(volume.voxels_s, volume.affine, "axial", name=str(path))
    (plane,) = locate_planes(prepared, [POSITION_MM])
    assert plane is not None
    cut = cut_plane(prepared, plane, pixel_mm=1.736)
    return scale_to_window(apply_frame(cut.pixels, place_frame(cut.box, (128, 128))), prepared.window)


def gunzip(path: Path) -> int:
    """The bare decompression."""
    with gzip.open(path, "rb") as stream:
        return len(stream.read())


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _scans(folder: Path) -> tuple[list[Path], str]:
    root = Path(os.environ.get("MONAI_VQGEN_REAL_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    originals = sorted((root / "volumes").glob("ds002748_*.nii.gz"))
    if originals:
        return originals, "ds002748 originals, float32"
    return make_phantoms(folder / "phantoms", 3, voxel_mm=1.0, progress=False), "phantoms (no real scans here)"


def _paired(path: Path, pairs: int) -> dict[str, float]:
    extract_one(path), gunzip(path)
    runs = [(_seconds(lambda: extract_one(path)), _seconds(lambda: gunzip(path))) for _ in range(pairs)]
    return {
        "seconds": statistics.median(ours for ours, _ in runs),
        "bare_seconds": statistics.median(bare for _, bare in runs),
        "ratio": statistics.median(ours / bare for ours, bare in runs),
    }


def _scaling(scans: list[Path], folder: Path) -> dict[str, float]:
    """Twelve files, one process against two."""
    many = folder / "many"
    many.mkdir()
    for copy in range(12):
        (many / f"sub-{copy:02d}_T1w.nii.gz").symlink_to(scans[copy % len(scans)].resolve())

    def work(processes: int) -> Callable[[], object]:
        out = folder / f"slices_{processes}"
        workers = 0 if processes == 1 else processes
        options: Any = {"num_workers": workers, "overwrite": True, "progress": False}
        return lambda: extract_slices(many, out, slices=SliceOptions(on_trim="warn"), **options)

    one, two = _seconds(work(1)), _seconds(work(2))
    return {"one_process_seconds": one, "two_processes_seconds": two, "speedup": one / two}


def run(*, pairs: int = 7, scaling: bool = True) -> dict[str, Any]:
    """Measure; `extraction_to_gunzip` is the median over the files of ours / bare."""
    with tempfile.TemporaryDirectory() as name:
        scans, what = _scans(Path(name))
        figures = {path.name: _paired(path, pairs) for path in scans}
        result: dict[str, Any] = {
            "extraction_to_gunzip": float(np.median([f["ratio"] for f in figures.values()])),
            "scans": what,
            "files": figures,
        }
        if scaling:
            result["scaling"] = _scaling(scans, Path(name))
    return result


def main() -> None:
    """Print the ratios."""
    print(json.dumps(run(), indent=4))


if __name__ == "__main__":
    main()
