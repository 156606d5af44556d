"""The fuzzer tells a reader that is right from one that is not."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

from monai_vqgen.errors import InputError, ScanError
from tools.fuzz import Limits, changed, fuzz, fuzz_target
from tools.fuzz_targets import TARGETS, Target

pytest.importorskip("highdicom")  # one of the targets

CONTENT = bytes(range(100))


def hold(size):
    return bytearray(size)


def fail(error):
    raise error


READERS = {
    "read": lambda content: None,
    "refused": lambda content: fail(ScanError("no")),
    "crash": lambda content: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda content: time.sleep(60),
    "over memory": lambda content: hold(2 * 10**9),
    "other error": lambda content: fail(KeyError("no")),
    "read otherwise": bytes,
}


@pytest.mark.parametrize("outcome", READERS)
def test_what_a_reader_does_with_changed_files_is_counted_and_what_is_wrong_is_kept(tmp_path, outcome):
    def write(folder):
        (folder / "a").write_bytes(CONTENT)

    def read(folder):
        content = (folder / "a").read_bytes()
        return None if content == CONTENT else READERS[outcome](content)

    target = Target(write, read, ("a",), checked=True)
    found = fuzz_target(target, tmp_path, count=3, limits=Limits(10**9, seconds=0.5))
    assert found == {outcome: 3} or found == {outcome: 2, "read": 1}  # a change may give the same bytes
    kept = sorted(path.name for path in tmp_path.iterdir())
    if outcome in ("read", "refused"):
        assert kept == []
    else:
        assert len(kept) == found[outcome]
        assert all((tmp_path / name / "why.txt").read_text().strip() for name in kept)
        assert (tmp_path / kept[0] / "a").read_bytes() != CONTENT


def test_memory_that_an_error_of_ours_hides_is_still_over_memory(tmp_path):
    def read(folder):
        if (folder / "a").read_bytes() == CONTENT:
            return None
        try:
            return hold(2 * 10**9)
        except MemoryError as error:
            raise ScanError("too large") from error

    target = Target(lambda folder: (folder / "a").write_bytes(CONTENT) and None, read, ("a",))
    assert fuzz_target(target, tmp_path, count=1) == {"over memory": 1}


def test_a_change_is_that_of_its_number_and_seldom_none():
    made = [[changed(CONTENT, np.random.default_rng((seed, i))) for i in range(300)] for seed in (0, 0, 1)]
    assert made[0] == made[1]
    assert made[0] != made[2]
    assert sum(content == CONTENT for content in made[0]) < 30


@pytest.mark.parametrize("name", TARGETS)
def test_valid_files_of_every_kind_are_read_and_repaired_ones_are_as_valid(tmp_path, name):
    target = TARGETS[name]
    target.write(tmp_path)
    before = repr(target.read(tmp_path))
    for file in target.changed:
        content = (tmp_path / file).read_bytes()
        if target.repair is not None:
            (tmp_path / file).write_bytes(target.repair(target.unpack(content), tmp_path))
            assert repr(target.read(tmp_path)) == before


def test_the_readers_hold_for_some_changes_of_every_kind(tmp_path):
    """`python -m tools fuzz` goes on from here."""
    assert fuzz(tmp_path, targets=[name for name in TARGETS if name != "scan"], count=40, seed=1) == 0


def test_an_unknown_kind_is_named(tmp_path):
    with pytest.raises(InputError, match="'jpeg'"):
        fuzz(tmp_path, targets=["jpeg"])
