"""What denoising gains and costs: PSNR and brain SSIM of ours beside non-local means, total variation and BM3D.

`python -m tools denoising --slices SLICES` adds Rician noise to slices of a split (inside the brain: what is exactly 0
stays so), takes it out in each way, and writes `denoising.json` and a picture. The classical filters are told the true
sigma, ours are not; their strengths are those that do best on validation subjects at each sigma. BM3D is measured
where it is installed (`pip install bm3d`: free for non-commercial use only).
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

from monai_vqgen.data import load_datalist
from monai_vqgen.files import write_json
from monai_vqgen.metrics.reconstruction import reconstruction_scores
from monai_vqgen.models import TrainedModel
from monai_vqgen.plots.pictures import PictureRow, save_rows
from monai_vqgen.transforms import LoadSlice

__all__ = ["add_rician_noise", "measure_denoising", "table"]

PICTURED = 5  # slices in the picture
CHOSEN_ON = 12  # validation slices that choose a filter's strength


class Filter(NamedTuple):
    """A classical filter: `run(image_hw, sigma, strength)`, and strengths to choose among."""

    run: Callable[[NDArray, float, float], NDArray]
    strengths: Sequence[float]


def _nl_means(image_hw: NDArray, sigma: float, strength: float) -> NDArray:
    """Buades, Coll and Morel 2005, with patches of 5 x 5 pixels in a window of 13 x 13, h = strength * sigma."""
    options = {"patch_size": 5, "patch_distance": 6, "fast_mode": True}
    found: NDArray = denoise_nl_means(image_hw, h=strength * sigma, sigma=sigma, **options)
    return found


def _total_variation(image_hw: NDArray, sigma: float, strength: float) -> NDArray:
    found: NDArray = denoise_tv_chambolle(image_hw, weight=strength * sigma)  # Chambolle 2004
    return found


def _bm3d(image_hw: NDArray, sigma: float, strength: float) -> NDArray:
    """Dabov et al. 2007, by the authors' package."""
    import bm3d

    found: NDArray = bm3d.bm3d(image_hw, strength * sigma)
    return found


def _filters() -> dict[str, Filter]:
    found = {
        "non-local means": Filter(_nl_means, (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)),
        "total variation": Filter(_total_variation, (0.4, 0.6, 0.8, 1.0, 1.2)),
    }
    if importlib.util.find_spec("bm3d"):
        found["BM3D"] = Filter(_bm3d, (1.0,))
    return found


def add_rician_noise(images_nhw: NDArray, sigma: float, random: np.random.Generator) -> NDArray:
    """The magnitude of images with Gaussian noise in both channels (Gudbjartsson and Patz 1995); 0 stays 0.

    Examples:
        >>> add_rician_noise(np.zeros((1, 2, 2)), 0.1, np.random.default_rng(0)).max()
        np.float32(0.0)
    """
    real, imaginary = sigma * random.standard_normal((2, *images_nhw.shape))
    return np.where(images_nhw > 0, np.hypot(images_nhw + real, imaginary), 0).astype(np.float32)


def measure_denoising(
    slices: str | Path,
    output: str | Path,
    *,
    model: str = "denoising",
    split: str = "test",
    sigmas: Sequence[float] = (0.03, 0.06, 0.1),
    shifts: Sequence[int] = (1, 4, 8),
    every: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """Denoise slices of a split in every way.

    Args:
        slices: a folder of `extract_slices`.
        output: folder of `denoising.json` and `denoising.png`.
        model: of `TrainedModel.from_bundle`; the faithful weights stand beside it.
        split: whose slices.
        sigmas: of the noise, in units of the intensity window.
        shifts: numbers of reconstructions to take the mean of.
        every: takes one slice of so many.
        seed: of the noise.

    Returns:
        By sigma, by method: mean `psnr` (dB) and `ssim_brain`, `psnr_by_subject`, CPU seconds `seconds` a slice, and
        the `strength` of a filter.
    """
    items = load_datalist(slices, split)[::every]
    images_nhw = _loaded(items)
    tuning_nhw = _loaded(load_datalist(slices, "validation"))
    tuning_nhw = tuning_nhw[:: max(1, len(tuning_nhw) // CHOSEN_ON)]
    methods = {
        f"{name} weights, shifts {n}": _spun(name, n) for name in dict.fromkeys(("faithful", model)) for n in shifts
    }
    figures: dict[str, Any] = {"model": model, "split": split, "slices": len(items), "seed": seed, "sigmas": {}}
    pictured: list[PictureRow] = []
    for sigma in sigmas:
        random = np.random.default_rng(seed)
        noisy_nhw, noisy_tuning_nhw = (add_rician_noise(each, sigma, random) for each in (images_nhw, tuning_nhw))
        filters = {name: _chosen(each, noisy_tuning_nhw, tuning_nhw, sigma) for name, each in _filters().items()}
        rows: dict[str, Any] = {}
        made = {"noisy": noisy_nhw}
        rows["noisy"] = _scored(noisy_nhw, images_nhw, items)
        for name, run in (methods | {name: each[0] for name, each in filters.items()}).items():
            start = time.process_time()
            made[name] = run(noisy_nhw)
            seconds = (time.process_time() - start) / len(items)
            rows[name] = _scored(made[name], images_nhw, items) | {"seconds": seconds}
        for name, (_, strength) in filters.items():
            rows[name]["strength"] = strength
        figures["sigmas"][f"{sigma:g}"] = rows
        pictured = _pictured(images_nhw, made, f"{model} weights, shifts {max(shifts)}")
    Path(output).mkdir(parents=True, exist_ok=True)
    write_json(Path(output) / "denoising.json", figures)
    save_rows(pictured, Path(output) / "denoising.png", title=f"Rician noise, sigma {sigmas[-1]:g}")
    return figures


def _loaded(items: Sequence[Mapping[str, Any]]) -> NDArray:
    return np.stack([LoadSlice()(item["image"]).numpy()[0] for item in items])


def _spun(name: str, shifts: int) -> Callable[[NDArray], NDArray]:
    trained = TrainedModel.from_bundle(name, with_priors=False)
    return lambda noisy_nhw: trained.denoise(torch.from_numpy(noisy_nhw)[:, None], shifts=shifts)[:, 0].numpy()


def _chosen(
    filter_: Filter, noisy_nhw: NDArray, images_nhw: NDArray, sigma: float
) -> tuple[Callable[[NDArray], NDArray], float]:
    """The filter at the strength with the highest mean PSNR, and that strength."""

    def run(noisy_nhw: NDArray, strength: float) -> NDArray:
        return np.stack([filter_.run(image_hw, sigma, strength) for image_hw in noisy_nhw]).astype(np.float32)

    def psnr(strength: float) -> float:
        squared_nhw = (run(noisy_nhw, strength) - images_nhw) ** 2
        return float(-10 * np.log10(squared_nhw.mean(axis=(1, 2))).mean())

    best = max(filter_.strengths, key=psnr) if len(filter_.strengths) > 1 else filter_.strengths[0]
    return lambda noisy_nhw: run(noisy_nhw, best), best


def _scored(made_nhw: NDArray, images_nhw: NDArray, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    made, images = (torch.from_numpy(each)[:, None] for each in (made_nhw.clip(0, 1), images_nhw))
    scores = reconstruction_scores(made, images)
    subjects = np.array([item["subject"] for item in items])
    by_subject = {
        name: float(scores.psnr.numpy()[subjects == name].mean()) for name in dict.fromkeys(subjects.tolist())
    }
    return {
        "psnr": float(scores.psnr.mean()),
        "ssim_brain": float(scores.ssim_brain.nanmean()),
        "psnr_by_subject": by_subject,
    }


def _pictured(images_nhw: NDArray, made: Mapping[str, NDArray], ours: str) -> list[PictureRow]:
    some = np.linspace(0, len(images_nhw) - 1, min(PICTURED, len(images_nhw))).astype(int)
    shown = {"as scanned": images_nhw, "with noise": made["noisy"], "non-local means": made["non-local means"]}
    shown |= {"BM3D": made["BM3D"]} if "BM3D" in made else {}
    return [PictureRow(label, each[some]) for label, each in {**shown, "denoising": made[ours]}.items()]


def table(figures: Mapping[str, Any]) -> str:
    """The figures as a table in Markdown: PSNR and brain SSIM by sigma, and time as a ratio to non-local means."""
    sigmas = figures["sigmas"]
    first = next(iter(sigmas.values()))
    lines = [f"| PSNR in dB, brain SSIM | {' | '.join(f'sigma {sigma}' for sigma in sigmas)} | CPU time |"]
    lines += ["|" + "---|" * (len(sigmas) + 2)]
    seconds = {name: np.mean([rows[name].get("seconds", 0.0) for rows in sigmas.values()]) for name in first}
    for name in first:
        cells = [f"{rows[name]['psnr']:.2f}, {rows[name]['ssim_brain']:.3f}" for rows in sigmas.values()]
        cells.append(f"{seconds[name] / seconds['non-local means']:.2g}" if seconds[name] else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
