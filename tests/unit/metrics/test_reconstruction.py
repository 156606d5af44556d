"""Reconstruction scores against scikit-image and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics.regression import MultiScaleSSIMMetric
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from monai_vqgen.errors import InputError
from monai_vqgen.metrics.reconstruction import (
    ForegroundPSNRMetric,
    ForegroundSSIMMetric,
    baseline_scores,
    mean_image,
    mean_scores,
    ms_ssim_weights,
    reconstruction_scores,
    ssim_map,
)


def brain_like(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Textured discs on black, touching the border on one side so that the padding matters."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    images = []
    for _ in range(count):
        radius = size * rng.uniform(0.3, 0.45)
        disc = (rows - size * 0.4) ** 2 + (columns - size / 2) ** 2 < radius**2
        images.append(disc * (0.5 + 0.3 * np.sin(rows / rng.uniform(2, 5)) + 0.1 * rng.standard_normal((size, size))))
    return torch.tensor(np.clip(images, 0, 1), dtype=torch.float32)[:, None]


def noisy(images: torch.Tensor, seed: int = 1) -> torch.Tensor:
    return (images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)


@pytest.mark.parametrize("size", [24, 65])
def test_ssim_agrees_with_scikit_image_over_image_and_brain(size):
    originals, images = brain_like(3, size), noisy(brain_like(3, size))
    scores = reconstruction_scores(images, originals)
    for index in range(3):
        x, y = images[index, 0].double().numpy(), originals[index, 0].double().numpy()
        mean, full = structural_similarity(
            x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, full=True
        )
        assert scores.ssim[index].item() == pytest.approx(mean, abs=1e-5)
        assert scores.ssim_brain[index].item() == pytest.approx(full[y > 0.02].mean(), abs=1e-5)
        np.testing.assert_allclose(ssim_map(images, originals)[index, 0].numpy(), full, atol=2e-4)


def test_psnr_and_mae_agree_with_scikit_image_and_numpy():
    originals, images = brain_like(2, 32), noisy(brain_like(2, 32))
    scores = reconstruction_scores(images, originals)
    for index in range(2):
        x, y = images[index, 0].double().numpy(), originals[index, 0].double().numpy()
        brain = y > 0.02
        assert scores.psnr[index].item() == pytest.approx(peak_signal_noise_ratio(y, x, data_range=1), abs=1e-3)
        assert scores.psnr_brain[index].item() == pytest.approx(-10 * np.log10(((x - y)[brain] ** 2).mean()), abs=1e-3)
        assert scores.mae[index].item() == pytest.approx(np.abs(x - y).mean(), abs=1e-6)
        assert scores.mae_brain[index].item() == pytest.approx(np.abs(x - y)[brain].mean(), abs=1e-6)


def test_identical_pair_scores_one_and_all_black_scores_low():
    """The reference notebook gave an all-black image 0.9913, above an identical pair."""
    originals = brain_like(4, 64)
    same = mean_scores([reconstruction_scores(originals, originals)])
    black = mean_scores([reconstruction_scores(torch.zeros_like(originals), originals)])
    for name in ("ssim", "ssim_brain", "ms_ssim", "ms_ssim_brain"):
        assert same[name] == pytest.approx(1.0, abs=1e-6)
        assert black[name] < 0.6
    assert black["ssim_brain"] < 0.05
    assert same["psnr"] == same["psnr_brain"] == 100.0
    assert same["mae"] == 0.0


def test_ms_ssim_is_monais_with_the_scales_that_fit():
    assert [len(ms_ssim_weights((n, n))) for n in (12, 43, 44, 98, 99, 175, 176)] == [1, 2, 3, 3, 4, 4, 5]
    assert sum(ms_ssim_weights((64, 64))) == pytest.approx(1)
    originals, images = brain_like(2, 64), noisy(brain_like(2, 64))
    metric = MultiScaleSSIMMetric(spatial_dims=2, weights=ms_ssim_weights((64, 64)))
    torch.testing.assert_close(reconstruction_scores(images, originals).ms_ssim[:, None], metric(images, originals))


def test_scores_work_in_three_dimensions():
    original = torch.rand(1, 1, 12, 13, 14, generator=torch.Generator().manual_seed(0))
    image = (original + 0.1).clamp(0, 1)
    expected = structural_similarity(
        image[0, 0].double().numpy(),
        original[0, 0].double().numpy(),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
    )
    assert reconstruction_scores(image, original).ssim.item() == pytest.approx(expected, abs=1e-5)


def test_slice_without_brain_does_not_count_for_the_brain():
    originals = torch.cat([brain_like(1, 32), torch.zeros(1, 1, 32, 32)])
    images = originals + 0.05
    scores = reconstruction_scores(images, originals)
    assert scores.ssim_brain[1].isnan()
    assert mean_scores([scores])["ssim_brain"] == pytest.approx(scores.ssim_brain[0].item())


def test_cumulative_metrics_average_the_same_scores():
    originals, images = brain_like(4, 32), noisy(brain_like(4, 32))
    scores = reconstruction_scores(images, originals)
    for metric, expected in ((ForegroundSSIMMetric(), scores.ssim_brain), (ForegroundPSNRMetric(), scores.psnr_brain)):
        for part in (slice(0, 3), slice(3, 4)):
            metric(images[part], originals[part])
        assert metric.aggregate().item() == pytest.approx(expected.mean().item(), rel=1e-5)


def test_baselines_are_black_and_the_mean_of_training_images():
    training, test = brain_like(6, 32, seed=3), brain_like(2, 32, seed=4)
    mean = mean_image([training[:4], training[4:]])
    np.testing.assert_allclose(mean.numpy(), training.double().numpy().mean(0), atol=1e-6)
    baselines = baseline_scores([test[:1], test[1:]], mean)
    assert baselines.all_black["mae"] == pytest.approx(test.mean().item(), rel=1e-5)
    assert baselines.mean_image["mae"] == pytest.approx((test - mean).abs().mean().item(), rel=1e-5)
    assert baselines.mean_image["psnr"] > baselines.all_black["psnr"]


@pytest.mark.parametrize(
    ("images", "originals", "message"),
    [
        (torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), "11 pixels"),
        (torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 17), "cannot be compared"),
        (torch.zeros(1, 2, 16, 16), torch.zeros(1, 1, 16, 16), "cannot be compared"),
    ],
)
def test_images_that_cannot_be_scored_are_named(images, originals, message):
    with pytest.raises(InputError, match=message):
        reconstruction_scores(images, originals)


def test_empty_data_is_an_error():
    with pytest.raises(InputError, match="empty"):
        mean_scores([])
    with pytest.raises(InputError, match="training split is empty"):
        mean_image([])


def test_scores_of_several_channels_are_the_means_of_each_by_itself():
    images, originals = torch.rand(2, 3, 48, 48), torch.rand(2, 3, 48, 48).clamp_min(0.1)
    whole = reconstruction_scores(images, originals)
    each = [reconstruction_scores(images[:, [c]], originals[:, [c]]) for c in range(3)]
    for name in ("ssim", "ssim_brain", "mae", "mae_brain"):
        torch.testing.assert_close(getattr(whole, name), torch.stack([getattr(one, name) for one in each]).mean(0))
