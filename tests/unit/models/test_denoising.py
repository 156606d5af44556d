"""Cycle spinning is the mean over shifts, right up to the borders, in any number of dimensions."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import tiny_autoencoder, tiny_model
from monai.data import MetaTensor
from torch import nn

from monai_vqgen.errors import InputError
from monai_vqgen.inferers import VolumeReconstructionInferer
from monai_vqgen.models import CycleSpinning
from monai_vqgen.models.denoising import spread_shifts

CELL = 4


class CellMeans(nn.Module):
    """Each cell of the grid becomes its mean: linear, and different for each shift."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.strides, self.spatial_dims = (CELL,), dims

    def forward(self, images):
        sizes = images.shape[2:]
        after = [amount for size in reversed(sizes) for amount in (0, -size % CELL)]
        padded = F.pad(images, after, mode="replicate")
        pool = F.avg_pool2d if self.spatial_dims == 2 else F.avg_pool3d
        grown = pool(padded, CELL)
        for axis in range(2, images.ndim):
            grown = grown.repeat_interleave(CELL, dim=axis)
        return grown[(..., *(slice(size) for size in sizes))]


class Identity(CellMeans):
    def forward(self, images):
        return images


def images_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("shifts", [1, 3, 16])
def test_a_network_that_changes_nothing_gives_the_image_back(dims, shifts):
    images = images_of(2, 1, *(9, 6, 5)[:dims])
    torch.testing.assert_close(CycleSpinning(Identity(dims), shifts)(images), images)


@pytest.mark.parametrize("dims", [2, 3])
def test_it_is_the_mean_of_circular_shifts_where_borders_are_blank(dims):
    images = F.pad(images_of(2, 1, *[8] * dims), [CELL, CELL] * dims)
    axes = tuple(range(2, dims + 2))
    shifts = spread_shifts(5, CELL, dims)
    rolled = (np.roll(images.numpy(), shift, axes) for shift in shifts)
    back = [
        np.roll(cell_means(image), [-pixels for pixels in shift], axes)
        for image, shift in zip(rolled, shifts, strict=True)
    ]
    np.testing.assert_allclose(CycleSpinning(CellMeans(dims), 5)(images), np.mean(back, axis=0), atol=1e-6)


def cell_means(image: np.ndarray) -> np.ndarray:
    found = np.empty_like(image)
    for corner in np.ndindex(*(size // CELL for size in image.shape[2:])):
        cell = (..., *(slice(CELL * place, CELL * place + CELL) for place in corner))
        found[cell] = image[cell].mean(axis=tuple(range(2, image.ndim)), keepdims=True)
    return found


def test_all_shifts_of_a_linear_network_are_a_convolution():
    """Of the cell's own box with itself: a tent (Coifman and Donoho's translation-invariant estimate)."""
    image = torch.zeros(1, 1, 32, 32)
    image[..., 16, 16] = 1.0
    tent = np.convolve(np.full(CELL, 1 / CELL), np.full(CELL, 1 / CELL))
    expected = np.zeros((32, 32))
    expected[13:20, 13:20] = np.outer(tent, tent)
    np.testing.assert_allclose(CycleSpinning(CellMeans(2), CELL**2)(image)[0, 0], expected, atol=1e-7)


def test_one_border_never_shows_at_the_opposite_one():
    image = torch.zeros(1, 1, 16, 16)
    image[..., -1] = image[..., -1, :] = 1.0
    result = CycleSpinning(CellMeans(2), 16)(image)
    assert result[..., :8, :8].max() == 0


def test_what_is_constant_stays_so_up_to_the_borders_of_any_size():
    for size in ((16, 16), (9, 6), (1, 3)):
        image = torch.full((1, 1, *size), 0.7)
        torch.testing.assert_close(CycleSpinning(CellMeans(2), 16)(image), image)


@pytest.mark.parametrize(("stride", "dims"), [(8, 2), (4, 3), (1, 2)])
def test_shifts_differ_fewer_are_the_first_of_more_and_all_fill_a_cell(stride, dims):
    every = spread_shifts(stride**dims, stride, dims)
    assert set(every) == set(np.ndindex(*[stride] * dims))
    assert len(set(every)) == len(every)
    assert every[0] == (0,) * dims
    for count in range(1, min(20, len(every))):
        assert spread_shifts(count, stride, dims) == every[:count]


def test_few_shifts_lie_in_different_parts_of_a_cell():
    quarters = {tuple(pixels // 4 for pixels in shift) for shift in spread_shifts(4, 8, 2)}
    assert len(quarters) >= 3


@pytest.mark.parametrize("shifts", [0, -1, 65, 1.5, True, "4", None])
def test_another_number_of_shifts_is_refused_with_the_numbers_there_are(shifts):
    with pytest.raises(InputError, match="whole number from 1 to 64"):
        tiny_model().denoise(images_of(1, 1, 16, 16), shifts=shifts)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_model_denoises_as_its_autoencoder_does_and_stays_as_it_was(dims):
    network = tiny_autoencoder(8, spatial_dims=dims)
    model = tiny_model([16] * dims, autoencoder=network, with_priors=False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = images_of(5, 1, *(16, 13, 11)[:dims])
    whole = model.denoise(images, shifts=3)
    assert (whole.shape, whole.requires_grad) == (images.shape, False)
    parts = []
    for shift in spread_shifts(3, 8, dims):
        longer = images.numpy()
        for axis, pixels in enumerate(shift, start=2):
            longer = np.concatenate([longer.take([0], axis)] * pixels + [longer], axis)
        codes = model.encode(torch.from_numpy(longer))
        found = model.decode(codes, longer.shape[2:]).numpy()
        parts.append(found[(..., *(slice(pixels, None) for pixels in shift))])
    np.testing.assert_allclose(whole, np.mean(parts, axis=0), atol=1e-5)
    model.batch_size = 2
    torch.testing.assert_close(model.denoise(images, shifts=3), whole)
    torch.testing.assert_close(model.denoise(images, shifts=1), model.decode(model.encode(images), images.shape[2:]))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 16, 16), r"give \(b, 1, h, w\)"),
        (torch.zeros(0, 1, 16, 16), r"give \(b, 1, h, w\)"),
        (torch.full((1, 1, 16, 16), 200.0), r"scale them to \[0, 1\]"),
        (torch.full((1, 1, 16, 16), float("nan")), r"scale them to \[0, 1\]"),
    ],
)
def test_images_that_cannot_be_denoised_are_refused(images, message):
    with pytest.raises(InputError, match=message):
        tiny_model().denoise(images)


def test_a_volume_keeps_its_geometry_and_units():
    affine = nib.affines.from_matvec(np.array([[0.1, -0.9, 0.05], [1.1, 0.1, 0.1], [0.1, 0.05, -2.0]]), [1, -2, 5])
    grid = np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in (19, 22, 9)), indexing="ij")
    voxels = np.where(sum(x**2 for x in grid) < 1, 400 + 100 * grid[0], 0).astype(np.float32)
    volume = MetaTensor(torch.from_numpy(voxels), affine=torch.as_tensor(affine))
    model = tiny_model(with_priors=False, record={"pixel_mm": 1.5})
    result = model.reconstruct(volume, shifts=4)
    assert result.shape == volume.shape
    np.testing.assert_allclose(result.affine, affine)
    inferer = VolumeReconstructionInferer("axial", pixel_mm=1.5)
    cut = inferer.cut(voxels, affine)
    denoised = model.denoise(torch.from_numpy(cut.images_nhw)[:, None], shifts=4)[:, 0].numpy()
    np.testing.assert_allclose(result, inferer.restore(denoised, cut.frame, voxels), rtol=1e-4, atol=1e-2)
    assert not np.allclose(result, model.reconstruct(volume), atol=1)
    with pytest.raises(InputError, match="whole number from 1 to 64"):
        model.reconstruct(volume, shifts=65)
