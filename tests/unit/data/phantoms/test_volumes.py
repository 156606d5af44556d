"""Phantoms: brains that differ, stored as variously as real scans, the same for the same seed."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from monai_vqgen.data import discover_volumes, make_phantom, make_phantoms
from monai_vqgen.data.phantoms.volumes import ORIENTATIONS
from monai_vqgen.errors import InputError, OutputExistsError
from monai_vqgen.transforms.volume_slicing import locate_planes, prepare_volume


@pytest.fixture(scope="module")
def phantoms():
    return [make_phantom(0, index, voxel_mm=3.0) for index in range(8)]


def test_storage_and_geometry_differ(phantoms):
    assert len(ORIENTATIONS) == len(set(ORIENTATIONS)) == 48
    assert len({nib.aff2axcodes(p.affine) for p in phantoms}) >= 6
    assert len({p.voxels_s.dtype for p in phantoms}) == 2
    assert sum(np.rad2deg(nib.affines.obliquity(p.affine)).max() > 2 for p in phantoms) >= 4
    spacing = np.array([nib.affines.voxel_sizes(p.affine) for p in phantoms])
    assert spacing.std() > 0.1


def test_background_is_exactly_zero_and_the_brain_has_adult_size(phantoms):
    for phantom in phantoms:
        voxels = phantom.voxels_s
        assert (voxels == 0).mean() > 0.4
        border = [voxels.take(end, axis=axis) for axis in range(3) for end in (0, -1)]
        assert not any(face.any() for face in border), "the field of view holds the brain"
        litres = (voxels > 0).sum() * abs(np.linalg.det(phantom.affine[:3, :3])) / 1e6
        assert 0.8 < litres < 1.8


def test_slices_show_two_hemispheres_and_gray_on_white(phantoms):
    for phantom in phantoms:
        prepared = prepare_volume(phantom.voxels_s, phantom.affine, "axial")
        for plane in locate_planes(prepared, [40.0, 70.0, 100.0]):
            assert plane is not None, "a brain reaches 100 mm below its top"
        (plane,) = locate_planes(prepared, [40.0])
        pixels = prepared.view.volume_s[:, :, plane.number].astype(float)
        inside = pixels[pixels > prepared.threshold] / prepared.window.high
        assert (inside > 0.75).mean() > 0.2, "white matter"
        assert ((inside > 0.4) & (inside < 0.7)).mean() > 0.15, "gray matter"
        assert (inside < 0.3).mean() > 0.02, "fluid"


def test_age_widens_the_ventricles():
    def fluid(phantom):
        image = phantom.voxels_s / np.percentile(phantom.voxels_s, 99.5)
        middle = tuple(slice(n // 3, 2 * n // 3) for n in image.shape)
        return (image[middle] < 0.3).mean()

    heads = [make_phantom(1, index, voxel_mm=5.0) for index in range(24)]
    correlation = np.corrcoef([p.subject.age for p in heads], [fluid(p) for p in heads])[0, 1]
    assert correlation > 0.4


def test_subjects_differ_and_seeds_repeat(tmp_path):
    make_phantoms(tmp_path / "a", 3, voxel_mm=5, progress=False)
    make_phantoms(tmp_path / "b", 3, voxel_mm=5, progress=False)
    make_phantoms(tmp_path / "c", 3, seed=1, voxel_mm=5, progress=False)
    content = {folder: [p.read_bytes() for p in sorted((tmp_path / folder).iterdir())] for folder in "abc"}
    assert content["a"] == content["b"]
    assert len(set(content["a"] + content["c"])) == 8
    records = discover_volumes(tmp_path / "a")
    assert [r.subject for r in records] == ["sub-01", "sub-02", "sub-03"]
    assert all(18 <= r.columns["age"] <= 85 and r.columns["sex"] in ("f", "m") for r in records)
    with pytest.raises(OutputExistsError):
        make_phantoms(tmp_path / "a", 3, progress=False)


def test_requests_that_cannot_work_are_refused(tmp_path):
    with pytest.raises(InputError, match="num_subjects"):
        make_phantoms(tmp_path, 0)
    with pytest.raises(InputError, match="voxel_mm"):
        make_phantom(0, voxel_mm=0)
    with pytest.raises(InputError, match="orientation"):
        make_phantom(0, orientation="XYZ")
