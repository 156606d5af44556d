"""Checkpoints are the best so far, plain, complete, and open without MONAI."""

from __future__ import annotations

import os

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from torch import nn

from monai_vqgen.errors import CheckpointError
from monai_vqgen.files import claim_folder, read_json
from monai_vqgen.handlers import BestCheckpoint, TrainingState
from monai_vqgen.weights import fingerprint, load_weights, save_weights


class WithBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 3, 3)
        self.register_buffer("codebook", MetaTensor(torch.ones(4, 2)))


def run_with_metrics(handler, values):
    engine = Engine(lambda engine, batch: None)

    @engine.on(Events.EPOCH_COMPLETED)
    def set_metric(engine):
        engine.state.metrics["loss"] = values[engine.state.epoch - 1]

    handler.attach(engine)
    engine.run([0], max_epochs=len(values))


def test_the_file_holds_the_weights_of_the_lowest_loss_and_says_so_beside_it(tmp_path):
    module, path, epoch_values = nn.Linear(1, 1), tmp_path / "model.pt", [3.0, 1.0, float("nan"), 2.0]
    engine = Engine(lambda engine, batch: module.weight.data.fill_(float(engine.state.epoch)))
    saver = BestCheckpoint(module, path, metric="loss", description={"level": 1})

    @engine.on(Events.EPOCH_COMPLETED)
    def set_metric(engine):
        engine.state.metrics["loss"] = epoch_values[engine.state.epoch - 1]

    saver.attach(engine)
    sealed: list[bool] = []
    engine.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: sealed.append("seal" in path.with_suffix(".json").read_text())
    )
    engine.run([0], max_epochs=4)
    assert all(sealed)
    assert float(torch.load(path, weights_only=True)["weight"]) == 2.0
    assert read_json(tmp_path / "model.json") == {
        "level": 1,
        "validation_loss": 1.0,
        "fingerprint": fingerprint(load_weights(nn.Linear(1, 1), path)),
    }


def test_without_a_metric_the_file_holds_the_newest_weights(tmp_path):
    module, path = nn.Linear(1, 1), tmp_path / "model.pt"
    engine = Engine(lambda engine, batch: module.weight.data.fill_(float(engine.state.epoch)))
    BestCheckpoint(module, path, metric=None, description={"level": 1}).attach(engine)
    engine.run([0], max_epochs=3)
    assert float(torch.load(path, weights_only=True)["weight"]) == 3.0
    assert read_json(tmp_path / "model.json") == {"level": 1, "fingerprint": fingerprint(module)}


def test_tensors_are_plain_and_contiguous_without_metadata(tmp_path):
    module = WithBuffer().to(memory_format=torch.channels_last)
    save_weights(module, tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert {type(tensor) for tensor in state.values()} == {torch.Tensor}
    assert all(tensor.is_contiguous() for tensor in state.values())
    torch.testing.assert_close(state["layer.weight"], module.layer.weight.detach().contiguous())


def test_the_wrapped_network_is_saved_under_its_own_names(tmp_path, monkeypatch):
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", Wrapper)
    save_weights(Wrapper(nn.Linear(1, 1)), tmp_path / "model.pt")
    assert sorted(torch.load(tmp_path / "model.pt", weights_only=True)) == ["bias", "weight"]


def test_a_missing_metric_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="bits"):
        run_with_metrics(BestCheckpoint(nn.Linear(1, 1), tmp_path / "m.pt", metric="bits"), [1.0])


def test_other_processes_keep_count_and_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("monai_vqgen.handlers.checkpoints.process_rank", lambda: 1)
    saver = BestCheckpoint(nn.Linear(1, 1), tmp_path / "m.pt", metric="loss")
    run_with_metrics(saver, [2.0, 1.0])
    assert saver.state_dict() == {"best": 1.0}
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "text", "other architecture", "not a state dict"])
def test_weights_that_cannot_be_loaded_are_a_clear_error(tmp_path, damage):
    path = tmp_path / "model.pt"
    save_weights(nn.Linear(4, 4), path)
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("weights")
    elif damage == "not a state dict":
        torch.save([1, 2], path)
    target = nn.Linear(4, 5) if damage == "other architecture" else nn.Linear(4, 4)
    with pytest.raises(CheckpointError, match=r"model\.pt"):
        load_weights(target, path)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"weight": Evil()}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError):
        load_weights(nn.Linear(1, 1), tmp_path / "model.pt")
    assert not (tmp_path / "ran").exists()


def test_a_state_of_another_run_is_refused(tmp_path):
    for module, resume in ((nn.Linear(3, 1), False), (nn.Conv2d(3, 1, 1), True)):
        engine = Engine(lambda engine, batch: None)
        TrainingState(tmp_path / "state.pt", {"objective": module}, resume=resume).attach(engine)
        if not resume:
            engine.run([0], max_epochs=1)
    with pytest.raises(CheckpointError, match=r"state\.pt was made with other options, objective\.in_channels"):
        engine.run([0], max_epochs=2)
    engine = Engine(lambda engine, batch: None)
    TrainingState(tmp_path / "state.pt", {"network": nn.Linear(3, 1)}, resume=True).attach(engine)
    with pytest.raises(CheckpointError, match="another kind"):
        engine.run([0], max_epochs=2)


def test_the_results_that_a_training_replaces_go_when_it_has_ended(tmp_path):
    (tmp_path / "model.pt").write_text("earlier")
    claim_folder(tmp_path, ["model.pt"], overwrite=True, set_aside=True)
    engine = Engine(lambda engine, batch: None)
    TrainingState(tmp_path / "state.pt", {}).attach(engine)
    kept = tmp_path / ".model.pt.earlier"
    seen = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(kept.exists()))
    engine.run([0], max_epochs=2)
    assert (seen, kept.exists()) == ([True, True], False)
