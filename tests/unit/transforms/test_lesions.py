"""Synthetic lesions: exact masks, decided by a seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_vqgen.errors import InputError, ScanError
from monai_vqgen.transforms import SyntheticLesion, SyntheticLesiond, draw_lesion, place_lesion
from monai_vqgen.transforms.lesions import LESION_KINDS, RADII


def head(size: int = 96) -> np.ndarray:
    """A disc with ripples in a black surrounding."""
    rows, columns = np.ogrid[:size, :size]
    disc = np.hypot(rows - size / 2, columns - size / 2) < size * 0.4
    return (disc * (0.5 + 0.1 * np.sin(rows / 3) * np.cos(columns / 4))).astype(np.float32)


@pytest.mark.parametrize("kind", LESION_KINDS)
def test_the_mask_holds_every_pixel_that_changed_and_only_brain(kind):
    image = head()
    for seed in range(5):
        changed, mask = place_lesion(image, draw_lesion(image, seed=seed, kind=kind))
        assert np.array_equal(changed[~mask], image[~mask])
        assert (image[mask] > 0.02).all()
        assert (changed[mask] != image[mask]).mean() > 0.9
        assert np.pi * RADII[0] ** 2 * 0.8 < mask.sum() < np.pi * RADII[1] ** 2 * 1.1
        assert changed.min() >= 0
        assert changed.max() <= 1


def test_kinds_do_what_they_say():
    image = head()
    made = {kind: place_lesion(image, draw_lesion(image, seed=3, kind=kind)) for kind in LESION_KINDS}
    for kind, (changed, mask) in made.items():
        rise, rough = (changed - image)[mask].mean(), np.diff(changed, axis=0)[mask[1:]].std()
        before = np.diff(image, axis=0)[mask[1:]].std()
        assert (rise < -0.1) == (kind == "dark")
        assert (rise > 0.1) == (kind == "bright")
        assert kind != "blurred" or rough < before
        assert kind != "noisy" or rough > 3 * before


def test_the_seed_decides_the_lesion():
    image = head()
    assert draw_lesion(image, seed=4) == draw_lesion(image, seed=4)
    assert len({draw_lesion(image, seed=seed).center for seed in range(10)}) > 5
    first, second = (SyntheticLesion(seed=4)(image[None]) for _ in range(2))
    assert torch.equal(first, second)


def test_a_deformation_does_not_fold_the_slice():
    rows = np.broadcast_to(np.arange(96.0)[:, None] / 100 + 0.03, (96, 96))
    for seed in range(10):
        changed, _ = place_lesion(rows, draw_lesion(rows, seed=seed, kind="deformed"))
        assert (np.diff(changed, axis=0) >= -0.003).all()


def test_the_dictionary_transform_gives_the_mask_and_keeps_the_affine():
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.from_numpy(head())[None], affine=affine)
    item = SyntheticLesiond("image", "bright", seed=2)({"image": image, "age": 30})
    changed, mask = place_lesion(head(), draw_lesion(head(), seed=2, kind="bright"))
    np.testing.assert_array_equal(item["image"][0], changed)
    np.testing.assert_array_equal(item["label"][0], mask)
    assert torch.equal(item["label"].affine, affine)
    assert item["age"] == 30


def test_what_cannot_have_a_lesion_is_refused():
    with pytest.raises(ScanError, match="no room"):
        draw_lesion(np.zeros((64, 64)), seed=0)
    with pytest.raises(InputError, match="'red'"):
        draw_lesion(head(), seed=0, kind="red")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one channel"):
        SyntheticLesion()(np.ones((3, 64, 64)))
