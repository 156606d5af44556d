"""A full disk or a kill while a checkpoint is written leaves the previous one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import torch
from torch import nn

from monai_vqgen.weights import load_weights, save_weights

WRITER = """
import sys, torch
from torch import nn
from monai_vqgen.weights import save_weights
module, value = nn.Linear(700, 700), 0
while True:
    value += 1
    nn.init.constant_(module.weight, float(value))
    save_weights(module, sys.argv[1])
    print(value, flush=True)
"""

FULL_DISK = """
import resource, signal, sys
from torch import nn
from monai_vqgen.weights import save_weights
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit then fails as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_weights(nn.Linear(700, 700), sys.argv[1])
except OSError:
    sys.exit(7)
"""


def test_a_full_disk_leaves_the_previous_checkpoint_and_no_debris(tmp_path):
    path = tmp_path / "model.pt"
    save_weights(nn.Linear(3, 3), path)
    before = path.read_bytes()
    result = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, check=False, timeout=120)
    assert result.returncode == 7, result.stderr.decode()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.pt"]


def test_a_kill_at_any_moment_leaves_a_complete_checkpoint(tmp_path):
    path = tmp_path / "model.pt"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == "1"
        time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    weights = load_weights(nn.Linear(700, 700), path).weight.detach()
    assert torch.equal(weights, torch.full_like(weights, float(weights[0, 0])))
