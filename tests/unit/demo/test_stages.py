"""The loop that runs the stages of a whole run and goes on where it stopped, and stages that run at once."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import pytest

from monai_vqgen.demo.sizes import read_size
from monai_vqgen.demo.stages import Leftovers, Stage, bundle_stages, run_stages, stages_at_once
from monai_vqgen.errors import OutputExistsError, StageError
from monai_vqgen.files import previous_path

resource = pytest.importorskip("resource")


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


@pytest.mark.parametrize("notes", ["", "[1]", '{"stages": 3}', '{"stages": [{"name": "a"}]}'])
def test_damaged_notes_are_told_with_what_to_do(tmp_path, notes):
    (tmp_path / "timings.json").write_text(notes)
    with pytest.raises(OutputExistsError, match=r"timings\.json is damaged .*remove it"):
        run_stages(fake_stages(tmp_path, [], "a"), tmp_path, resume=True)


def test_a_run_that_was_moved_goes_on_and_its_notes_do_not_tell_where_it_was(tmp_path):
    seen = []
    for name in ("first", "second"):
        folder = tmp_path / name
        run_stages(fake_stages(folder, seen, f"a --output_dir {folder}"), _made(folder), resume=True)
        assert str(tmp_path) not in (folder / "timings.json").read_text()
        if name == "first":
            folder.rename(tmp_path / "second")
    assert len(seen) == 1


def test_of_a_run_that_was_moved_only_its_own_paths_are_others(tmp_path):
    """A folder beside it whose name begins alike, and a text that names it, stay what they are."""

    def commands(folder):
        there = f"{tmp_path}/first2 --text 'in {tmp_path}/first' --braces '{{output}}2'"
        return fake_stages(folder, seen, f"a --output_dir '{folder}/my slices' --dataset_dir {there} & wait")

    seen = []
    run_stages(commands(tmp_path / "first"), _made(tmp_path / "first"), resume=True)
    (tmp_path / "first").rename(tmp_path / "second")
    run_stages(commands(tmp_path / "second"), tmp_path / "second", resume=True)
    assert len(seen) == 1


def _made(folder):
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize(("platform", "peak"), [("linux", 300 * 1024), ("darwin", 300)])
def test_a_stage_notes_the_largest_memory_of_the_run_and_its_children(tmp_path, monkeypatch, platform, peak):
    usage = {resource.RUSAGE_SELF: 200, resource.RUSAGE_CHILDREN: 300}
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=usage[who]))
    monkeypatch.setattr("sys.platform", platform)
    (record,) = run_stages(fake_stages(tmp_path, [], "a"), tmp_path)
    assert record.peak_bytes == peak
    (again,) = run_stages(fake_stages(tmp_path, [], "a"), tmp_path, resume=True)
    assert again == record


def test_notes_of_runs_that_measured_no_memory_are_read(tmp_path):
    run_stages(fake_stages(tmp_path, [], "a"), tmp_path)
    noted = json.loads((tmp_path / "timings.json").read_text())
    del noted["stages"][0]["peak_bytes"]
    (tmp_path / "timings.json").write_text(json.dumps(noted))
    (record,) = run_stages(fake_stages(tmp_path, [], "a"), tmp_path, resume=True)
    assert record.peak_bytes is None


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
    monkeypatch.setattr("monai_vqgen.demo.stages.stop_stages", ended.set)

    def fails(leftovers):
        raise StageError("no slices")

    def waits(leftovers):
        assert ended.wait(timeout=10)

    stages = [Stage("a", "a", waits, ()), Stage("b", "b", fails, ())]
    with pytest.raises(StageError, match="no slices"):
        stages_at_once("both", stages).run(Leftovers.REFUSE)
    assert ended.is_set()


def test_without_resume_earlier_results_are_refused(tmp_path):
    seen = []
    run_stages(fake_stages(tmp_path, seen, "a"), tmp_path)
    run_stages(fake_stages(tmp_path, seen, "a"), tmp_path)
    assert seen == [("a", Leftovers.REFUSE)] * 2


def test_a_training_is_taken_up_from_its_state_and_a_replaced_one_cannot_be(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        "monai_vqgen.demo.stages.run_stage", lambda config, *, training, options, overlays: given.append(options)
    )
    stages = bundle_stages(read_size("tiny"), scans=tmp_path, output=tmp_path / "out", seed=1)
    training, state = stages[1], tmp_path / "out" / "training_state.pt"

    def flags(leftovers):
        training.run(leftovers)
        return {key: given[-1][key] for key in ("resume", "overwrite") if key in given[-1]}

    assert flags(Leftovers.REFUSE) == {}
    assert flags(Leftovers.TAKE_UP) == {"overwrite": True}
    state.parent.mkdir()
    state.touch()
    assert flags(Leftovers.TAKE_UP) == {"resume": True}
    previous = previous_path(state)
    state.rename(previous)
    assert flags(Leftovers.TAKE_UP) == {"resume": True}
    state.touch()
    assert flags(Leftovers.REPLACE) == {"overwrite": True}
    assert not state.exists()
    assert not previous.exists()
