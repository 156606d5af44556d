"""The bar shows the whole training, and a resumed one begins where the first has ended."""

from __future__ import annotations

import pytest
from ignite.engine import Engine, Events

from monai_vqgen.handlers import TrainingProgress, progress as progress_module


class RecordedBar:
    """Stands for tqdm: what it was opened with, how far it went, its last text."""

    opened: list[RecordedBar]

    def __init__(self, *, total: int, initial: int, desc: str, **options) -> None:
        self.total, self.n, self.desc, self.closed, self.text = total, initial, desc, False, ""
        RecordedBar.opened.append(self)

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        self.text = text

    def update(self) -> None:
        self.n += 1

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("epochs_before", [0, 2])
def test_one_bar_runs_from_where_the_training_starts_to_its_end(epochs_before, monkeypatch):
    RecordedBar.opened = []
    monkeypatch.setattr(progress_module, "tqdm", RecordedBar)
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
