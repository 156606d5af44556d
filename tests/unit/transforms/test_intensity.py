"""Scaling by the volume's foreground: defined for every input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.transforms import MatchQuantiles, MatchQuantilesd, ScaleForeground, ScaleForegroundd
from monai_vqgen.transforms.intensity import brain_quantiles


def test_percentiles_of_the_foreground_become_zero_and_one():
    volume = torch.zeros(1, 30, 31, 32)
    volume[0, 5:25, 5:26, 5:27] = torch.rand(20, 21, 22, generator=torch.manual_seed(0)) * 900 + 100
    low, high = np.percentile(volume[volume > 0].numpy(), [5, 95])
    expected = np.clip((volume.numpy() - low) / (high - low), 0, 1)
    np.testing.assert_allclose(ScaleForeground(5, 95)(volume).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 5.0, -2.0])
def test_constant_and_empty_give_zeros_and_a_warning(value, caplog):
    with caplog.at_level("WARNING"):
        scaled = ScaleForeground()(torch.full((1, 8, 8, 8), value))
    assert scaled.dtype == torch.float32
    assert not scaled.any()
    assert "empty or constant" in caplog.text


def test_nan_and_infinity_touch_only_their_own_voxels():
    volume = torch.rand(1, 12, 12, 12, generator=torch.manual_seed(1)) + 1
    clean = ScaleForeground()(volume)
    volume[0, 0, 0, 0], volume[0, 0, 0, 1], volume[0, 0, 0, 2] = float("nan"), float("inf"), -float("inf")
    scaled = ScaleForeground()(volume)
    assert scaled[0, 0, 0, :3].tolist() == [0, 1, 0]
    np.testing.assert_allclose(scaled.numpy()[0, 1:], clean.numpy()[0, 1:], atol=0.02)


def test_one_slice_has_no_percentiles_of_its_own():
    with pytest.raises(InputError, match="carries no window"):
        ScaleForeground()(torch.rand(1, 8, 8))
    assert ScaleForeground(window=(0, 2))(torch.ones(1, 8, 8)).unique().tolist() == [0.5]


def test_meta_and_affine_are_kept_and_the_input_is_untouched():
    image = MetaTensor(torch.rand(1, 9, 9, 9) + 1, affine=np.diag([2.0, 3, 4, 1]), meta={"filename_or_obj": "a.nii"})
    before = image.clone()
    scaled = ScaleForeground()(image)
    assert scaled.meta["filename_or_obj"] == "a.nii"
    np.testing.assert_array_equal(scaled.affine, image.affine)
    assert torch.equal(image, before)


def test_bad_percentiles_are_refused():
    with pytest.raises(InputError, match="percentiles"):
        ScaleForeground(99, 1)
    with pytest.raises(InputError, match="window"):
        ScaleForeground(window=(1, 1))


def test_matched_quantiles_are_those_of_the_reference_and_the_inverse_brings_back():
    rng = np.random.default_rng(0)
    image = np.where(rng.random((1, 40, 40)) < 0.3, 0.0, rng.beta(2, 5, (1, 40, 40)) * 0.8 + 0.05)
    reference = np.sort(rng.random(65)) * 0.9 + 0.05
    match = MatchQuantiles(reference)
    matched = match(MetaTensor(torch.from_numpy(image)))
    brain = image > 0.02
    np.testing.assert_allclose(brain_quantiles(np.asarray(matched)), reference, atol=0.01)
    assert (np.asarray(matched)[~brain] == 0).all()
    order = np.argsort(image[brain])
    assert (np.diff(np.asarray(matched)[brain][order]) >= 0).all(), "monotonic"
    item = MatchQuantilesd("image", reference)({"image": MetaTensor(torch.from_numpy(image))})
    np.testing.assert_allclose(np.asarray(item["image"]), np.asarray(matched))
    np.testing.assert_allclose(np.asarray(match.inverse(matched)), image, atol=1e-3)


def test_quantiles_that_do_not_ascend_and_images_without_brain_are_refused():
    with pytest.raises(InputError, match="ascending"):
        MatchQuantiles([0.5, 0.2])
    with pytest.raises(ScanError, match="no intensities"):
        MatchQuantiles([0.2, 0.5])(np.zeros((1, 8, 8)))


def test_with_a_brain_mask_its_voxels_alone_decide_the_window_and_the_rest_is_black():
    rng = torch.Generator().manual_seed(0)
    volume = torch.rand(1, 20, 21, 22, generator=rng) * 100 + 50
    mask = torch.zeros(1, 20, 21, 22)
    mask[0, 5:15, 5:15, 5:15] = 1
    volume[mask == 0] += 1000  # a bright skull
    low, high = np.percentile(volume[mask > 0].numpy(), [5, 95])
    expected = np.clip((volume.numpy() - low) / (high - low), 0, 1) * mask.numpy()
    np.testing.assert_allclose(ScaleForeground(5, 95)(volume, mask).numpy(), expected, atol=1e-4)
    item = ScaleForegroundd("image", 5, 95, mask_key="brain")({"image": volume, "brain": mask})
    np.testing.assert_allclose(item["image"].numpy(), expected, atol=1e-4)
    for wrong, message in ((mask[:, :10], "the mask has shape"), (mask * 0, "marks no voxel")):
        with pytest.raises(InputError, match=message):
            ScaleForeground()(volume, wrong)
