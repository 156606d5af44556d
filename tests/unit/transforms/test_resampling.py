"""A resampled slice has the values of its places in the world."""

from __future__ import annotations

import numpy as np
import pytest
from nibabel.affines import apply_affine

from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.transforms.resampling import resample_plane, resampled_size, restore_plane


def test_resampling_places_a_linear_ramp_exactly():
    affine = np.array([[0, 1.1, 0, 4], [-0.9, 0, 0.2, -7], [0.1, 0.2, 2, 1], [0, 0, 0, 1.0]])
    rows, columns = np.meshgrid(np.arange(40.0), np.arange(31.0), indexing="ij")
    world = apply_affine(affine, np.stack([rows, columns, 0 * rows], axis=-1))
    for pixel_mm in (0.5, 1.736, (2.2, 0.7)):
        result = resample_plane(world[..., 0] + 2 * world[..., 1], affine, pixel_mm)
        height, width = result.pixels.shape
        grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), [0], indexing="ij"), axis=-1)[:, :, 0]
        where = apply_affine(result.affine, grid)
        inner = (slice(4, -4), slice(4, -4))  # at the border the widened kernel is cut
        np.testing.assert_allclose(result.pixels[inner], (where[..., 0] + 2 * where[..., 1])[inner], atol=2e-4)
        np.testing.assert_allclose(np.linalg.norm(result.affine[:3, :2], axis=0), pixel_mm, rtol=1e-9)
        middles = [
            apply_affine(a, [(h - 1) / 2, (w - 1) / 2, 0])
            for a, (h, w) in ((affine, (40, 31)), (result.affine, (height, width)))
        ]
        np.testing.assert_allclose(*middles, atol=1e-9)


def test_shrinking_is_antialiased_and_stays_in_range():
    stripes = np.zeros((64, 64), dtype=np.float32)
    stripes[:, ::2] = 1
    shrunk = resample_plane(stripes, np.eye(4), 4.0).pixels[2:-2, 2:-2]
    np.testing.assert_allclose(shrunk, 0.5, atol=0.07)
    assert set(np.unique(resample_plane(stripes, np.eye(4), 4.0, mode="nearest").pixels)) <= {0.0, 1.0}


@pytest.mark.parametrize("options", [{"pixel_mm": 0.0}, {"pixel_mm": (1, 2, 3)}, {"pixel_mm": 1.0, "mode": "cubic"}])
def test_sizes_and_modes_that_cannot_work_are_refused(options):
    with pytest.raises(InputError, match=r"pixel_mm is|mode is"):
        resample_plane(np.ones((4, 4)), np.eye(4), **options)


@pytest.mark.parametrize(("spacing", "pixel_mm"), [(0.868, 1.736), (1.0, 1.736), (0.7, 2.5)])
def test_what_is_brought_back_resamples_to_the_same_pixels(spacing: float, pixel_mm: float) -> None:
    affine = np.diag([spacing, spacing, 1, 1])
    small = resample_plane(np.random.default_rng(0).random((40, 33)), affine, pixel_mm).pixels

    back = restore_plane(small, (40, 33), affine, pixel_mm)

    assert back.shape == (40, 33)
    assert resample_plane(back, affine, pixel_mm).pixels == pytest.approx(small, abs=2e-3)


def test_a_slice_that_was_enlarged_comes_back_as_it_was() -> None:
    affine = np.diag([3.0, 3.0, 1, 1])
    image = np.random.default_rng(0).random((20, 17)).astype(np.float32)

    large = resample_plane(image, affine, 1.736).pixels

    assert restore_plane(large, image.shape, affine, 1.736) == pytest.approx(image, abs=1e-3)


def test_bringing_back_keeps_a_ramp_and_its_place() -> None:
    affine = np.diag([0.868, 0.868, 1, 1])
    ramp = np.broadcast_to(np.linspace(0, 1, 48, dtype=np.float32), (32, 48))

    back = restore_plane(resample_plane(ramp, affine, 1.736).pixels, ramp.shape, affine, 1.736)

    assert back[:, 6:-6] == pytest.approx(ramp[:, 6:-6], abs=1e-3)


def test_a_single_row_comes_back() -> None:
    affine = np.diag([1.0, 1.0, 1, 1])
    image = np.full((2, 2), 0.3, dtype=np.float32)

    assert restore_plane(resample_plane(image, affine, 4.0).pixels, (2, 2), affine, 4.0) == pytest.approx(image)


@pytest.mark.parametrize("shape", [(64, 64), (3, 64)])
def test_a_grid_that_would_fill_the_memory_is_refused(shape):
    spacing = np.diag([3000.0, 3000.0, 3, 1])
    with pytest.raises(ScanError, match=r"pixels of 3000 x 3000 mm would become .* fix the spacing"):
        resample_plane(np.ones(shape), spacing, 1.0)
    with pytest.raises(ScanError, match="would become"):
        resample_plane(np.broadcast_to(np.float32(1), (4000, 2, 2)), spacing, 5.0)


@pytest.mark.parametrize("spacing", [(4e-3, 4e-3), (4e-3, 4.0)])
def test_a_grid_of_which_nothing_would_be_left_is_refused(spacing):
    """A spacing in another unit: all of the slice within one pixel."""
    affine = np.diag([*spacing, 3, 1])
    with pytest.raises(ScanError, match=r"64 x 64 pixels of 0.004 x .* together less than half of one of 1.5 mm"):
        resample_plane(np.ones((64, 64)), affine, 1.5)
    assert resample_plane(np.ones((1, 1)), affine, 8.0).pixels.shape == (1, 1)


@pytest.mark.parametrize("pixel_mm", [0.5, 1.0, 1.000001, 1.736, 7.0])
def test_the_size_of_a_resampled_slice_is_told_without_resampling(pixel_mm):
    pixels, affine = np.zeros((40, 31)), np.diag([1.0, 1.3, 2.0, 1.0])
    assert resampled_size((40, 31), affine, pixel_mm) == resample_plane(pixels, affine, pixel_mm).pixels.shape


def ramp(shape, affine) -> np.ndarray:
    """A function of the place in mm that linear interpolation keeps."""
    places = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    return (places @ [0.7, -1.1, 0.4] + 3).astype(np.float32)


@pytest.mark.parametrize("pixel_mm", [2.5, 0.7, (2.0, 1.0, 3.1)])
def test_a_volume_is_resampled_along_all_three_axes_and_brought_back(pixel_mm):
    affine = np.array([[0.9, 0.1, 0, -4], [-0.1, 1.2, 0, 7], [0, 0, 2.0, 1], [0, 0, 0, 1]])
    volume = ramp((15, 14, 12), affine)
    result = resample_plane(volume[None], affine, pixel_mm, axes=3)
    np.testing.assert_allclose(np.linalg.norm(result.affine[:3, :3], axis=0), np.broadcast_to(pixel_mm, 3))
    inner = (0, *(slice(n // 3, n - n // 3) for n in result.pixels.shape[1:]))  # the border repeats its last voxel
    np.testing.assert_allclose(result.pixels[inner], ramp(result.pixels.shape[1:], result.affine)[inner[1:]], atol=1e-4)
    if isinstance(pixel_mm, float):
        assert result.pixels.shape[1:] == resampled_size(volume.shape, affine, pixel_mm)
    back = restore_plane(result.pixels, volume.shape, affine, pixel_mm)[0]
    middle = tuple(slice(n // 3, n - n // 3) for n in volume.shape)
    np.testing.assert_allclose(back[middle], volume[middle], atol=0.05)


def test_two_axes_of_a_volume_are_resampled_as_those_of_its_slices():
    affine, volume = np.diag([1.0, 1.3, 2.0, 1.0]), np.random.default_rng(0).random((9, 11, 4), dtype=np.float32)
    whole = resample_plane(volume, affine, (1.7, 0.8, 2.0), axes=3).pixels  # the third stays
    slices = [resample_plane(volume[:, :, k], affine, (1.7, 0.8)).pixels for k in range(4)]
    np.testing.assert_allclose(whole, np.stack(slices, axis=-1), atol=1e-6)


def test_a_volume_wants_one_size_an_axis():
    with pytest.raises(InputError, match="one or one an axis"):
        resample_plane(np.zeros((4, 4, 4)), np.eye(4), (1.0, 2.0), axes=3)
