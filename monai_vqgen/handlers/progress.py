"""A progress bar over a whole training run, with the time that remains."""

from __future__ import annotations

import sys
from typing import Any

from ignite.engine import Engine, Events
from tqdm import tqdm

from monai_vqgen.data.processes import process_rank

__all__ = ["TrainingProgress"]

_SECONDS_BETWEEN_LINES_IN_FILES = 30.0


class TrainingProgress:
    """One bar from the first iteration to the last, with epoch, loss and what remains.

    ignite's own bar starts anew each epoch and so cannot say when the training ends. Attach to the trainer.

    Args:
        description: what stands before the bar.
    """

    def __init__(self, description: str) -> None:
        self.description = description
        self._bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; of several processes the first one has a bar."""
        if process_rank() > 0:
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._open)  # not STARTED, when a resumed run has no place yet
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def _open(self, engine: Engine) -> None:
        if self._bar is not None:
            return
        self._bar = tqdm(
            total=(engine.state.max_epochs or 1) * (engine.state.epoch_length or 1),
            initial=engine.state.iteration,
            desc=self.description,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES_IN_FILES,
        )

    def _advance(self, engine: Engine) -> None:
        if self._bar is None:
            return
        # update() redraws by itself when it is due, with the text that stands then.
        output: Any = engine.state.output
        loss = output[0]["loss"]
        self._bar.set_postfix_str(
            f"epoch {engine.state.epoch}/{engine.state.max_epochs}, loss {loss:.4g}", refresh=False
        )
        self._bar.update()

    def _close(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
