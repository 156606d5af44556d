"""The discriminator on frozen features: what stays frozen, what each scale counts, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from monai_vqgen.errors import InputError
from monai_vqgen.networks import (
    FeatureDiscriminator,
    GenerativeVQVAE,
    HierarchicalVQVAE,
    SliceDiscriminator,
    slice_discriminators,
)


class Scales(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        fine = F.relu(self.first(images))
        return [fine, self.second(fine)]


class Whole(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def test_the_network_stays_frozen_and_the_heads_learn() -> None:
    network = Scales()
    discriminator = FeatureDiscriminator(network, width=4)
    before = copy.deepcopy(network.state_dict())
    random = {name: value.clone() for name, value in discriminator.named_buffers() if name[:3] in ("pro", "mix")}
    assert len(random) == 3
    discriminator.train().requires_grad_(True)
    optimizer = torch.optim.SGD(discriminator.parameters(), lr=0.1)
    images = torch.rand(2, 1, 16, 16, requires_grad=True)
    discriminator(images)[-1].sum().backward()
    optimizer.step()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(value, dict(discriminator.named_buffers())[name]) for name, value in random.items())
    assert not any(name.startswith("network") for name in discriminator.state_dict())
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


def test_features_are_those_of_normalized_images_and_each_scale_counts_alike() -> None:
    network = Scales()
    images = torch.rand(2, 1, 16, 16)
    *features, judgments = FeatureDiscriminator(network, scale=1, width=4)(images * 4 - 1)
    expected = network(((images - 0.449) / 0.226).expand(-1, 3, -1, -1))
    for ours, theirs in zip(features, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    coarse, fine = judgments.split(16, dim=1)  # a head halves: 4 x 4 judgments of the fine scale, 2 x 2 of the coarse
    assert judgments.shape == (2, 32)
    assert all(len(set(row.tolist())) == 4 for row in coarse)
    assert all(len(set(row.tolist())) > 4 for row in fine)


def test_the_same_seed_gives_the_same_projections() -> None:
    one, two, other = (FeatureDiscriminator(Scales(), width=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.get_buffer("project_0"), two.get_buffer("project_0"))
    assert not torch.equal(one.get_buffer("project_0"), other.get_buffer("project_0"))


def test_fine_judgments_see_the_coarse_scale_and_coarse_ones_not_the_fine() -> None:
    discriminator = FeatureDiscriminator(Scales(), scale=1, width=4).eval()
    images = torch.rand(2, 1, 16, 16)
    coarse, fine = discriminator(images)[-1].split(16, dim=1)
    for name, changed in (("project_1", (True, True)), ("mix_0", (False, True)), ("project_0", (False, True))):
        discriminator.get_buffer(name).mul_(-1)
        found = discriminator(images)[-1].split(16, dim=1)
        discriminator.get_buffer(name).mul_(-1)
        assert tuple(not torch.equal(*pair) for pair in zip(found, (coarse, fine), strict=True)) == changed


def test_it_moves_with_its_network() -> None:
    network = Scales()
    FeatureDiscriminator(network, width=4).to(torch.float64)
    assert network.first.weight.dtype == torch.float64


@pytest.mark.parametrize("network", [Whole(), nn.Conv2d(1, 4, 3)])
def test_a_network_without_feature_maps_is_refused(network: nn.Module) -> None:
    with pytest.raises(InputError, match="imagenet_features --scales"):
        FeatureDiscriminator(network)


def test_a_feature_network_is_read_from_its_file_and_goes_beside_the_one_of_slices(tmp_path) -> None:
    autoencoder = GenerativeVQVAE(strides=(4,), widths=(8, 8, 8), num_codes=8, code_dim=4)
    torch.jit.trace(Scales(), torch.zeros(1, 3, 32, 32), strict=False).save(tmp_path / "features.ts")
    alone = slice_discriminators(autoencoder, (32, 32), widths=(8, 8, 8))
    assert isinstance(alone, SliceDiscriminator)
    both = slice_discriminators(autoencoder, (32, 32), tmp_path / "features.ts", widths=(8, 8, 8))
    assert [type(judge) for judge in both] == [SliceDiscriminator, FeatureDiscriminator]
    assert [len(judge(torch.rand(2, 1, 32, 32))) for judge in both] == [3, 3]


def test_what_is_no_feature_network_is_refused(tmp_path) -> None:
    autoencoder = GenerativeVQVAE(strides=(4,), widths=(8, 8, 8), num_codes=8, code_dim=4)
    (tmp_path / "features.ts").write_bytes(b"no network")
    with pytest.raises(InputError, match=r"features\.ts cannot be read as TorchScript"):
        slice_discriminators(autoencoder, (32, 32), tmp_path / "features.ts")
    volumes = HierarchicalVQVAE(spatial_dims=3, channels=8, residual_channels=4)
    with pytest.raises(InputError, match="3 axes"):
        slice_discriminators(volumes, (32, 32, 32), tmp_path / "features.ts")
