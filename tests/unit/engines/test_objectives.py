"""Objectives add up what they say, learn only while training, and take one item for one item."""

from __future__ import annotations

import math

import factories
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from skimage.metrics import structural_similarity

from monai_vqgen.engines import AutoencoderObjective, PrepareCodes, PrepareImages, PriorObjective, place
from monai_vqgen.errors import InputError
from monai_vqgen.networks import EMACodebook, HierarchicalVQVAE
from monai_vqgen.weights import fingerprint


def tiny_autoencoder(*, kmeans: bool = True) -> HierarchicalVQVAE:
    torch.manual_seed(0)
    quantizers = [EMACodebook(8, 4, kmeans=kmeans), EMACodebook(8, 4, kmeans=kmeans)]
    return HierarchicalVQVAE(channels=8, residual_channels=4, quantizers=quantizers, finer_dropout=0.0)


def test_loss_is_the_weighted_sum_that_numpy_gives():
    network, images = tiny_autoencoder(kmeans=False), torch.rand(3, 1, 16, 16)
    levels = network.train()._pass(images, learning=False).levels
    result = AutoencoderObjective(network, mse_weight=2.0, l1_weight=0.5, codebook_weight=3.0).train()(images)
    difference = (result["reconstruction"] - images).detach().numpy()
    codebook = sum(float(level.loss.detach()) for level in levels)
    assert codebook > 0.05  # or its weight would not be seen
    expected = 2 * np.mean(difference**2) + 0.5 * np.mean(np.abs(difference)) + 3 * codebook
    assert float(result["loss"].detach()) == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(result["psnr"].numpy(), -10 * np.log10((difference**2).mean(axis=(1, 2, 3))), rtol=1e-4)


def test_the_smooth_l1_term_is_quadratic_below_beta_and_linear_above():
    network, images = tiny_autoencoder(), torch.rand(2, 1, 16, 16)
    result = AutoencoderObjective(network, mse_weight=0.0, smooth_l1_weight=2.0, smooth_l1_beta=0.3).eval()(images)
    distance = np.abs((result["reconstruction"] - images).detach().double().numpy())
    assert (distance < 0.3).any()
    assert (distance > 0.3).any()
    expected = np.where(distance < 0.3, distance**2 / 0.6, distance - 0.15).mean()
    assert float(result["loss"].detach()) == pytest.approx(2 * expected, rel=1e-5)
    with pytest.raises(InputError, match="smooth_l1_beta=0"):
        AutoencoderObjective(network, smooth_l1_beta=0)


def test_the_ssim_term_is_one_minus_the_ssim_of_scikit_image():
    network, images = tiny_autoencoder(), torch.rand(2, 1, 24, 16)
    plain = AutoencoderObjective(network).eval()(images)
    result = AutoencoderObjective(network, mse_weight=0.0, ssim_weight=0.5).eval()(images)
    torch.testing.assert_close(result["reconstruction"], plain["reconstruction"])
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0, "full": True}
    valid = (slice(5, -5), slice(5, -5))  # MONAI averages where the whole window lies inside the image
    expected = np.mean(
        [
            structural_similarity(image[0].numpy(), made[0].detach().numpy(), **window)[1][valid].mean()
            for image, made in zip(images, result["reconstruction"], strict=True)
        ]
    )
    assert float(result["loss"].detach()) == pytest.approx(0.5 * (1 - expected), rel=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_what_is_seen_is_encoded_and_compared_with_the_images(training):
    network = tiny_autoencoder(kmeans=False)
    images, seen = torch.rand(2, 1, 16, 16), torch.rand(2, 1, 16, 16)
    prepared, _, others, _ = PrepareImages()({"image": images, "seen": seen.double()}, "cpu")
    with torch.no_grad():
        expected = network.train(training)._pass(seen, learning=False).reconstruction_bcs
        codes = network.encode(seen)
    result = AutoencoderObjective(network).train(training)(prepared, *others)
    torch.testing.assert_close(result["reconstruction"], expected)
    torch.testing.assert_close(result["mse"], (expected - images).square().flatten(1).mean(1))
    assert all(torch.equal(result[f"codes_{level}"], grid) for level, grid in enumerate(codes))


def test_evaluation_changes_nothing_and_training_does():
    objective = AutoencoderObjective(tiny_autoencoder())
    objective.train()(torch.rand(2, 1, 16, 16))
    before = fingerprint(objective)
    objective.eval()(torch.rand(2, 1, 16, 16))
    assert fingerprint(objective) == before
    objective.train()(torch.rand(2, 1, 16, 16))
    assert fingerprint(objective) != before


def test_evaluation_reconstructs_what_forward_does_for_sizes_that_do_not_divide():
    network, images = tiny_autoencoder(), torch.rand(2, 1, 13, 18)
    network.train_pass(images)
    result = AutoencoderObjective(network).eval()(images)
    torch.testing.assert_close(result["reconstruction"], network(images))
    assert "codebook_loss" not in result


def test_weights_that_cannot_work_are_refused():
    with pytest.raises(InputError, match="one of mse_weight, l1_weight or ssim_weight"):
        AutoencoderObjective(tiny_autoencoder(), mse_weight=0.0)


@pytest.mark.parametrize("training", [True, False])
def test_slices_smaller_than_the_window_of_ssim_are_refused_before_anything_is_learned(training):
    objective = AutoencoderObjective(tiny_autoencoder(), ssim_weight=0.1).train(training)
    before = fingerprint(objective)
    with pytest.raises(InputError, match=r"ssim_weight=0\.1 .*\(16, 10\) pixels.*ssim_weight=0 or larger"):
        objective(torch.rand(2, 1, 16, 10))
    assert fingerprint(objective) == before
    assert objective(torch.rand(2, 1, 16, 11))["loss"].isfinite()
    assert AutoencoderObjective(tiny_autoencoder()).train(training)(torch.rand(2, 1, 16, 10))["loss"].isfinite()


class UniformPrior(torch.nn.Module):
    """Knows nothing: every code costs log2 K bits."""

    def forward(self, codes_bs, coarser, condition):
        return torch.zeros(codes_bs.shape[0], 32, *codes_bs.shape[1:])


def test_a_prior_that_knows_nothing_pays_log2_of_the_codebook():
    result = PriorObjective(UniformPrior())(torch.randint(0, 32, (3, 4, 5)))
    assert float(result["loss"]) == pytest.approx(math.log(32))
    torch.testing.assert_close(result["bits_per_code"], torch.full((3,), 5.0))


class GivenLogits(torch.nn.Module):
    def __init__(self, logits_bks):
        super().__init__()
        self.logits_bks = logits_bks

    def forward(self, codes_bs, coarser, condition):
        return self.logits_bks


@pytest.mark.parametrize("grid", [(4, 5), (2, 3, 4)])
def test_a_prior_pays_for_the_code_that_is_there(grid):
    rng = np.random.default_rng(0)
    logits, codes = rng.normal(size=(3, 7, *grid)), rng.integers(0, 7, (3, *grid))
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -np.take_along_axis(log_probs, codes[:, None], 1).reshape(3, -1).mean(1)
    result = PriorObjective(GivenLogits(torch.tensor(logits)))(torch.tensor(codes))
    torch.testing.assert_close(result["nats_per_code"].double(), torch.tensor(expected), rtol=1e-5, atol=1e-6)
    assert float(result["loss"]) == pytest.approx(expected.mean(), rel=1e-5)


def test_images_are_prepared_as_plain_float_tensors_channels_last():
    images, target = PrepareImages()({"image": MetaTensor(torch.ones(2, 3, 4, 4, dtype=torch.float64))}, "cpu")
    assert type(images) is torch.Tensor
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert target is None


def test_codes_are_prepared_with_all_coarser_levels_coarsest_first():
    batch = {f"codes_{level}": torch.full((2, 2, 2), level) for level in range(3)}
    codes, target, (coarser, condition), _ = PrepareCodes(2)(batch, "cpu")
    assert int(codes.max()) == 2
    assert [int(grid.max()) for grid in coarser] == [0, 1]
    assert target is None
    assert condition is None


def test_placing_a_network_keeps_its_values():
    network = tiny_autoencoder()
    before = fingerprint(network)
    assert fingerprint(place(network, "cpu")) == before


@pytest.mark.parametrize("training", [True, False])
def test_images_and_reconstructions_of_different_channels_are_not_compared(training):
    images = torch.rand(2, 3, 16, 16)
    three = factories.tiny_autoencoder(in_channels=3, out_channels=1)
    with pytest.raises(InputError, match=r"\(2, 3, 16, 16\) are reconstructed as \(2, 1, 16, 16\); set .*out_channels"):
        AutoencoderObjective(three).train(training)(images)
    with pytest.raises(InputError, match=r"images of 3 channels for a network of 1: set network_def::in_channels"):
        AutoencoderObjective(factories.tiny_autoencoder()).train(training)(images)
    both = factories.tiny_autoencoder(in_channels=3)
    assert AutoencoderObjective(both).train(training)(images)["loss"].isfinite()
