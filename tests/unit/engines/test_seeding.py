"""Randomness is a function of seed and epoch; rows and ranks are those that the launcher tells, however many run."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import Dataset
from monai.transforms import RandFlip

from monai_vqgen.engines import EpochSeeding, shard
from monai_vqgen.errors import InputError


def draws_of_epochs(seed: int, *, first_epoch: int, epochs: int) -> list[tuple[float, ...]]:
    transform = RandFlip(prob=0.5)
    drawn = []

    def step(engine, batch):
        legacy = np.random.rand()  # noqa: NPY002  MONAI and others still draw from it
        drawn.append((random.random(), legacy, float(torch.rand(())), transform.R.rand()))

    engine = Engine(step)
    EpochSeeding(seed, Dataset([0], transform)).attach(engine)
    engine.state.epoch = first_epoch
    for epoch in range(first_epoch + 1, first_epoch + epochs + 1):
        engine.state.epoch = epoch
        engine.fire_event(Events.EPOCH_STARTED)
        step(engine, None)
    return drawn


def test_an_epoch_draws_the_same_however_it_was_reached():
    whole = draws_of_epochs(3, first_epoch=0, epochs=3)
    resumed = draws_of_epochs(3, first_epoch=2, epochs=1)
    assert resumed[-1] == whole[-1]
    assert len(set(whole)) == 3
    assert draws_of_epochs(4, first_epoch=0, epochs=1) != whole[:1]


def test_two_processes_share_the_order_of_one(monkeypatch):
    dataset = list(range(12))
    alone = list(shard(dataset, shuffle=True, seed=5))
    parts = []
    for rank in range(2):
        monkeypatch.setattr("monai_vqgen.engines.distributed.process_count", lambda: 2)
        monkeypatch.setattr("monai_vqgen.engines.distributed.process_rank", lambda rank=rank: rank)
        parts.append(list(shard(dataset, shuffle=True, seed=5)))
    assert [row for pair in zip(*parts, strict=True) for row in pair] == alone


def test_validation_rows_are_shared_out_once_each(monkeypatch):
    rows = []
    for rank in range(2):
        monkeypatch.setattr("monai_vqgen.engines.distributed.process_count", lambda: 2)
        monkeypatch.setattr("monai_vqgen.engines.distributed.process_rank", lambda rank=rank: rank)
        rows += shard(list(range(5)), shuffle=False)
    assert sorted(rows) == [0, 1, 2, 3, 4]


def test_an_empty_data_set_and_processes_that_are_not_joined_are_refused(monkeypatch):
    with pytest.raises(InputError, match="0 items"):
        shard([], shuffle=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="multi_gpu"):
        shard([1], shuffle=True)


JOIN = """
import ignite.distributed as idist
from monai_vqgen.engines import end_distributed, start_distributed
start_distributed("cpu")
idist.barrier()
print("local rank", idist.get_local_rank())
end_distributed()
"""


def test_in_a_slurm_job_torchruns_local_rank_counts_and_not_slurms():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {"RANK": "0", "LOCAL_RANK": "3", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    slurm = {"SLURM_JOB_ID": "5", "SLURM_LOCALID": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", JOIN], env={**os.environ, **ranks, **slurm}, capture_output=True, text=True, timeout=300
    )
    assert "local rank 3" in ended.stdout, ended.stderr
