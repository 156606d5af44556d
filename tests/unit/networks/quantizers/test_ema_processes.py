"""Two processes with uneven shares of the data keep one codebook, restarts included."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from monai_vqgen.networks import EMACodebook

STEPS, MOVE, CODES, DIM = 45, 10, 8, 3
ROWS = (40, 13)  # of each rank


def learn(rank: int, port: int, folder: str) -> None:
    """One rank: its own latents, uneven in number; writes its buffers, and which codes restarted at each step."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        torch.manual_seed(0)
        codebook = EMACodebook(CODES, DIM, restart_below=0.95, decay=0.9)
        generator = torch.Generator().manual_seed(100 + rank)
        restarts = 0
        for step in range(STEPS):
            # Clusters that move once: codes of the old ones fall out of use, until their counts are low enough.
            centers_nd = torch.randn(3, DIM, generator=torch.Generator().manual_seed(int(step >= MOVE))) * 10
            picks = torch.randint(0, 3, (ROWS[rank],), generator=generator)
            latents_bds = (centers_nd[picks] + torch.randn(ROWS[rank], DIM, generator=generator)).T[None]
            codebook.prepare(latents_bds)
            codes_bs = codebook(latents_bds).codes_bs
            batch_counts_k = torch.bincount(codes_bs.flatten(), minlength=CODES).float()
            dist.all_reduce(batch_counts_k)
            decayed_k = 0.9 * codebook.counts_k + 0.1 * batch_counts_k
            codebook.learn(latents_bds, codes_bs)
            restarted_k = (decayed_k < 0.95) & (codebook.counts_k == 1)
            assert torch.equal(codebook.sums_kd[restarted_k], codebook.embeddings_kd[restarted_k])
            restarts += int(restarted_k.sum())
        torch.save({"buffers": codebook.state_dict(), "restarts": restarts}, Path(folder) / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_codebooks_stay_equal_through_restarts_when_the_shares_are_uneven(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(learn, args=(port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["restarts"] == second["restarts"] > 0
    for name, tensor in first["buffers"].items():
        assert torch.equal(tensor, second["buffers"][name]), name
