"""History, guards, output folders, statistics and pictures keep their promises."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from PIL import Image

from monai_vqgen.engines import objective_loss
from monai_vqgen.errors import InputError, OutputExistsError, VQGenError
from monai_vqgen.handlers import (
    CodebookHealth,
    GradientGuard,
    History,
    ObjectiveMean,
    Patience,
    ReconstructionImages,
    SampleImages,
    TimeBudget,
    TrainingProgress,
    claim_output,
    image_rows,
    publish_output,
)
from monai_vqgen.networks import GatedPixelCNN, HierarchicalVQVAE


def engine_with(metrics: dict[str, list[float]]) -> Engine:
    engine = Engine(lambda engine, batch: None)

    @engine.on(Events.EPOCH_COMPLETED)
    def set_metrics(engine):
        engine.state.metrics = {name: values[engine.state.epoch - 1] for name, values in metrics.items()}

    return engine


def test_history_writes_the_curves_of_trainer_and_evaluator(tmp_path):
    engine, evaluator = engine_with({"loss": [3.0, float("nan"), 1.0, 0.5]}), Engine(lambda engine, batch: None)
    evaluator.state.metrics["loss"] = 7.0
    History(tmp_path / "history.json", evaluator, interval=2).attach(engine)
    engine.run([0], max_epochs=4)
    assert json.loads((tmp_path / "history.json").read_text()) == {
        "train": {"epoch": [1, 2, 3, 4], "iteration": [1, 2, 3, 4], "loss": [3.0, None, 1.0, 0.5]},
        "validation": {"epoch": [2, 4], "loss": [7.0, 7.0]},
    }


def test_resumed_history_forgets_the_epoch_that_is_repeated(tmp_path):
    path = tmp_path / "history.json"
    engine = engine_with({"loss": [3.0, 2.0, 1.0]})
    History(path).attach(engine)
    engine.run([0], max_epochs=3)
    engine = engine_with({"loss": [0.0, 0.0, 9.0, 8.0]})
    engine.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "epoch", 2))
    History(path, resume=True).attach(engine)
    engine.run([0], max_epochs=4)
    curves = json.loads(path.read_text())["train"]
    assert curves.pop("iteration")[:2] == [1, 2]
    assert curves == {"epoch": [1, 2, 3, 4], "loss": [3.0, 2.0, 9.0, 8.0]}


@pytest.mark.parametrize(
    "written", ["", "{", "[1]", '{"train": 3}', '{"train": {"epoch": [null]}}', '{"train": {"epoch": 3}}']
)
def test_damaged_curves_do_not_end_a_resumed_run(tmp_path, written, caplog):
    (tmp_path / "history.json").write_text(written)
    history = History(tmp_path / "history.json", resume=True)
    trainer = Engine(lambda engine, batch: None)
    history.attach(trainer)
    trainer.run([0], max_epochs=1)
    assert json.loads((tmp_path / "history.json").read_text())["train"]["epoch"] == [1]
    assert "its curves begin anew" in caplog.text


@pytest.mark.parametrize(("patience", "last_epoch"), [(2, 4), (3, 6), (0, 6)])
def test_patience_ends_the_training_after_as_many_validations_without_progress(patience, last_epoch):
    engine, evaluator = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    losses = [3.0, 2.0, 2.5, 2.2, 1.0, 0.5]
    engine.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: evaluator.state.metrics.update(loss=losses[engine.state.epoch - 1])
    )
    Patience(evaluator, metric="loss", patience=patience).attach(engine)
    engine.run([0], max_epochs=6)
    assert engine.state.epoch == last_epoch


@pytest.mark.parametrize(("patience", "last_epoch"), [(2, 5), (3, 6)])
def test_patience_that_was_over_before_an_interruption_trains_no_epoch_more(patience, last_epoch):
    engine, evaluator = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    evaluator.state.metrics["loss"] = 1.0
    handler = Patience(evaluator, metric="loss", patience=patience)
    handler.attach(engine)
    state = {"counter": 2, "best_score": -1.0, "threshold_mode": "abs"}
    engine.add_event_handler(Events.STARTED, lambda _: handler.load_state_dict(state))
    engine.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "epoch", 5))
    engine.run([0], max_epochs=8)
    assert engine.state.epoch == last_epoch


class Diverging(torch.nn.Module):
    """Its loss is NaN from the third batch on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        loss = (self.weight * images).mean() * (math.nan if self.calls > 2 else 1.0)
        return {"loss": loss, "value": images.flatten(1).mean(1), "codes_0": images[:, 0].long()}


def trainer_of(module, batches, handlers, metrics=None) -> SupervisedTrainer:
    return SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=batches,
        network=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        loss_function=objective_loss,
        key_train_metric=metrics,
        train_handlers=handlers,
    )


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_the_weights_finite():
    module = Diverging()
    trainer = trainer_of(module, [{"image": torch.ones(2, 1, 2, 2)}] * 4, [GradientGuard(module)])
    with pytest.raises(VQGenError, match="epoch 1, iteration 3"):
        trainer.run()
    assert bool(torch.isfinite(module.weight).all())


@pytest.mark.parametrize(("max_norm", "expected"), [(0.0, 6.0), (1.5, 1.5), (10.0, 6.0)])
def test_gradients_are_scaled_down_to_the_largest_norm_and_never_up(max_norm, expected):
    module = torch.nn.Linear(4, 1, bias=False)
    torch.nn.init.zeros_(module.weight)

    class Objective(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, images):
            return {"loss": self.inner(images.flatten(1)).mean()}

    batches = [{"image": torch.full((2, 1, 2, 2), 3.0)}]  # a gradient of (3, 3, 3, 3), norm 6
    trainer = trainer_of(Objective(), batches, [GradientGuard(module, max_norm)])
    trainer.run()
    step = -module.weight.detach() / 0.1  # plain gradient descent from zero
    assert step.norm().item() == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(step, torch.full((1, 4), expected / 2), rtol=1e-5)  # the direction stays
    with pytest.raises(InputError, match="max_norm"):
        GradientGuard(module, -1.0)


def test_means_count_every_item_once_whatever_its_batch():
    batches = [{"image": torch.full((3, 1, 2, 2), 1.0)}, {"image": torch.full((1, 1, 2, 2), 5.0)}]
    trainer = trainer_of(Diverging(), batches, [CodebookHealth([8])], {"value": ObjectiveMean("value")})
    trainer.run()
    assert trainer.state.metrics["value"] == pytest.approx(2.0)  # (3 * 1 + 1 * 5) / 4
    assert trainer.state.metrics["usage_level0"] == pytest.approx(2 / 8)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert trainer.state.metrics["perplexity_level0"] == pytest.approx(math.exp(entropy))


def test_earlier_results_are_never_overwritten_silently(tmp_path):
    folder = claim_output(tmp_path / "new" / "run", ["model.pt"])
    assert folder.is_dir()
    (folder / "model.pt").write_bytes(b"earlier")
    with pytest.raises(OutputExistsError, match=r"model\.pt.*--overwrite"):
        claim_output(folder, ["model.pt", "history.json"])
    claim_output(folder, ["history.json"])
    place = claim_output(folder, ["model.pt"], overwrite=True)
    (place / "model.pt").write_bytes(b"new")
    assert (folder / "model.pt").read_bytes() == b"earlier"
    publish_output(place)
    assert (folder / "model.pt").read_bytes() == b"new"
    with pytest.raises(OutputExistsError):  # nothing to resume from: would start anew over earlier results
        claim_output(folder, ["model.pt"], resume_from="training_state.pt")
    (folder / "training_state.pt").touch()
    claim_output(folder, ["model.pt"], resume_from="training_state.pt")
    with pytest.raises(InputError, match="cannot be made"):
        claim_output(folder / "model.pt", ["x"])


def test_overwriting_removes_the_earlier_results_and_nothing_else(tmp_path):
    def write(*names: str) -> None:
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("earlier")

    results = ["model.pt", "images/sample_0.png", "images/sample_1.png"]
    by_products = ["training_state.pt", "tensorboard/events"]
    kept = ["thesis.txt", "images/holiday.png"]
    write(*results, *by_products, *kept)
    names = ["model.pt", "images/sample_*"]
    also = ["training_state.pt", "tensorboard", "never_written"]
    with pytest.raises(OutputExistsError, match=r"model\.pt, images/sample_0\.png"):
        claim_output(tmp_path, names, by_products=also)
    claim_output(tmp_path, names, True, by_products=also, resume_from="training_state.pt")  # goes on with what is there
    assert all((tmp_path / name).is_file() for name in [*results, *by_products])
    place = claim_output(tmp_path, names, True, by_products=also)
    (place / "model.pt").write_text("new")
    publish_output(place)
    assert (tmp_path / "model.pt").read_text() == "new"
    assert not any((tmp_path / name).exists() for name in [*results[1:], *by_products, "tensorboard"])
    assert all((tmp_path / name).read_text() == "earlier" for name in kept)
    (tmp_path / "model.pt").unlink()
    write("training_state.pt")
    claim_output(tmp_path, names, by_products=also)  # by-products alone stop nothing
    assert (tmp_path / "training_state.pt").is_file()


def test_overwriting_a_link_leaves_what_it_points_to(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "images").symlink_to(tmp_path / "elsewhere")
    place = claim_output(tmp_path / "run", ["images"], True)
    (place / "images").mkdir()
    (place / "images" / "file").write_text("new")
    publish_output(place)
    assert not (tmp_path / "run" / "images").is_symlink()
    assert (tmp_path / "elsewhere" / "file").read_text() == ""


def test_rows_of_images_stand_where_they_belong():
    picture = image_rows([torch.zeros(2, 1, 4, 5), torch.tensor([0.5, 2.0]).view(2, 1, 1, 1).expand(2, 1, 4, 5)])
    assert picture.shape == (12, 14)
    assert picture[0, 0] == 0
    assert picture[6, 0] == 128
    assert picture[6, 7] == 255  # clamped
    assert image_rows([torch.zeros(1, 1, 4, 5, 6)]).shape == (6 + 2, 4 + 4 + 5 + 2)  # three planes


def test_pictures_are_drawn_at_their_interval_and_leave_the_network_training(tmp_path):
    torch.manual_seed(0)
    network = HierarchicalVQVAE(channels=8, residual_channels=4).train()
    dataset = [{"image": torch.rand(1, 12, 16)} for _ in range(3)]
    engine = Engine(lambda engine, batch: None)
    ReconstructionImages(network, dataset, output_dir=tmp_path, interval=2).attach(engine)
    engine.run([0], max_epochs=3)
    assert [path.name for path in tmp_path.iterdir()] == ["reconstructions_epoch0002.png"]
    picture = np.asarray(Image.open(tmp_path / "reconstructions_epoch0002.png"))
    assert picture.shape == (4 * 14, 3 * 18)  # original, reconstruction, difference, coarsest level alone
    assert network.training


def test_a_prior_is_drawn_from_alone_or_through_the_autoencoder(tmp_path):
    torch.manual_seed(0)
    prior = GatedPixelCNN(512, channels=8, num_layers=1, attention_every=0, coarser_codes=[512]).train()
    dataset = [{"codes_0": torch.zeros(2, 2).long(), "codes_1": torch.zeros(4, 4).long()} for _ in range(3)]
    draw = SampleImages(prior, dataset, level=1, output_dir=tmp_path, num_images=2)
    assert np.array_equal(draw.draw(), draw.draw())
    network = HierarchicalVQVAE(channels=8, residual_channels=4)
    decoded = SampleImages(prior, dataset, level=1, output_dir=tmp_path, num_images=2, autoencoder=network).draw()
    assert decoded.shape == (18, 36)
    assert prior.training


class RecordedBar:
    """Stands for tqdm: what it was opened with, how far it went, its last text."""

    opened: list[RecordedBar]

    def __init__(self, *, total: int, initial: int, desc: str, **options) -> None:
        self.total, self.n, self.desc, self.closed, self.text = total, initial, desc, False, ""
        RecordedBar.opened.append(self)

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        self.text = text

    def update(self, steps: int) -> None:
        self.n += steps

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("epochs_before", [0, 2])
def test_one_bar_runs_from_where_the_training_starts_to_its_end(epochs_before, monkeypatch):
    RecordedBar.opened = []
    monkeypatch.setattr("monai_vqgen.handlers.history.tqdm", RecordedBar)
    engine = Engine(lambda engine, batch: [{"loss": 0.25}])

    @engine.on(Events.STARTED)
    def resume(engine):
        engine.state.epoch, engine.state.iteration = epochs_before, 3 * epochs_before

    first = []
    TrainingProgress("prior").attach(engine)
    engine.add_event_handler(Events.EPOCH_STARTED, lambda: first.append(RecordedBar.opened[0].n))
    engine.run([0, 1, 2], max_epochs=4)
    (bar,) = RecordedBar.opened
    assert (bar.desc, bar.total, bar.n, bar.closed) == ("prior", 12, 12, True)
    assert first == [3 * epoch for epoch in range(epochs_before, 4)]
    assert bar.text == "epoch 4/4, loss 0.25"


def test_a_time_budget_moves_the_bar_where_it_is_ahead_of_the_steps(monkeypatch):
    RecordedBar.opened = []
    monkeypatch.setattr("monai_vqgen.handlers.history.tqdm", RecordedBar)
    times = itertools.chain([0, 0, 50], itertools.repeat(10**6))  # a step of 50 s of 100 s, then the end

    class Schedule:
        last_epoch = 0

    engine, shown = Engine(lambda engine, batch: [{"loss": 0.25}]), []
    budget = TimeBudget(100 / 60, Schedule(), total_steps=300, clock=lambda: next(times))
    budget.attach(engine)
    TrainingProgress("prior").attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: shown.append(RecordedBar.opened[0].n))
    engine.run(range(3), max_epochs=100)
    assert shown == [1, 150, 300]
