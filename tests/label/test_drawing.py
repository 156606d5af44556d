"""Sampling and completion: seeded, marked as synthetic, and nothing known is changed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
import requests
from PIL import Image

KNOBS = {"num_samples": 3, "seed": 11, "temperature": 0.8, "position_mm": 55.0, "sex": "F"}


def voxels(path) -> np.ndarray:
    return nib.load(path).get_fdata()


def test_samples_are_what_the_priors_draw_for_the_seed_and_are_marked(client, bundle):
    path, answer = client.infer("sampling", "none", dict(KNOBS))
    image = nib.load(path)
    assert image.shape == (32, 32, 3)
    np.testing.assert_allclose(nib.affines.voxel_sizes(image.affine), 4.0)
    assert answer["synthetic"] is True
    assert (answer["seed"], answer["temperature"], answer["num_samples"]) == (11, [0.8, 0.8], 3)
    assert answer["model_version"]
    assert len(answer["autoencoder_fingerprint"]) == 64
    assert [each["condition"]["position_mm"] for each in answer["samples"]] == [55.0] * 3
    assert b'"synthetic": true' in image.header.extensions[0].get_content()
    again, _ = client.infer("sampling", "none", dict(KNOBS))
    np.testing.assert_array_equal(voxels(again), image.get_fdata())
    other, _ = client.infer("sampling", "none", {**KNOBS, "seed": 12})
    assert np.abs(voxels(other) - image.get_fdata()).max() > 0


def test_samples_of_the_server_are_those_of_the_command_line(client, bundle, tmp_path):
    from monai_vqgen import TrainedModel

    expected = TrainedModel.from_bundle(bundle).sample(3, seed=11, temperature=0.8, position_mm=55.0, sex="F")
    path, _ = client.infer("sampling", "none", dict(KNOBS))
    np.testing.assert_allclose(voxels(path), np.moveaxis(expected.images[:, 0].numpy(), 0, -1), atol=1e-6)


@pytest.mark.parametrize("kind", ["nifti", "png", "box"])
def test_completion_changes_the_region_alone_and_does_not_look_under_it(client, studies, tmp_path, kind):
    source = nib.load(studies / "slices" / "slice.nii.gz")
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[8:20, 12:24] = 1
    label = tmp_path / ("mask.png" if kind == "png" else "mask.nii.gz")
    if kind == "png":
        Image.fromarray(mask * 255).save(label)
    else:
        nib.save(nib.Nifti1Image(mask[..., None], source.affine), label)
    hidden = source.get_fdata()[..., 0].copy()
    hidden[mask > 0] = 0.99
    changed = tmp_path / "changed.nii.gz"
    nib.save(nib.Nifti1Image(hidden[..., None].astype(np.float32), source.affine), changed)
    knobs = {"num_samples": 2, "seed": 3, "position_mm": 64.0, "age": 40, "sex": "M"}
    if kind == "box":
        knobs["box"] = [8, 12, 20, 24]
    results = []
    for path in (studies / "slices" / "slice.nii.gz", changed):
        result, answer = client.infer(
            "completion", "", dict(knobs), label_in=None if kind == "box" else str(label), file=str(path)
        )
        results.append(nib.load(result))
    assert answer["synthetic"] is True
    assert 0 < answer["codes_drawn"] < 1
    first = results[0].get_fdata()
    assert first.shape == (32, 32, 2)
    np.testing.assert_allclose(results[0].affine, source.affine, atol=1e-6)
    np.testing.assert_array_equal(first[mask == 0], source.get_fdata()[..., 0][mask == 0][:, None].repeat(2, 1))
    np.testing.assert_array_equal(results[1].get_fdata()[mask > 0], first[mask > 0])
    assert np.abs(first[mask > 0][:, 0] - first[mask > 0][:, 1]).max() > 0


def test_ten_requests_at_once_give_the_answers_of_one_after_another(server, studies):
    def ask(number: int) -> bytes:
        if number % 2:
            url, params = f"{server.url}/infer/sampling?image=none&output=image", f'{{"seed": {number}}}'
        else:
            planes = ("axial", "coronal", "sagittal")
            url = f"{server.url}/infer/reconstruction?image={planes[number % 3]}&output=image"
            params = f'{{"plane": "{planes[number // 2 % 3]}"}}'
        answer = requests.post(url, data={"params": params}, timeout=300)
        assert answer.status_code == 200, answer.text
        return answer.content

    with ThreadPoolExecutor(10) as pool:
        at_once = list(pool.map(ask, range(10)))
    assert at_once == [ask(number) for number in range(10)]
