"""Fit to size: centerd on the brain, nothing lost silently, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd
from nibabel.affines import apply_affine

from monai_vqgen.errors import InputError
from monai_vqgen.transforms import FitToSize, FitToSized
from monai_vqgen.transforms.size import META_BOX

AFFINE = np.array([[0, -1.5, 0, 20], [-1.2, 0, 0.3, 5], [0.1, 0, -2, 9], [0, 0, 0, 1.0]])


def image(height=20, width=26, box=((3, 12), (8, 21))):
    values = torch.zeros(1, height, width)
    (r0, r1), (c0, c1) = box
    values[0, r0 : r1 + 1, c0 : c1 + 1] = torch.rand(r1 - r0 + 1, c1 - c0 + 1, generator=torch.manual_seed(0)) + 1
    return MetaTensor(values, affine=AFFINE)


@pytest.mark.parametrize("size", [(32, 32), (12, 16), (11, 40), (40, 15)])
def test_every_pixel_keeps_its_world_coordinate_and_comes_back(size):
    before, fit = image(), FitToSize(size)
    after = fit(before)
    assert after.shape == (1, *size)
    rows, columns = np.nonzero(before[0].numpy())
    moved = np.linalg.inv(after.affine.numpy()) @ before.affine.numpy()
    there = np.rint(apply_affine(moved, np.stack([rows, columns, 0 * rows], axis=1))).astype(int)
    np.testing.assert_array_equal(after[0].numpy()[there[:, 0], there[:, 1]], before[0].numpy()[rows, columns])
    assert int((after != 0).sum()) == len(rows), "nothing lost, nothing added"
    center = [(n.min() + n.max()) / 2 for n in np.nonzero(after[0].numpy())]
    assert np.abs(np.array(center) - (np.array(size) - 1) / 2).max() <= 0.5

    back = fit.inverse(after)
    np.testing.assert_array_equal(back.numpy(), before.numpy())
    np.testing.assert_allclose(back.affine.numpy(), AFFINE, atol=1e-12)
    assert back.applied_operations == []


def test_trimming_the_brain_is_an_error_or_a_warning_never_silent(caplog):
    with pytest.raises(InputError, match=r"brain takes 10 x 14 pixels and does not fit into 10 x 13"):
        FitToSize((10, 13))(image())
    assert FitToSize((10, 14))(image()).shape == (1, 10, 14)
    with caplog.at_level("WARNING"):
        assert FitToSize(8, on_trim="warn")(image()).shape == (1, 8, 8)
    assert "cropped: " in caplog.text


def test_the_volumes_box_centers_all_slices_alike_and_moves_along():
    one = image(box=((3, 5), (8, 9)))
    one.meta["foreground_box"] = ((3.0, 12.0), (8.0, 21.0))
    full = FitToSize(30)(image())
    fit = FitToSize(30)
    fitted = fit(one)
    np.testing.assert_allclose(fitted.affine, full.affine)
    (r0, r1), (c0, c1) = fitted.meta["foreground_box"]
    rows, columns = np.nonzero(full[0].numpy())
    assert (r0, r1, c0, c1) == (rows.min(), rows.max(), columns.min(), columns.max())
    assert fit.inverse(fitted).meta["foreground_box"] == ((3.0, 12.0), (8.0, 21.0))


def test_a_slice_of_the_size_stays_where_it_is_unless_its_volume_was_measured():
    pixels = torch.zeros(1, 12, 12)
    pixels[:, 1:5, 7:11] = 1
    assert torch.equal(FitToSize(12)(MetaTensor(pixels)), pixels)
    measured = MetaTensor(pixels, meta={META_BOX: ((1.0, 4.0), (7.0, 10.0))})
    fit = FitToSize(12)
    moved = fit(measured)
    assert torch.nonzero(moved[0]).float().mean(0).tolist() == [5.5, 5.5]
    assert torch.equal(fit.inverse(moved), pixels)


def test_monais_invertd_undoes_it():
    steps = Compose([FitToSized("image", (24, 32))])
    before = image()
    item = steps({"image": before})
    item["pred"] = item["image"].clone()
    back = Invertd("pred", steps, orig_keys="image", nearest_interp=False)(item)["pred"]
    np.testing.assert_array_equal(back.numpy(), before.numpy())
    np.testing.assert_allclose(back.affine.numpy(), AFFINE, atol=1e-12)


def test_an_empty_slice_is_centerd_and_a_plain_tensor_stays_plain():
    assert FitToSize(6)(torch.zeros(1, 4, 4)).shape == (1, 6, 6)
    assert not isinstance(FitToSize(6)(torch.ones(1, 4, 4)), MetaTensor)


@pytest.mark.parametrize("size", [0, (3, -1), (3, 4, 5, 6), 2.5])
def test_sizes_that_are_none_are_refused(size):
    with pytest.raises(InputError, match="image size"):
        FitToSize(size if isinstance(size, (int, tuple)) else (size, size))


def test_what_is_no_slice_is_refused():
    with pytest.raises(InputError, match=r"\[C, H, W\]"):
        FitToSize(4)(torch.ones(4, 4))


def test_a_volume_is_framed_around_its_brain_and_comes_back():
    volume = torch.zeros(1, 9, 6, 7)
    volume[0, 1:5, 2:4, 3:6] = torch.rand(4, 2, 3) + 0.5
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    fit = FitToSize((6, 8, 4))
    framed = fit(MetaTensor(volume, affine=affine))
    assert framed.shape == (1, 6, 8, 4)
    assert framed.sum() == volume.sum()
    bright = torch.nonzero(volume[0] == volume.max())[0].double()
    found = torch.nonzero(framed[0] == volume.max())[0].double()
    here = framed.affine @ torch.cat([found, torch.ones(1)]).double()
    torch.testing.assert_close(here.as_tensor()[:3], bright * torch.tensor([2.0, 3.0, 4.0]).double())
    assert torch.equal(fit.inverse(framed).as_tensor(), volume)
    with pytest.raises(InputError, match=r"expected a volume \[C, X, Y, Z\]"):
        fit(volume[0])
