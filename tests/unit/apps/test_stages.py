"""The loop that runs the stages of a whole run and goes on where it stopped, and stages that run at once."""

from __future__ import annotations

import threading

import pytest

from monai_vqgen.apps.presets import PRESETS
from monai_vqgen.apps.stages import Leftovers, Stage, bundle_stages, run_stages, stages_at_once
from monai_vqgen.errors import StageError


def fake_stages(folder, seen, *commands, fails=""):
    def stage(command):
        def run(leftovers):
            seen.append((command, leftovers))
            if command == fails:
                raise KeyboardInterrupt
            (folder / command[0]).touch()

        return Stage(command[0], command, run, (folder / command[0],))

    return [stage(command) for command in commands]


def test_a_run_that_was_cut_off_goes_on_where_it_stopped(tmp_path):
    seen = []
    with pytest.raises(KeyboardInterrupt):
        run_stages(fake_stages(tmp_path, seen, "a", "b", "c", fails="b"), tmp_path, resume=True)
    assert [command for command, _ in seen] == ["a", "b"]
    seen.clear()
    records = run_stages(fake_stages(tmp_path, seen, "a", "b", "c"), tmp_path, resume=True)
    assert seen == [("b", Leftovers.TAKE_UP), ("c", Leftovers.REPLACE)]
    assert [record.name for record in records] == ["a", "b", "c"]
    seen.clear()
    run_stages(fake_stages(tmp_path, seen, "a", "b", "c"), tmp_path, resume=True)
    assert seen == []
    run_stages(fake_stages(tmp_path, seen, "a", "b --longer", "c"), tmp_path, resume=True)
    assert seen == [("b --longer", Leftovers.REPLACE), ("c", Leftovers.REPLACE)]
    seen.clear()
    (tmp_path / "a").unlink()
    run_stages(fake_stages(tmp_path, seen, "a", "b --longer", "c"), tmp_path, resume=True)
    assert seen == [("a", Leftovers.REPLACE), ("b --longer", Leftovers.REPLACE), ("c", Leftovers.REPLACE)]


def test_stages_at_once_meet_and_count_as_one(tmp_path):
    meeting = threading.Barrier(2, timeout=30)  # breaks where they run one after the other
    told = []

    def stage(name):
        def run(leftovers):
            meeting.wait()
            told.append((name, leftovers))
            (tmp_path / name).touch()

        return Stage(name, f"make {name}", run, (tmp_path / name,))

    both = stages_at_once("both", [stage("a"), stage("b")])
    assert both.command == "make a & make b & wait"
    run_stages([both], tmp_path, resume=True)
    assert sorted(name for name, _ in told) == ["a", "b"]
    run_stages([both], tmp_path, resume=True)
    assert len(told) == 2
    (tmp_path / "b").unlink()  # half of it is not it
    run_stages([both], tmp_path, resume=True)
    assert len(told) == 4


def test_of_stages_at_once_the_failure_ends_the_others(tmp_path, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr("monai_vqgen.apps.stages.stop_stages", ended.set)

    def fails(leftovers):
        raise StageError("no slices")

    def waits(leftovers):
        assert ended.wait(timeout=30)

    stages = [Stage("a", "a", waits, ()), Stage("b", "b", fails, ())]
    with pytest.raises(StageError, match="no slices"):
        stages_at_once("both", stages).run(Leftovers.REFUSE)


def test_without_resume_earlier_results_are_refused(tmp_path):
    seen = []
    run_stages(fake_stages(tmp_path, seen, "a"), tmp_path)
    run_stages(fake_stages(tmp_path, seen, "a"), tmp_path)
    assert seen == [("a", Leftovers.REFUSE)] * 2


def test_a_training_is_taken_up_from_its_state_and_a_replaced_one_cannot_be(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        "monai_vqgen.apps.stages.run_stage", lambda config, *, training, options, overlays: given.append(options)
    )
    stages = bundle_stages(PRESETS["tiny"], scans=tmp_path, output=tmp_path / "out", seed=1)
    training, state = stages[1], tmp_path / "out" / "training_state.pt"

    def flags(leftovers):
        training.run(leftovers)
        return {key: given[-1][key] for key in ("resume", "overwrite") if key in given[-1]}

    assert flags(Leftovers.REFUSE) == {}
    assert flags(Leftovers.TAKE_UP) == {"overwrite": True}
    state.parent.mkdir()
    state.touch()
    assert flags(Leftovers.TAKE_UP) == {"resume": True}
    assert flags(Leftovers.REPLACE) == {"overwrite": True}
    assert not state.exists()
