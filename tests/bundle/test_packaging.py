"""`make bundle` builds the zip that MONAI downloads and unpacks, the same bytes every time."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from monai_vqgen.errors import InputError
from tools.__main__ import main
from tools.package_bundle import BUNDLE_NAME, build_bundle

REPOSITORY = Path(__file__).parents[2]
BUNDLE = REPOSITORY / "bundle"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The bundle as a run leaves it: weights, and things that are not its own."""
    folder = tmp_path_factory.mktemp("source") / "bundle"
    shutil.copytree(BUNDLE, folder, ignore=shutil.ignore_patterns("*.pt", "__pycache__", "out"))
    (folder / "models").mkdir(exist_ok=True)
    (folder / "models" / "model.pt").write_bytes(bytes(range(256)) * 64)
    for foreign in ("models/.4711.partial.model.pt", "configs/.train.json.swp", "out/samples/a.png", "notes.txt"):
        (folder / foreign).parent.mkdir(parents=True, exist_ok=True)
        (folder / foreign).write_text("not part of the bundle")
    return folder


def bundle_files(folder: Path) -> dict[str, bytes]:
    """What belongs to a bundle, spelled out: the license, the card and the visible files of three folders."""
    files = [folder / "LICENSE", folder / "README.md"]
    for name in ("configs", "docs", "models"):
        files += [path for path in (folder / name).rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def served(source, tmp_path_factory):
    """The zip behind a web server on this machine; gives its address."""
    folder = tmp_path_factory.mktemp("web")
    path = build_bundle(folder, source=source)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/{path.name}"
        server.shutdown()
        thread.join()


def test_monai_downloads_and_unpacks_it(source, served, tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "download", "--name", BUNDLE_NAME, "--url", served]
    run = subprocess.run(
        [*command, "--bundle_dir", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "metadata file not found" not in run.stderr + run.stdout  # MONAI looks where it believes to have unpacked
    unpacked = tmp_path / BUNDLE_NAME
    found = {p.relative_to(unpacked).as_posix(): p.read_bytes() for p in unpacked.rglob("*") if p.is_file()}
    assert found == bundle_files(source)
    assert {path.name for path in tmp_path.iterdir()} == {BUNDLE_NAME, f"{BUNDLE_NAME}.zip"}

    parser = ConfigParser()
    parser.read_config(unpacked / "configs" / "inference.json")
    parser.read_meta(unpacked / "configs" / "metadata.json")
    parser["bundle_root"] = str(unpacked)
    assert parser.get_parsed_content("model") == str(unpacked / "models" / "model.pt")
    assert Path(parser.get_parsed_content("model")).is_file()
    image = torch.rand(1, 1, 32, 32)
    assert parser.get_parsed_content("network_def")(image).shape == image.shape


def test_equal_contents_give_equal_bytes(source, tmp_path):
    first = build_bundle(tmp_path / "a", source=source).read_bytes()
    copy = tmp_path / "copy"
    for path in sorted(source.rglob("*"), reverse=True):  # another order, other dates and modes
        if path.is_file():
            target = copy / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
            os.utime(target, (1e9, 1e9))
            target.chmod(0o600)
    assert build_bundle(tmp_path / "b", source=copy).read_bytes() == first
    (copy / "models" / "model.pt").write_bytes(b"other weights")
    assert build_bundle(tmp_path / "b", source=copy).read_bytes() != first


def test_everything_lies_in_the_one_folder_that_monai_expects(source, tmp_path):
    path = build_bundle(tmp_path, source=source)
    version = json.loads((source / "configs" / "metadata.json").read_text())["version"]
    assert path.name == f"{BUNDLE_NAME}_v{version}.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names == sorted(names)
        assert names == sorted(f"{BUNDLE_NAME}/{name}" for name in bundle_files(source))
        assert {member.external_attr >> 16 for member in archive.infolist()} == {0o100644}
    assert [other.name for other in tmp_path.iterdir()] == [path.name]


def test_the_name_gives_monai_label_no_wrong_task():
    """MONAI Label 0.8.5 reads the task off the folder's name."""
    assert not any(word in BUNDLE_NAME for word in ("detection", "classification", "deepgrow", "deepedit"))


@pytest.mark.parametrize("metadata", [None, "{", '{"changelog": {}}'])
def test_a_folder_without_a_version_is_refused(tmp_path, metadata):
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    if metadata is not None:
        (tmp_path / "bundle" / "configs" / "metadata.json").write_text(metadata)
    with pytest.raises(InputError, match=r"metadata\.json does not tell the bundle's version"):
        build_bundle(tmp_path / "dist", source=tmp_path / "bundle")
    assert not (tmp_path / "dist").exists()


def test_the_command_prints_the_checksum(tmp_path, capsys):
    assert main(["package_bundle", "--output", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    lines = capsys.readouterr().out
    assert hashlib.sha256(path.read_bytes()).hexdigest() in lines
    assert f"--name {BUNDLE_NAME} --url URL/{path.name}" in lines


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_bundle_builds_it_although_a_folder_has_that_name():
    dry = subprocess.run(
        ["make", "--no-print-directory", "-n", "bundle"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert dry.stdout.splitlines()[-1].split()[1:] == ["-m", "tools", "package_bundle", "--output", "dist"]
