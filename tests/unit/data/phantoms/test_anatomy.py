"""The formulas of a brain: what lies where, and what a subject's traits change."""

from __future__ import annotations

import numpy as np
import pytest

from monai_vqgen.data.phantoms.anatomy import CSF, HALF_EXTENT_MM, WHITE, Subject, brightness


@pytest.fixture(scope="module")
def subject() -> Subject:
    """A subject of average size without bends."""
    drawn = Subject.draw(np.random.default_rng(0))
    return drawn._replace(size=(1.0, 1.0, 1.0), warp=np.zeros_like(drawn.warp), ventricle=1.0)


def at(subject, *points):
    return brightness(subject, *(np.array(axis, dtype=np.float32) for axis in zip(*points, strict=True)))


def test_a_tenth_beyond_the_box_there_is_nothing(subject):
    directions = np.random.default_rng(1).normal(size=(500, 3))
    directions /= np.abs(directions / HALF_EXTENT_MM).max(axis=1, keepdims=True)  # onto the box's faces
    assert not at(subject, *(1.1 * directions).tolist()).any()


def test_the_ventricles_are_fluid_and_the_brainstem_is_bright(subject):
    fluid = at(subject, (6.5, 0, 14.5), (-6.5, 0, 14.5))
    np.testing.assert_allclose(fluid, CSF, atol=0.1)
    assert at(subject, (0, -22, -60))[0] > 0.7
    assert at(subject, (25, -10, 32))[0] > 0.5 * WHITE


def test_a_subjects_size_scales_the_anatomy(subject):
    points = np.random.default_rng(2).uniform(-60, 60, (400, 3))
    size = (1.05, 0.95, 1.02)
    larger = at(subject._replace(size=size), *(points * size).tolist())
    np.testing.assert_allclose(larger, at(subject, *points.tolist()), atol=1e-2)


def test_wider_ventricles_hold_more_fluid(subject):
    grid = np.stack(np.meshgrid(*[np.arange(-20, 21, 2.0)] * 2, np.arange(5, 25, 2.0)), -1).reshape(-1, 3).tolist()
    shares = [(at(subject._replace(ventricle=width), *grid) < 0.3).mean() for width in (0.6, 1.0, 1.5)]
    assert shares[0] < shares[1] < shares[2]


def test_older_subjects_have_wider_sulci_and_thinner_cortex():
    drawn = [Subject.draw(np.random.default_rng(seed)) for seed in range(60)]
    ages = [subject.age for subject in drawn]
    assert np.corrcoef(ages, [subject.sulcus_mm for subject in drawn])[0, 1] > 0.8
    assert np.corrcoef(ages, [subject.cortex_mm for subject in drawn])[0, 1] < -0.8
