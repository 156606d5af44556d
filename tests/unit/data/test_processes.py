"""Parts of a list are shared out evenly, and processes that do not know of each other do not write over each other."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch.distributed as dist

from monai_vqgen.data import extract_slices, make_phantoms, processes
from monai_vqgen.data.processes import check_joined, gather, own_part, wait_for_all
from monai_vqgen.engines import own_block, write_codes
from monai_vqgen.errors import InputError
from monai_vqgen.networks import HierarchicalVQVAE
from monai_vqgen.transforms import LoadSliced


def parts_of(items, count, monkeypatch, share=own_part) -> list:
    parts = []
    for rank in range(count):
        monkeypatch.setattr("monai_vqgen.data.processes.process_rank", lambda rank=rank: rank)
        monkeypatch.setattr("monai_vqgen.data.processes.process_count", lambda: count)
        monkeypatch.setattr("monai_vqgen.engines.distributed.process_count", lambda: count)
        parts.append(list(share(items)))
    return parts


@pytest.mark.parametrize("count", [1, 2, 4, 7])
@pytest.mark.parametrize("length", [0, 1, 3, 13, 28])
def test_parts_follow_one_another_and_differ_by_one_at_most(length, count, monkeypatch):
    parts = parts_of(range(length), count, monkeypatch)
    assert [item for part in parts for item in part] == list(range(length))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_block_is_a_part_that_is_not_empty(monkeypatch):
    assert parts_of(range(5), 2, monkeypatch, own_block) == [[0, 1], [2, 3, 4]]
    with pytest.raises(InputError, match="3 items for 4 processes"):
        parts_of(range(3), 4, monkeypatch, own_block)


def test_one_process_waits_for_none():
    wait_for_all()
    assert gather("mine") == ["mine"]


def test_processes_that_are_not_joined_are_refused_before_they_write(monkeypatch, tmp_path):
    check_joined()
    make_phantoms(tmp_path / "scans", 3, voxel_mm=8.0, progress=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="multi_gpu"):
        extract_slices(tmp_path / "scans", tmp_path / "slices", num_workers=0, progress=False)
    with pytest.raises(InputError, match="multi_gpu"):
        write_codes(
            HierarchicalVQVAE(channels=8, residual_channels=4),
            tmp_path / "slices",
            tmp_path / "codes",
            preprocessing=LoadSliced("image"),
        )
    assert {path.name for path in tmp_path.iterdir()} == {"scans"}


def test_no_process_group_outlives_the_end(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    beside = weakref.ref(processes._group_beside(dist.group.WORLD))
    assert beside() is not None
    processes.end_distributed()
    gc.collect()
    assert beside() is None
    assert not dist.is_initialized()
    processes.end_distributed()  # without a group there is nothing to leave
