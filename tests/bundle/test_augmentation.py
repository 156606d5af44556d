"""Augmentation of the training slices: what it changes, and by how much."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_training import workflow, write_slices


@pytest.mark.parametrize("knob", ["mirror_probability", "affine_probability", "gamma_probability"])
def test_each_augmentation_changes_training_slices_and_no_others(slices, tmp_path, knob):
    made = {}
    for value in (0.0, 1.0):
        loaded = workflow("train", dataset_dir=slices, output_dir=tmp_path / str(value), **{knob: value})
        loaded.initialize()
        made[value] = {
            split: torch.stack([item["image"] for item in loaded.parser.get_parsed_content(split)])
            for split in ("train::dataset", "validate::dataset")
        }
    before, after = made[0.0], made[1.0]
    assert torch.equal(before["validate::dataset"], after["validate::dataset"])
    assert not torch.equal(before["train::dataset"], after["train::dataset"])
    assert after["train::dataset"].shape == before["train::dataset"].shape
    assert float(after["train::dataset"].min()) >= 0
    assert float(after["train::dataset"].max()) <= 1
    assert float(after["train::dataset"].std()) > 0.5 * float(before["train::dataset"].std())


DOT = np.array([-18, 12])  # rows down and columns right of the pixel (32, 32) of 65


def write_dots(folder: Path) -> None:
    """One bright dot, a Gaussian of 2 pixels, on every slice."""
    write_slices(folder, 65)
    rows, columns = np.mgrid[:65, :65] - 32 - DOT[:, None, None]
    dot = np.exp(-(rows**2 + columns**2) / 8)
    for path in (folder / "images").iterdir():
        nib.save(nib.Nifti1Image(dot[:, :, None].astype(np.float32), np.eye(4)), path)


@pytest.fixture(scope="module")
def dots(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dots")
    write_dots(folder)
    return folder


def augmented(folder: Path, output: Path, draws: int = 60, **knobs: float) -> tuple[np.ndarray, np.ndarray]:
    """The first training slice (h, w) of a folder, and what augmentation makes of it at each draw."""
    made = []
    for name, options in {"plain": {}, "augmented": knobs}.items():
        flow = workflow("train", dataset_dir=folder, output_dir=output / name, **options)
        flow.initialize()
        dataset = flow.parser.get_parsed_content("train::dataset")
        dataset.transform.set_random_state(seed=0)
        made.append(np.stack([dataset[0]["image"][0].numpy() for _ in range(draws)]))
    assert (made[0] == made[0][0]).all()
    return made[0][0], made[1]


def dot_places(images: np.ndarray) -> np.ndarray:
    """Where the dot lies in each image: rows down and columns right of the middle."""
    grid = np.mgrid[:65, :65] - 32
    return np.stack([(image * grid).sum((1, 2)) / image.sum() for image in images])


@pytest.mark.parametrize("degrees", [None, 3.0])
def test_slices_are_turned_by_no_more_degrees_than_allowed(dots, tmp_path, degrees):
    given = {} if degrees is None else {"augmentation::rotation_degrees": degrees}
    allowed = degrees or 8.0
    _, images = augmented(
        dots,
        tmp_path,
        affine_probability=1.0,
        **{"augmentation::scale_fraction": 0.0},
        **{"augmentation::shift_pixels": 0.0},
        **given,
    )
    places = dot_places(images)
    angles = np.degrees(np.arctan2(places[:, 0], places[:, 1]) - np.arctan2(*DOT))
    np.testing.assert_allclose(np.hypot(*places.T), np.hypot(*DOT), atol=0.1)
    assert np.abs(angles).max() <= allowed + 0.3
    assert angles.max() > 0.8 * allowed
    assert angles.min() < -0.8 * allowed


def test_slices_are_scaled_by_no_more_than_allowed_each_axis_for_itself(dots, tmp_path):
    _, images = augmented(
        dots,
        tmp_path,
        affine_probability=1.0,
        **{"augmentation::rotation_degrees": 0.0},
        **{"augmentation::shift_pixels": 0.0},
    )
    factors = dot_places(images) / DOT
    assert factors.min() >= 1 / 1.08 - 0.01
    assert factors.max() <= 1 / 0.92 + 0.01
    assert (factors.min(0) < 0.95).all()
    assert (factors.max(0) > 1.05).all()
    assert np.abs(factors[:, 0] - factors[:, 1]).max() > 0.05


def test_slices_are_moved_by_no_more_pixels_than_allowed_along_both_axes(dots, tmp_path):
    _, images = augmented(
        dots,
        tmp_path,
        affine_probability=1.0,
        **{"augmentation::rotation_degrees": 0.0},
        **{"augmentation::scale_fraction": 0.0},
    )
    moves = dot_places(images) - DOT
    assert np.abs(moves).max() <= 4.1
    assert (moves.max(0) > 3).all()
    assert (moves.min(0) < -3).all()


def test_gamma_stays_within_its_range(dots, tmp_path):
    plain, images = augmented(dots, tmp_path, gamma_probability=1.0)
    gray = (plain > 0.2) & (plain < 0.8)
    gammas = np.log(images[:, gray]) / np.log(plain[gray])
    np.testing.assert_allclose(gammas, gammas[:, :1].repeat(gray.sum(), 1), rtol=1e-3)  # one power for all pixels
    assert 0.8 - 0.001 <= gammas.min() < 0.85
    assert 1.2 < gammas.max() <= 1.25 + 0.001


def test_mirroring_is_from_left_to_right(dots, tmp_path):
    plain, images = augmented(dots, tmp_path, draws=3, mirror_probability=1.0)
    assert all(np.array_equal(image, plain[:, ::-1]) for image in images)
    assert not np.array_equal(plain, plain[:, ::-1])
