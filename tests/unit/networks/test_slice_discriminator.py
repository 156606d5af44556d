"""The discriminator of patches and whole images: shapes, what each judgment sees, what is refused."""

from __future__ import annotations

import pytest
import torch

from monai_vqgen.errors import InputError
from monai_vqgen.networks import SliceDiscriminator


def discriminator(spatial_dims: int = 2, side: int = 32, **options) -> SliceDiscriminator:
    torch.manual_seed(0)
    return SliceDiscriminator(spatial_dims, image_size=(side,) * spatial_dims, widths=(8, 8, 8, 8), **options)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_features_halve_and_half_of_the_judgments_are_the_whole_images(spatial_dims: int) -> None:
    *features, judgments_bn = discriminator(spatial_dims, side=16)(torch.rand(3, 1, *[16] * spatial_dims))
    assert [tuple(level.shape[2:]) for level in features] == [(size,) * spatial_dims for size in (4, 2, 1)]
    patches = 2**spatial_dims
    assert judgments_bn.shape == (3, 2 * patches)
    assert (judgments_bn[:, patches:] == judgments_bn[:, patches : patches + 1]).all()


def test_a_patch_sees_its_surroundings_and_the_whole_image_sees_all() -> None:
    network = discriminator()
    images = torch.rand(1, 1, 32, 32, requires_grad=True)
    judgments = network(images)[-1]
    seen = [torch.autograd.grad(value, images, retain_graph=True)[0][0, 0] != 0 for value in judgments[0, [0, -1]]]
    assert seen[0][:8, :8].any()
    assert not seen[0][28:, 28:].any()
    assert seen[1].float().mean() > 0.99


def test_images_all_alike_are_told_as_a_whole_and_not_by_their_patches() -> None:
    network = discriminator().eval()
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    alike = images[:1].expand(4, -1, -1, -1)
    assert not torch.allclose(network(images)[-1][0, -1], network(alike)[-1][0, -1])
    one_by_one = torch.cat([network(image[None])[-1] for image in images])
    torch.testing.assert_close(
        network(images)[-1][:, :16], one_by_one[:, :16], rtol=0, atol=1e-4
    )  # patches see their own


def test_the_signal_keeps_its_size_from_layer_to_layer() -> None:
    torch.manual_seed(0)
    *features, _ = SliceDiscriminator(image_size=(32, 32), widths=(32, 64, 64, 64))(torch.randn(8, 1, 32, 32))
    assert all(0.3 < float(level.detach().std()) < 3 for level in features)


@pytest.mark.parametrize(
    "options", [{"image_size": (30, 32)}, {"image_size": (32,)}, {"image_size": (32, 32), "widths": (8, 8)}]
)
def test_sizes_that_do_not_work_are_refused(options: dict) -> None:
    with pytest.raises(InputError, match="divides"):
        SliceDiscriminator(**options)
