"""Slices become codes once, in order, and held-out subjects outside the trained ranges can still be scored."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from near_ties import assert_same_codes
from PIL import Image

from monai_vqgen.engines import check_mirroring, encode_records, write_codes
from monai_vqgen.errors import DatalistError, InputError
from monai_vqgen.networks import ConditionEncoder, EMACodebook, HierarchicalVQVAE
from monai_vqgen.transforms import LoadSliced
from monai_vqgen.transforms.geometry import PLANES
from monai_vqgen.weights import fingerprint


def write_folders(folder, counts=(5, 2), size=(16, 16)) -> None:
    random = np.random.default_rng(0)
    for split, count in zip(("train", "validate"), counts, strict=True):
        (folder / split).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 255, size, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{i}.png")


@pytest.fixture
def network() -> HierarchicalVQVAE:
    torch.manual_seed(0)
    quantizers = [EMACodebook(16, 4), EMACodebook(16, 4)]
    network = HierarchicalVQVAE(channels=8, residual_channels=4, quantizers=quantizers)
    network.train_pass(torch.rand(16, 1, 16, 16))  # spreads the codes over the latents
    return network


def test_each_slice_has_its_own_codes_whatever_the_batch_and_mirrored_copies_follow(tmp_path, network):
    write_folders(tmp_path / "slices")
    load = LoadSliced("image")
    store = write_codes(
        network, tmp_path / "slices", tmp_path / "codes", preprocessing=load, batch_size=2, mirror_training=True
    )
    assert store.fingerprint == fingerprint(network)
    assert store.image_size == (16, 16)
    assert store.splits == ("training", "validation")  # a missing test split is no error
    records = store.records("training")
    assert len(store.codes("training", 1).unique()) > 4
    assert [record.get("mirrored", False) for record in records] == [False] * 5 + [True] * 5
    grids: list[list[torch.Tensor]] = [[], []]
    for record in records:
        image = load({"image": str(tmp_path / "slices" / "train" / record["image"])})["image"].as_tensor()[None]
        image = image.flip(-1) if record.get("mirrored") else image
        for grid, codes_bs in zip(grids, network.encode(image), strict=True):
            grid.append(codes_bs)
    for level, grid in enumerate(grids):  # encoded one by one here, in batches of two there
        assert_same_codes(torch.as_tensor(store.codes("training", level)), torch.cat(grid))


def test_slices_of_different_sizes_are_refused_with_the_mend(tmp_path, network):
    write_folders(tmp_path)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "train" / "9.png")
    with pytest.raises(InputError, match="image_size"):
        write_codes(network, tmp_path, tmp_path / "codes", preprocessing=LoadSliced("image"), batch_size=2)


def test_a_missing_training_split_is_an_error(tmp_path, network):
    (tmp_path / "test").mkdir()
    with pytest.raises(DatalistError):
        write_codes(network, tmp_path, tmp_path / "codes", preprocessing=LoadSliced("image"))


@pytest.mark.parametrize("listed", [None, [], [{"image": "train/1.png"}, {"image": "gone.png"}]])
def test_a_test_split_may_be_absent_or_empty_but_not_damaged(tmp_path, network, listed):
    write_folders(tmp_path)
    datalist = {"training": [{"image": "train/0.png"}], "validation": [{"image": "validate/0.png"}], "test": listed}
    (tmp_path / "datalist.json").write_text(
        json.dumps({name: items for name, items in datalist.items() if items is not None})
    )
    load = LoadSliced("image")
    if listed:
        with pytest.raises(DatalistError, match=r"gone\.png"):
            write_codes(network, tmp_path, tmp_path / "codes", preprocessing=load)
    else:
        store = write_codes(network, tmp_path, tmp_path / "codes", preprocessing=load)
        assert store.splits == ("training", "validation")


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_only_planes_whose_last_axis_runs_from_left_to_right_are_mirrored(tmp_path, network, plane):
    assert ("L" in PLANES[plane][1]) == (plane != "sagittal")
    write_folders(tmp_path)
    datalist = {"plane": plane, "training": [{"image": "train/0.png"}], "validation": [{"image": "validate/0.png"}]}
    (tmp_path / "datalist.json").write_text(json.dumps(datalist))
    arguments = (network, tmp_path, tmp_path / "codes")
    check_mirroring(plane, 0.0)
    if plane == "sagittal":
        with pytest.raises(InputError, match="front to back"):
            write_codes(*arguments, preprocessing=LoadSliced("image"), mirror_training=True)
    else:
        assert write_codes(*arguments, preprocessing=LoadSliced("image"), mirror_training=True).geometry.plane == plane


def test_values_outside_the_trained_ranges_are_moved_and_counted(caplog):
    encoder = ConditionEncoder({"age": (20, 60)}, {"sex": ["F", "M"]})
    records = [{"age": 70.0, "sex": "F"}, {"age": 20.0, "sex": "X", "subject": "sub-1"}, {}]
    with caplog.at_level(logging.WARNING):
        features = encode_records(encoder, records)
    expected = encoder.encode([{"age": 60, "sex": "F"}, {"age": 20}, {}])
    assert torch.equal(features, expected)
    assert "2 condition values" in caplog.text
