"""The feature network of ImageNet sees what the images show."""

from __future__ import annotations

import torch

from monai_vqgen.metrics import NetworkFeatures
from monai_vqgen.networks import GenerativeVQVAE, slice_discriminators
from tools.__main__ import main


def test_the_network_is_written_and_tells_noise_from_stripes(tmp_path):
    path = tmp_path / "new" / "efficientnet_lite0.ts"

    assert main(["imagenet_features", "--output", str(path)]) == 0

    features = NetworkFeatures.from_file(path, image_size=(224, 224), mean=0.449, std=0.226)
    noise = torch.rand(8, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    stripes = (torch.arange(64) // 8 % 2).float().expand(8, 1, 64, 64) * torch.linspace(0.6, 1, 8)[:, None, None, None]
    noise_nf, stripes_nf = features(noise), features(stripes)
    assert noise_nf.shape == (8, 1280)
    within = torch.cdist(noise_nf, noise_nf).max()
    assert torch.cdist(noise_nf, stripes_nf).min() > 2 * within


def test_the_scales_are_those_of_a_discriminator(tmp_path):
    path = tmp_path / "features.ts"

    assert main(["imagenet_features", "--scales", "--output", str(path)]) == 0

    discriminator = slice_discriminators(GenerativeVQVAE(), (112, 96), path)[1]
    images = torch.rand(2, 1, 112, 96, generator=torch.Generator().manual_seed(0))
    *features, judgments = discriminator(images)
    assert [tuple(level.shape[1:]) for level in features] == [(24, 56, 48), (40, 28, 24), (112, 14, 12), (320, 7, 6)]
    assert judgments.shape == (2, 4 * 28 * 24)
