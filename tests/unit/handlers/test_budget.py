"""A time budget ends a training, and takes the learning rate through its whole schedule on the way."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events
from monai.optimizers import WarmupCosineSchedule

from monai_vqgen.errors import InputError
from monai_vqgen.handlers import TimeBudget

STEPS, EPOCHS = 10, 4


class Run:
    """A trainer whose steps take a second each on a clock of its own, from `spent` seconds on."""

    def __init__(self, minutes, *, interval=1, state=None, clock=None):
        self.now, self.rates, self.validated = 100.0, [], []
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        scheduler = WarmupCosineSchedule(optimizer, warmup_steps=4, t_total=STEPS * EPOCHS)

        def step(engine, batch):
            self.now += 1
            self.rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()

        self.engine = Engine(step)
        self.engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: scheduler.step())
        self.engine.add_event_handler(
            Events.EPOCH_COMPLETED(every=interval), lambda engine: self.validated.append(engine.state.epoch)
        )
        self.budget = TimeBudget(
            minutes,
            scheduler,
            total_steps=STEPS * EPOCHS,
            evaluator=self,
            interval=interval,
            clock=(lambda: self.now) if clock is None else clock,
        )
        self.budget.attach(self.engine)
        if state is not None:
            self.budget.load_state_dict(state)
        self.engine.run(range(STEPS), max_epochs=EPOCHS)

    def run(self, epoch):
        self.validated.append(epoch)


def test_without_a_budget_and_with_one_that_suffices_nothing_changes():
    free, ample = Run(None), Run(1.0)
    assert len(free.rates) == len(ample.rates) == STEPS * EPOCHS
    assert free.rates == ample.rates
    assert free.validated == ample.validated == [1, 2, 3, 4]


def test_a_budget_for_half_the_steps_ends_there_with_the_rate_at_its_end():
    run = Run(20.0 / 60)
    assert len(run.rates) == 20
    assert run.engine.state.epoch == 2
    assert max(run.rates) > 0.9
    assert run.rates[-1] < 0.03
    assert run.rates[4:] == sorted(run.rates[4:], reverse=True)


def test_an_epoch_cut_short_is_validated_once_even_where_the_interval_leaves_it_out():
    cut = Run(25.0 / 60)
    assert cut.engine.state.epoch == 3
    assert cut.validated == [1, 2, 3]
    assert Run(25.0 / 60, interval=2).validated == [2, 3]
    assert Run(15.0 / 60, interval=2).validated == [2]


def test_time_spent_before_an_interruption_counts():
    run = Run(20.0 / 60, state={"spent_s": 12.0})
    assert len(run.rates) == 8
    assert run.budget.state_dict()["spent_s"] == 20.0


@pytest.mark.parametrize("minutes", [0, -1.0, float("nan")])
def test_a_budget_that_is_none_is_refused(minutes):
    with pytest.raises(InputError, match="max_minutes"):
        Run(minutes)


def test_a_clock_that_counts_steps_does_not_ask_how_long_they_take():
    counted = Run(20.0 / 60, clock=2.0)
    assert len(counted.rates) == 10
    assert counted.rates[-1] < 0.1
    assert counted.budget.state_dict()["spent_s"] == 20.0
    resumed = Run(20.0 / 60, clock=2.0, state={"spent_s": 12.0})
    assert len(resumed.rates) == 4


@pytest.mark.parametrize("clock", ["cpu", 0.0, -1, float("inf"), float("nan"), True])
def test_a_clock_that_is_none_is_refused(clock):
    with pytest.raises(InputError, match=r"the budget's clock is .*; give 'wall', or the seconds that a step"):
        Run(1.0, clock=clock)


def test_the_clock_is_by_default_that_of_the_wall(monkeypatch):
    scheduler = WarmupCosineSchedule(
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), warmup_steps=1, t_total=10
    )
    monkeypatch.setattr("time.monotonic", lambda: 9.0)
    assert TimeBudget(1.0, scheduler, total_steps=10).spent_s() == 9.0


@pytest.mark.parametrize(
    ("budget_s", "total_steps", "place"),
    [
        (20.0, 40, 20),  # as it was: half of the time
        (40.0, 40, 10),  # twice the time: a quarter, and of the steps as well
        (40.0, 80, 20),  # a quarter of more steps
        (None, 80, 10),  # ten steps done
        (20.0, 400, 200),
        (5.0, 40, 40),  # its time is over
    ],
)
def test_the_place_in_a_schedule_of_another_length_is_steps_done_or_time_spent(budget_s, total_steps, place):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = WarmupCosineSchedule(optimizer, warmup_steps=1, t_total=total_steps)
    for _ in range(10):
        optimizer.step()
        scheduler.step()
    scheduler.last_epoch = 20  # of 40: ten steps, which took half of the time
    before = optimizer.param_groups[0]["lr"]
    budget = TimeBudget(budget_s and budget_s / 60, scheduler, total_steps=total_steps, clock=lambda: 0.0)
    budget.load_state_dict({"spent_s": 10.0, "budget_s": 20.0, "total_steps": 40})
    assert scheduler.last_epoch == place
    rate = before if (budget_s, total_steps) == (20.0, 40) else scheduler.lr_lambdas[0](place)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)


def test_the_time_of_the_slowest_process_is_what_a_resumed_run_has_spent(monkeypatch):
    monkeypatch.setattr(TimeBudget, "spent_s", lambda self: 2 * self._own_spent_s())  # another one takes twice as long
    run = Run(20.0 / 60)
    assert len(run.rates) == 10
    assert run.budget.state_dict()["spent_s"] == 20.0
