"""The feature network of ImageNet sees what the images show."""

from __future__ import annotations

import torch

from monai_vqgen.metrics import NetworkFeatures
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
