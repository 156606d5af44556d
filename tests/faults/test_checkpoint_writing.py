"""A full disk or a kill while a checkpoint is written leaves the previous one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from factories import tiny_autoencoder
from torch import nn

from monai_vqgen.errors import CheckpointError
from monai_vqgen.files import read_json
from monai_vqgen.handlers import BestCheckpoint
from monai_vqgen.models.loading import load_autoencoder
from monai_vqgen.models.record import autoencoder_record
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


class Killed(BaseException):
    """Nothing that runs catches it."""


@pytest.mark.parametrize("renames", range(4))
def test_a_kill_between_weights_and_their_record_leaves_two_that_belong_together(tmp_path, monkeypatch, renames):
    network, path = tiny_autoencoder(), tmp_path / "model.pt"
    saver = BestCheckpoint(network, path, metric="loss", description=autoencoder_record(network, pixel_mm=3.0))

    def save(loss, weight):
        for parameter in network.parameters():
            torch.nn.init.constant_(parameter, weight)
        saver(SimpleNamespace(state=SimpleNamespace(metrics={"loss": loss}, epoch=1)))

    save(9.0, 0.25)
    replace, values = os.replace, [0.25]
    for loss in (8.0, 7.0):  # and once more before the first is mended
        left = [renames]

        def killing(source, target, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            replace(source, target)

        monkeypatch.setattr(os, "replace", killing)
        if renames < 3:
            with pytest.raises(Killed):
                save(loss, loss)
        else:
            save(loss, loss)
        monkeypatch.undo()
        values.append(loss)
        loaded, record = load_autoencoder(path)
        assert next(loaded.parameters()).flatten()[0].item() in values
        assert record.pixel_mm == 3.0
    save(1.0, 0.5)
    assert load_autoencoder(path)[1].fingerprint == read_json(tmp_path / "model.json")["fingerprint"]
    assert "replaces" not in read_json(tmp_path / "model.json")
    turned = load_autoencoder(path)[0]
    torch.nn.init.constant_(next(turned.parameters()), 3.0)
    save_weights(turned, path)
    with pytest.raises(CheckpointError, match="record of other weights"):
        load_autoencoder(path)
