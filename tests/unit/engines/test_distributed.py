"""Joining the process group of a launcher."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

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
