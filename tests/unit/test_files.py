"""Files are complete or absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from monai_vqgen.errors import OutputExistsError
from monai_vqgen.files import claim_folder, replace_file, replace_path, write_bytes, write_json


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


def test_earlier_results_are_refused_or_removed_and_nothing_else_is_touched(tmp_path):
    folder = claim_folder(tmp_path / "a" / "b", ["result.json"], overwrite=False)
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("result.json", "images/1.png", "log.txt", "notes.md", "outside/kept"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    (folder / "link").symlink_to(outside)
    names, by_products = ["result.json", "images", "link", "sample_*"], ["log.*"]
    with pytest.raises(OutputExistsError, match=r"holds result\.json, images, link; .*overwrite"):
        claim_folder(folder, names, overwrite=False, by_products=by_products)
    assert (folder / "log.txt").exists()
    claim_folder(folder, names, overwrite=True, by_products=by_products)
    assert sorted(path.name for path in folder.iterdir()) == [".result.json.lock", "notes.md", "outside"]
    assert outside.is_dir()


def test_by_products_and_empty_folders_stop_no_run(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "log.txt").touch()
    claim_folder(tmp_path, ["images"], overwrite=False, by_products=["log.txt"])
    assert (tmp_path / "log.txt").exists()
