"""The figures of denoising are those of the noise, the filters and the weights that they name."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from factories import tiny_model, write_slices
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

from monai_vqgen.transforms import LoadSlice
from tools.denoising import add_rician_noise, measure_denoising, table

SIGMA = 0.1


def test_rician_noise_has_the_moments_of_its_distribution_and_keeps_what_is_black():
    level, sigma = 0.4, 0.1
    noisy = add_rician_noise(np.full((4, 100, 100), level), sigma, np.random.default_rng(0))
    assert np.mean(noisy.astype(float) ** 2) == pytest.approx(level**2 + 2 * sigma**2, rel=0.01)
    fourth = level**4 + 8 * sigma**2 * level**2 + 8 * sigma**4  # Rice 1944
    assert np.mean(noisy.astype(float) ** 4) == pytest.approx(fourth, rel=0.02)
    assert not add_rician_noise(np.zeros((1, 8, 8)), sigma, np.random.default_rng(0)).any()


def test_figures_are_those_of_each_method_at_the_strength_that_validation_chose(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.denoising.importlib.util.find_spec", lambda name: None)
    model = tiny_model(with_priors=False)
    model.save(tmp_path / "weights")
    write_slices(tmp_path / "slices", counts={"training": 2, "validation": 3, "test": 4})
    figures = measure_denoising(
        tmp_path / "slices", tmp_path / "out", model=str(tmp_path / "weights"), sigmas=[SIGMA], shifts=[1, 3], every=2
    )
    assert json.loads((tmp_path / "out/denoising.json").read_text()) == json.loads(json.dumps(figures))
    assert (tmp_path / "out/denoising.png").stat().st_size > 1000
    rows = figures["sigmas"]["0.1"]
    assert len(rows) == 1 + 4 + 2
    clean, tuning = (load(tmp_path, split, range(0, 4, 2) if split == "test" else range(3)) for split in SPLITS)
    random = np.random.default_rng(0)
    noisy, noisy_tuning = add_rician_noise(clean, SIGMA, random), add_rician_noise(tuning, SIGMA, random)
    assert rows["noisy"]["psnr"] == pytest.approx(psnr(noisy.clip(0, 1), clean), rel=1e-4)
    ours = model.denoise(torch.from_numpy(noisy)[:, None], shifts=3)[:, 0].numpy()
    assert rows[f"{tmp_path / 'weights'} weights, shifts 3"]["psnr"] == pytest.approx(psnr(ours, clean), rel=1e-4)
    for name, run in {"non-local means": nl_means, "total variation": total_variation}.items():
        tried = {factor: psnr(run(noisy_tuning, factor), tuning) for factor in np.arange(0.4, 1.3, 0.1).round(1)}
        strength = rows[name]["strength"]
        assert tried[strength] >= max(tried[0.6], tried[0.8], tried[1.0])
        assert rows[name]["psnr"] == pytest.approx(psnr(run(noisy, strength).clip(0, 1), clean), rel=1e-4)
    assert rows["noisy"]["psnr_by_subject"].keys() == {"test0", "test2"}
    lines = table(figures).splitlines()
    assert len(lines) == 2 + len(rows)
    assert lines[2].startswith(f"| noisy | {rows['noisy']['psnr']:.2f}, ")


SPLITS = ("test", "validation")


def load(folder, split, numbers):
    return np.stack([LoadSlice()(folder / f"slices/images/{split}{i}.nii.gz").numpy()[0] for i in numbers])


def psnr(made, clean):
    return float(np.mean(-10 * np.log10(np.mean((made - clean) ** 2, axis=(1, 2)))))


def nl_means(noisy, factor):
    options = {"patch_size": 5, "patch_distance": 6, "fast_mode": True, "sigma": SIGMA}
    return np.stack([denoise_nl_means(image, h=factor * SIGMA, **options) for image in noisy]).astype(np.float32)


def total_variation(noisy, factor):
    return np.stack([denoise_tv_chambolle(image, weight=factor * SIGMA) for image in noisy]).astype(np.float32)
