"""What is extrapolated from a few whole passes is what plain sampling would take."""

from __future__ import annotations

import torch

from monai_vqgen.evaluation import scores as figures
from monai_vqgen.evaluation.scores import WHOLE_GRID_PASSES, whole_grid_seconds


class Clocked(torch.nn.Module):
    """A prior whose pass over the whole grid takes as many seconds, on a clock of the test's, as it is told."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds
        self.seen: list[tuple] = []

    def forward(self, codes, coarser, condition):
        self.clock[0] += self.seconds
        self.seen.append((codes.shape, len(coarser), condition))


def test_whole_grid_time_is_one_pass_for_every_position_of_every_level(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(figures, "finished_time", lambda device: clock[0])
    networks = (Clocked(clock, 0.5), Clocked(clock, 2.0))
    codes = [torch.zeros(3, 2, 4, dtype=torch.long), torch.zeros(3, 4, 8, dtype=torch.long)]
    condition = torch.zeros(3, 1)
    assert whole_grid_seconds(networks, codes, condition) == 8 * 0.5 + 32 * 2.0
    for level, network in enumerate(networks):
        assert network.seen == [(codes[level].shape, level, condition)] * (WHOLE_GRID_PASSES + 1)  # one to warm up
