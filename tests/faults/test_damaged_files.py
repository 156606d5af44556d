"""One bit that turned, a cut, a value that is no number: weights and training states are refused by name."""

from __future__ import annotations

import logging
import math
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from monai_vqgen.bundles import bundle_root
from monai_vqgen.errors import CheckpointError
from monai_vqgen.handlers import TrainingState
from monai_vqgen.models.loading import load_autoencoder
from monai_vqgen.weights import load_weights, read_state, save_weights, write_state

SHIPPED = bundle_root() / "models"


def turn_bit(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)


def some_bits(path: Path, count: int) -> list[int]:
    """Anywhere in the file, and each byte of its last hundred, where the checksum and the end of the zip file lie."""
    size = path.stat().st_size
    anywhere = np.random.default_rng(0).integers(0, 8 * size, count).tolist()
    return anywhere + [8 * byte + byte % 8 for byte in range(max(0, size - 100), size)]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))


@pytest.mark.parametrize("writer", ["ours", "torch's"])
def test_a_turned_bit_is_refused_or_changes_nothing_and_the_error_names_the_file(tmp_path, writer):
    path, whole = tmp_path / "model.pt", network().state_dict()
    if writer == "ours":
        save_weights(network(), path)
    else:  # files of 0.1 and 0.2 are as torch writes them
        torch.save(whole, path)
    intact, refused = path.read_bytes(), 0
    bits = some_bits(path, 400)
    for bit in bits:
        path.write_bytes(intact)
        turn_bit(path, bit)
        try:
            loaded = load_weights(network(), path).state_dict()
        except CheckpointError as error:
            refused += "model.pt" in str(error)
        else:
            assert all(torch.equal(loaded[name], tensor) for name, tensor in whole.items()), f"bit {bit}"
    if writer == "ours":
        assert refused == len(bits)


def test_a_training_state_is_refused_for_a_turned_bit_anywhere(tmp_path):
    module, path = network(), tmp_path / "state.pt"
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.randn(4, 6)).sum().backward()
    optimizer.step()
    write_state({"place": {"epoch": 3}, "parts": {"optimizer": optimizer.state_dict()}}, path)
    intact = path.read_bytes()
    assert read_state(path)["place"] == {"epoch": 3}
    for bit in some_bits(path, 200):
        path.write_bytes(intact)
        turn_bit(path, bit)
        with pytest.raises(CheckpointError, match=r"state\.pt"):
            read_state(path)


@pytest.mark.parametrize("length", [0, 1, 21, 22, 70, 71, 500, -1, -64, -71])
def test_a_file_cut_or_lengthened_anywhere_is_refused(tmp_path, length):
    path = tmp_path / "model.pt"
    save_weights(network(), path)
    written = path.read_bytes()
    for content in (written[:length], written + written[:length] if length > 0 else written + b"\n"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.pt"):
            load_weights(network(), path)


def test_a_sealed_file_is_a_plain_one_to_any_other_reader(tmp_path):
    path = tmp_path / "model.pt"
    save_weights(network(), path)
    for name, tensor in torch.load(path, weights_only=True, mmap=True).items():
        assert torch.equal(tensor, network().state_dict()[name])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"sha256:")


def test_the_weights_that_ship_load_and_their_record_is_that_of_their_tensors(tmp_path):
    for name in ("model.pt", "model.json"):
        shutil.copy(SHIPPED / name, tmp_path)
    _, record = load_autoencoder(tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    name, tensor = next((name, tensor) for name, tensor in state.items() if tensor.ndim > 1)
    state[name] = tensor.view(torch.int32).bitwise_xor(1).view(torch.float32)
    torch.save(state, tmp_path / "model.pt")  # whole as a file: the record alone tells
    with pytest.raises(CheckpointError, match=record.fingerprint[:12]):
        load_autoencoder(tmp_path / "model.pt")
    shutil.copy(SHIPPED / "model.pt", tmp_path)
    turn_bit(tmp_path / "model.pt", 8 * ((tmp_path / "model.pt").stat().st_size // 2))
    with pytest.raises(CheckpointError, match=r"model\.pt cannot be read"):
        load_autoencoder(tmp_path / "model.pt")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_neither_written_nor_read(tmp_path, value):
    path, module = tmp_path / "model.pt", network()
    save_weights(module, path)
    before = path.read_bytes()
    module[1].running_var[2] = value
    with pytest.raises(CheckpointError, match=r"1\.running_var.*model\.pt is not written"):
        save_weights(module, path)
    assert path.read_bytes() == before
    torch.save(module.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"model\.pt holds values.*1\.running_var"):
        load_weights(network(), path)


def engine_of(folder: Path, *, epochs: int, resume: bool = False) -> tuple[Engine, nn.Module]:
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)

    def step(engine, batch):
        torch.manual_seed(engine.state.iteration)
        optimizer.zero_grad()
        (module(torch.randn(8, 3)) - 1).square().mean().backward()
        optimizer.step()

    engine = Engine(step)
    TrainingState(folder / "state.pt", {"objective": module, "optimizer": optimizer}, resume=resume).attach(engine)
    engine.state.max_epochs = epochs
    return engine, module


@pytest.mark.parametrize("fault", ["bit", "cut", "empty", "gone", "not finite"])
def test_the_state_before_the_last_is_taken_with_a_warning_and_the_run_ends_alike(tmp_path, caplog, fault):
    (tmp_path / "whole").mkdir()
    engine, whole = engine_of(tmp_path / "whole", epochs=5)
    engine.run([0], max_epochs=5)
    engine, _ = engine_of(tmp_path, epochs=3)
    engine.run([0], max_epochs=3)
    path = tmp_path / "state.pt"
    if fault == "bit":
        turn_bit(path, 8 * path.stat().st_size // 2)
    elif fault == "cut":
        path.write_bytes(path.read_bytes()[:-300])
    elif fault == "empty":
        path.write_bytes(b"")
    elif fault == "gone":  # killed between the two renames
        path.unlink()
    else:
        saved = torch.load(path, weights_only=True)
        saved["parts"]["objective"]["bias"][0] = math.nan
        torch.save(saved, path)
    engine, resumed = engine_of(tmp_path, epochs=5, resume=True)
    with caplog.at_level(logging.WARNING):
        engine.run([0], max_epochs=5)
    assert "state.previous.pt" in caplog.text
    assert torch.equal(whole.weight, resumed.weight)
    assert read_state(path)["place"]["epoch"] == 5
    assert read_state(tmp_path / "state.previous.pt")["place"]["epoch"] == 4


def test_a_state_written_through_a_linked_folder_lies_whole_behind_the_link(tmp_path):
    for name in ("whole", "disk"):
        (tmp_path / name).mkdir()
    engine, whole = engine_of(tmp_path / "whole", epochs=4)
    engine.run([0], max_epochs=4)
    link = tmp_path / "link"
    link.symlink_to("disk", target_is_directory=True)
    for place, epochs in ((link, 2), (tmp_path / "disk", 3), (link, 4)):
        engine, module = engine_of(place, epochs=epochs, resume=epochs > 2)
        engine.run([0], max_epochs=epochs)
    assert torch.equal(whole.weight, module.weight)
    assert link.is_symlink()
    names = ["state.previous.pt", "state.pt"]
    assert sorted(path.name for path in (tmp_path / "disk").iterdir() if not path.is_symlink()) == names
    assert [read_state(tmp_path / "disk" / name)["place"]["epoch"] for name in names] == [3, 4]


def test_where_both_states_are_damaged_the_run_is_refused_and_nothing_is_removed(tmp_path):
    engine, _ = engine_of(tmp_path, epochs=2)
    engine.run([0], max_epochs=2)
    for name in ("state.pt", "state.previous.pt"):
        turn_bit(tmp_path / name, 4000)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    engine, _ = engine_of(tmp_path, epochs=3, resume=True)
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be read"):
        engine.run([0], max_epochs=3)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_new_run_does_not_leave_the_states_of_an_earlier_one_to_fall_back_on(tmp_path):
    engine, _ = engine_of(tmp_path, epochs=4)
    engine.run([0], max_epochs=4)
    engine, _ = engine_of(tmp_path, epochs=1)
    left = []
    engine.add_event_handler(Events.EPOCH_STARTED, lambda: left.extend(path.name for path in tmp_path.iterdir()))
    engine.run([0], max_epochs=1)
    assert left == ["state.pt"]


def test_weights_that_are_not_there_say_what_to_give_before_they_say_to_train(tmp_path):
    told = r"no checkpoint at .*model.pt: give --bundle_root, the folder with models/ in it, or --model, .* train first"
    with pytest.raises(CheckpointError, match=told):
        read_state(tmp_path / "model.pt")
