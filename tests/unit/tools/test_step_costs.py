"""A step's cost is a ratio of times taken in turns: a machine that slows down changes it little."""

from __future__ import annotations

import pytest

from tools.step_costs import ROUNDS, STEPS, relative_cost


class Machine:
    """A clock that only work moves; from the third turn on everything takes four times as long."""

    def __init__(self) -> None:
        self.now, self.done = 0.0, []

    def work(self, name: str, seconds: float):
        def step() -> None:
            self.done.append(name)
            slow = 4.0 if len(self.done) > 5 * STEPS else 1.0
            self.now += slow * seconds

        return step


def test_the_ratio_holds_on_a_machine_that_slows_down():
    machine = Machine()
    cost = relative_cost(machine.work("b", 0.6), machine.work("a", 0.2), clock=lambda: machine.now)
    assert cost == pytest.approx(3.0)
    timed = machine.done[-2 * STEPS * ROUNDS :]
    assert timed == (["b"] * STEPS + ["a"] * STEPS) * ROUNDS, "in turns"
