"""The figures of whole scans are those of what comes back, over 2 x 2 pixels, of the split's subjects alone."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from factories import tiny_model

from monai_vqgen.data import make_phantoms
from monai_vqgen.errors import InputError
from monai_vqgen.metrics import reconstruction_scores
from monai_vqgen.metrics.reconstruction import foreground_mask
from tools.whole_volumes import IDENTITY, measure_whole_volumes, table


@pytest.fixture
def scans(tmp_path):
    """Four scans, the last two of test subjects, and the file that says so."""
    paths = sorted(make_phantoms(tmp_path / "scans", 4, seed=1, voxel_mm=6.0, progress=False))
    first, second, *others = (path.name.split("_")[0] for path in paths)
    splits = {"training": [first], "validation": [second], "test": others}
    (tmp_path / "split.json").write_text(json.dumps(splits))
    return paths


@pytest.mark.parametrize("window", [None, (100.0, 500.0)])
def test_each_method_is_scored_on_the_scans_of_the_split(window, scans, tmp_path):
    model = tiny_model((16, 16), with_priors=False, record={"pixel_mm": 12.0, "window": window})
    model.save(tmp_path / "weights")
    figures = measure_whole_volumes(
        tmp_path / "scans",
        tmp_path / "out",
        split_file=tmp_path / "split.json",
        model=str(tmp_path / "weights"),
        shifts=[1, 3],
    )
    assert json.loads((tmp_path / "out/whole_volumes.json").read_text()) == figures
    assert (figures["split"], figures["scans"]) == ("test", 2)
    rows = figures["methods"]
    name = f"{tmp_path / 'weights'} weights"
    assert list(rows) == [IDENTITY, name, f"{name}, mean of 3 shifted reconstructions"]
    assert rows[IDENTITY]["psnr"] > rows[name]["psnr"] + 3

    for row, shifts in ((name, 1), (f"{name}, mean of 3 shifted reconstructions", 3)):
        psnr, ssim_brain = [], []
        for path in scans[2:]:
            affine = nib.load(path).affine
            values = canonical(nib.load(path).get_fdata(), affine)
            low, high = window or np.percentile(values[values > 0], model.record.percentiles)
            found = model.reconstruct(path, shifts=shifts)
            again = canonical(np.asarray(found).reshape(found.shape[-3:]), affine)
            pairs = [halves((volume - low) / (high - low), model.record.image_size) for volume in (again, values)]
            kept = foreground_mask(pairs[1]).flatten(1).sum(1) >= 50
            expected = reconstruction_scores(pairs[0][kept], pairs[1][kept])
            psnr += expected.psnr.tolist()
            ssim_brain += expected.ssim_brain.tolist()
        assert figures["slices"] == len(psnr)
        assert rows[row]["psnr"] == pytest.approx(np.mean(psnr), abs=0.1)
        assert rows[row]["ssim_brain"] == pytest.approx(np.mean(ssim_brain), abs=0.01)
    assert f"| {IDENTITY} | {rows[IDENTITY]['psnr']:.2f} | {rows[IDENTITY]['ssim_brain']:.3f} |" in table(figures)


def canonical(values: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return nib.as_closest_canonical(nib.Nifti1Image(values.astype(np.float32), affine)).get_fdata(dtype=np.float32)


def halves(values: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """Axial slices, each pixel the mean of four; the same up to how a slice is turned."""
    x, y = (side - side % 2 for side in values.shape[:2])
    clipped = np.clip(values, 0, 1)[:x, :y]
    means = clipped.reshape(x // 2, 2, y // 2, 2, -1).mean((1, 3))
    missing = [max(0, side - have) for side, have in zip(size, means.shape[:2], strict=True)]
    padded = np.pad(means, [*((n // 2, n - n // 2) for n in missing), (0, 0)])
    return torch.from_numpy(padded.transpose(2, 0, 1)[:, None].copy()).float()


def test_a_split_that_none_is_is_refused(scans, tmp_path):
    with pytest.raises(InputError, match="give one of training, validation, test"):
        measure_whole_volumes(tmp_path / "scans", tmp_path / "out", split_file=tmp_path / "split.json", split="tset")


def test_a_split_without_scans_is_refused(scans, tmp_path):
    splits = json.loads((tmp_path / "split.json").read_text())
    (tmp_path / "split.json").write_text(json.dumps({**splits, "test": []}))
    tiny_model((16, 16), with_priors=False).save(tmp_path / "weights")
    with pytest.raises(InputError, match="no scan of the test subjects"):
        measure_whole_volumes(
            tmp_path / "scans", tmp_path / "out", split_file=tmp_path / "split.json", model=str(tmp_path / "weights")
        )
