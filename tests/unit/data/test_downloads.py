"""One file is fetched completely and rightly, or its name stays as it was."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from pathlib import Path
from urllib.request import Request

import pytest

from monai_vqgen.data import web
from monai_vqgen.data.downloads import RemoteFile, check_space, fetch_file, is_in_place, part_path
from monai_vqgen.errors import DownloadError, InputError, OutputExistsError, VQGenError

CONTENT = bytes(range(251)) * 40
KEY = "scan.nii"


@pytest.fixture
def remote(bucket) -> RemoteFile:
    bucket.files[KEY] = CONTENT
    return RemoteFile(f"{bucket.url}/{KEY}", len(CONTENT), bucket.etag(KEY))


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "anat" / KEY


def test_the_file_comes_whole_and_leaves_nothing_beside_it(remote, path):
    counted = []
    fetch_file(remote, path, progress=counted.append)
    assert path.read_bytes() == CONTENT
    assert sum(counted) == len(CONTENT)
    assert list(path.parent.iterdir()) == [path]
    assert is_in_place(remote, path)


def test_the_disk_has_the_bytes_before_they_get_their_name(remote, path, monkeypatch):
    named = []
    monkeypatch.setattr(os, "fsync", lambda _: named.append(path.exists()))
    fetch_file(remote, path)
    assert named == [False]


def test_until_then_the_name_is_not_there(bucket, remote, path):
    seen = []
    fetch_file(remote, path, progress=lambda _: seen.append(path.exists()))
    assert seen
    assert not any(seen)
    bucket.files[KEY] = b"next" * 100
    renamed = remote._replace(size=400, etag=bucket.etag(KEY))
    before = []
    fetch_file(renamed, path, progress=lambda _: before.append(path.read_bytes()))
    assert set(before) == {CONTENT}
    assert path.read_bytes() == b"next" * 100


def test_a_cut_connection_is_taken_up_where_it_stopped(bucket, remote, path):
    bucket.cuts = [1000, 2000]
    counted = []
    fetch_file(remote, path, progress=counted.append)
    assert path.read_bytes() == CONTENT
    asked = bucket.asked_for(KEY)
    assert [headers.get("Range") for headers in asked] == [None, "bytes=1000-", "bytes=3000-"]
    assert asked[1]["If-Range"] == f'"{remote.etag}"'
    assert sum(counted) == len(CONTENT)


def test_a_later_run_resumes_the_earlier_one(bucket, remote, path):
    bucket.cuts = [700, 300]
    with pytest.raises(DownloadError, match=r"cut after 1000 of 10040 bytes.*2 attempts.*same command again.*resumes"):
        fetch_file(remote, path, retries=1)
    assert not path.exists()
    assert part_path(remote, path).read_bytes() == CONTENT[:1000]
    fetch_file(remote, path)
    assert bucket.asked_for(KEY)[-1]["Range"] == "bytes=1000-"
    assert path.read_bytes() == CONTENT


def test_a_part_that_is_already_whole_needs_no_server(bucket, remote, path):
    path.parent.mkdir()
    part_path(remote, path).write_bytes(CONTENT)
    fetch_file(remote, path)
    assert path.read_bytes() == CONTENT
    assert bucket.requests == []


@pytest.mark.parametrize("fault", ["knows no ranges", "has another version", "sends another range"])
def test_a_server_that_does_not_resume_starts_again(bucket, remote, path, fault):
    path.parent.mkdir()
    part_path(remote, path).write_bytes(CONTENT[:5000])
    bucket.knows_ranges = fault != "knows no ranges"
    bucket.wrong_range = fault == "sends another range"
    if fault == "has another version":
        bucket.etags[KEY] = "another"
    bucket.cuts = [] if bucket.wrong_range else [2000]
    counted = []
    fetch_file(remote, path, progress=counted.append)
    assert path.read_bytes() == CONTENT
    assert sum(counted) == len(CONTENT)


def test_parts_of_another_version_are_not_resumed_and_go_in_the_end(bucket, remote, path):
    path.parent.mkdir()
    old = part_path(remote._replace(etag="older"), path)
    old.write_bytes(b"x" * 500)
    neighbour = part_path(remote, path.with_name(f"{KEY}.gz"))
    neighbour.write_bytes(b"y")
    fetch_file(remote, path)
    assert "Range" not in bucket.asked_for(KEY)[0]
    assert path.read_bytes() == CONTENT
    assert sorted(path.parent.iterdir()) == sorted([path, neighbour])


def test_wrong_bytes_are_removed_and_the_name_stays_as_it_was(bucket, remote, path):
    path.parent.mkdir()
    path.write_bytes(b"earlier")
    bucket.sent[KEY] = CONTENT[:-1] + b"?"
    with pytest.raises(DownloadError, match=r"^[^ ]*scan\.nii is not in place.*md5.*removed.*same command again"):
        fetch_file(remote, path)
    assert path.read_bytes() == b"earlier"
    assert list(path.parent.iterdir()) == [path]
    del bucket.sent[KEY]
    fetch_file(remote, path)
    assert path.read_bytes() == CONTENT


def test_a_part_gone_bad_is_found_and_the_next_run_is_right(remote, path):
    path.parent.mkdir()
    part_path(remote, path).write_bytes(b"?" * 1000)
    with pytest.raises(DownloadError, match="removed"):
        fetch_file(remote, path)
    fetch_file(remote, path)
    assert path.read_bytes() == CONTENT


def test_a_callers_sha256_is_held(remote, path):
    with pytest.raises(DownloadError, match="sha256"):
        fetch_file(remote._replace(sha256="0" * 64), path)
    fetch_file(remote._replace(sha256=hashlib.sha256(CONTENT).hexdigest(), etag="f" * 32), path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("sent", [CONTENT[:-5], CONTENT + b"more"])
def test_a_file_of_another_size_than_listed_is_refused_at_once(bucket, remote, path, sent):
    bucket.sent[KEY] = sent
    with pytest.raises(DownloadError, match=f"has {len(sent)} bytes where .*{len(CONTENT)}.*changed"):
        fetch_file(remote, path)
    assert len(bucket.requests) == 1
    assert not path.exists()


def test_an_empty_file_is_a_file(bucket, path):
    bucket.files["empty"] = b""
    fetch_file(RemoteFile(f"{bucket.url}/empty", 0, bucket.etag("empty")), path)
    assert path.read_bytes() == b""


def test_a_busy_server_is_asked_again_with_growing_pauses(bucket, remote, path, monkeypatch):
    bucket.statuses = [503, 500, 429, 503, 503, 503, 503]
    pauses = []
    monkeypatch.setattr(web, "FIRST_PAUSE_S", 1.0)
    monkeypatch.setattr(web.time, "sleep", pauses.append)
    fetch_file(remote, path, retries=7)
    assert path.read_bytes() == CONTENT
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_is_final(bucket, remote, path, status):
    bucket.statuses = [status]
    with pytest.raises(DownloadError, match=f"{KEY} answers {status}"):
        fetch_file(remote, path)
    assert len(bucket.requests) == 1


def test_a_server_that_has_gone_is_said_so(bucket, remote, path):
    bucket.cuts = [1000]
    with pytest.raises(DownloadError):
        fetch_file(remote, path, retries=0)
    bucket.stop()
    with pytest.raises(DownloadError, match=r"does not answer.*refused.*3 attempts.*Check the connection"):
        fetch_file(remote, path, retries=2)
    assert part_path(remote, path).stat().st_size == 1000


def test_a_silent_server_is_not_waited_for_forever(bucket, remote, path, monkeypatch):
    bucket.cuts = [100, 200]
    bucket.stalls.set()
    begin = time.monotonic()
    with pytest.raises(DownloadError, match="timed out"):
        fetch_file(remote, path, timeout_s=0.1, retries=0)
    assert time.monotonic() - begin < 20  # far from the half minute that is the default
    monkeypatch.setattr(web.time, "sleep", lambda _: bucket.stalls.clear())  # it wakes up in the pause
    fetch_file(remote, path, timeout_s=0.1, retries=1)
    assert path.read_bytes() == CONTENT
    assert [headers.get("Range") for headers in bucket.asked_for(KEY)] == [None, "bytes=100-", "bytes=300-"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is always full")
def test_a_full_disk_is_said_so(remote, path):
    path.parent.mkdir()
    part_path(remote, path).symlink_to("/dev/full")
    with pytest.raises(DownloadError, match=r"scan\.nii cannot be written: No space left.*resumes"):
        fetch_file(remote, path)
    assert not path.exists()


def test_a_folder_that_cannot_be_made_is_said_so(remote, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError, match="cannot be written"):
        fetch_file(remote, tmp_path / "file" / KEY)
    with pytest.raises(DownloadError, match="cannot be made"):
        check_space(tmp_path / "file" / "folder", {})


def test_space_is_asked_for_before_the_first_byte_less_what_lies_there(remote, path, monkeypatch):
    free = len(CONTENT) - 1000
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))
    with pytest.raises(DownloadError, match="space"):
        check_space(path.parent, {path: remote})
    part_path(remote, path).write_bytes(CONTENT[:1000])
    check_space(path.parent, {path: remote})


def test_another_file_of_the_name_is_kept_unless_overwriting_is_asked_for(remote, path, caplog):
    path.parent.mkdir()
    assert not is_in_place(remote, path)
    path.write_bytes(b"edited")
    with pytest.raises(OutputExistsError, match=r"scan\.nii differs.*has 6 bytes.*overwrite"):
        is_in_place(remote, path)
    with caplog.at_level(logging.WARNING):
        assert not is_in_place(remote, path, overwrite=True)
    assert "replaced" in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/b",
        "file:///etc",
        "host/b",
        "https://",
        "http://me:pw@host",
        "http://h/?a=1",
        "http://h:x/",
        "http://h/ä",
    ],
)
def test_only_plain_web_addresses_are_taken(url):
    with pytest.raises(InputError, match=r"give an address like https://") as caught:
        web.check_url(url)
    assert "pw" not in str(caught.value)
    assert web.check_url("https://host:8080/bucket/") == "https://host:8080/bucket"


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x"])
def test_a_redirect_leads_to_no_other_protocol(bucket, target, monkeypatch):
    handler = bucket.server.RequestHandlerClass
    monkeypatch.setattr(handler, "do_GET", lambda self: self.answer(302, b"", {"Location": target}))
    with pytest.raises(DownloadError), web.open_url(bucket.url, timeout_s=5.0):
        pass


def test_a_redirect_does_not_leave_https(tmp_path):
    request = Request("https://host/a")
    redirects = web._GuardedRedirects()
    with open(tmp_path / "body", "wb") as body, pytest.raises(DownloadError, match="not https"):
        redirects.redirect_request(request, body, 302, "Found", {}, "http://host/a")
    with open(tmp_path / "body", "wb") as body:
        assert (
            redirects.redirect_request(request, body, 302, "Found", {}, "https://host/b").full_url == "https://host/b"
        )


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf")])
def test_patience_has_a_meaning(timeout_s):
    with pytest.raises(InputError, match="timeout_s"):
        web.check_patience(timeout_s, 1)
    with pytest.raises(InputError, match="retries"):
        web.check_patience(1.0, -1)


def test_whoever_knows_only_the_builtin_error_catches_it():
    assert issubclass(DownloadError, OSError)
    assert issubclass(DownloadError, VQGenError)
