"""Files are complete or absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from monai_vqgen.files import replace_file, replace_path, write_bytes, write_json


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_takes_its_place_only_when_it_is_complete(tmp_path, durable):
    path = tmp_path / "a.nii.gz"
    write_bytes(path, b"old", durable=durable)
    with replace_file(path, durable=durable) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def _interrupted_while_writing(partial):
    if isinstance(partial, Path):
        partial.write_bytes(b"half")
    else:
        partial.write(b"half")
    return KeyboardInterrupt


@pytest.mark.parametrize("opener", [replace_file, replace_path])
def test_an_error_leaves_the_earlier_file_and_nothing_else(tmp_path, opener):
    path = tmp_path / "a.txt"
    write_bytes(path, b"old")
    with pytest.raises(KeyboardInterrupt), opener(path) as partial:
        raise _interrupted_while_writing(partial)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_that_go_by_the_suffix_find_it(tmp_path):
    with replace_path(tmp_path / "a.nii.gz") as partial:
        assert partial.name.endswith(".nii.gz")
        assert partial.parent == tmp_path
        partial.write_bytes(b"x")


def test_only_durable_files_wait_for_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    write_bytes(tmp_path / "a", b"x", durable=False)
    assert not synced
    write_bytes(tmp_path / "a", b"x")
    assert len(synced) == 1
