"""A data set's scans arrive complete and checked, by its name, or the error says why not."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
import requests

from monai_vqgen.__main__ import main
from monai_vqgen.data import discover_volumes, download, download_openneuro
from monai_vqgen.data.download import (
    RemoteFile,
    check_space,
    fetch_file,
    find_fault,
    is_in_place,
    list_objects,
    multipart_etag,
)
from monai_vqgen.errors import DownloadError, InputError, OutputExistsError, VQGenError

NAME = "ds002748"
SCANS = {f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz" for subject in ("01", "02", "03")}
SESSION = "sub-04/ses-a/anat/sub-04_ses-a_acq-a+b_T1w.nii.gz"
ABOUT = {"participants.tsv", "dataset_description.json", "CHANGES"}


@pytest.fixture
def openneuro(bucket):
    """Four subjects, and around them all that is not asked for."""
    random = np.random.default_rng(0)
    about = {
        "participants.tsv": b"participant_id\tage\nsub-01\t31\nsub-02\t45\nsub-03\tn/a\nsub-04\t27\n",
        "dataset_description.json": json.dumps({"Name": "test", "License": "CC0"}).encode(),
        "CHANGES": b"1.0.5 2021-01-01",
    }
    others = [
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/anat/sub-01_T1w.json",
        "sub-01/func/sub-01_task-rest_bold.nii.gz",
        "sub-01/anat/sub-02_T1w.nii.gz",
        "derivatives/sub-01/anat/sub-01_T1w.nii.gz",
        "sub-05/func/odd name+plus & more_T1w.nii.gz",
        "participants.tsv.bak",
        "anat/",
    ]
    for name in [*sorted(SCANS), SESSION, *others]:
        bucket.files[f"{NAME}/{name}"] = random.bytes(3000)
    bucket.files |= {f"{NAME}/{name}": content for name, content in about.items()}
    bucket.files["ds0027480/sub-01/anat/sub-01_T1w.nii.gz"] = b"another data set"
    return bucket


def fetch(bucket, folder, **options):
    return download_openneuro(NAME, folder, **{"base_url": bucket.url, "progress": False, **options})


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_scans_come_as_a_bids_tree_and_nothing_else(openneuro, tmp_path):
    folder = tmp_path / "scans"
    done = fetch(openneuro, folder)
    assert names(folder) == SCANS | {SESSION} | ABOUT
    assert [path.relative_to(folder).as_posix() for path in done.files] == sorted(names(folder))
    assert done.fetched == 7
    for path in done.files:
        assert path.read_bytes() == openneuro.files[f"{NAME}/{path.relative_to(folder).as_posix()}"]
    records = discover_volumes(folder)
    assert [(record.subject, record.columns.get("age")) for record in records] == [
        ("sub-01", 31.0),
        ("sub-02", 45.0),
        ("sub-03", None),
        ("sub-04", 27.0),
    ]


@pytest.mark.parametrize("quotes_keys", [True, False])
def test_a_listing_of_many_pages_is_read_to_its_end(openneuro, tmp_path, quotes_keys):
    openneuro.page_size, openneuro.quotes_keys = 1, quotes_keys
    fetch(openneuro, tmp_path)
    assert names(tmp_path) == SCANS | {SESSION} | ABOUT
    listed = list(list_objects(openneuro.url, f"{NAME}/sub-"))
    assert listed == sorted(key for key in openneuro.files if key.startswith(f"{NAME}/sub-"))


def test_subjects_and_contrast_can_be_chosen(openneuro, tmp_path):
    openneuro.files[f"{NAME}/sub-011/anat/sub-011_T1w.nii.gz"] = b"a longer name"
    fetch(openneuro, tmp_path / "a", subjects=["sub-03", "01"])
    assert names(tmp_path / "a") - ABOUT == {f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz" for subject in ("01", "03")}
    fetch(openneuro, tmp_path / "b", suffix="T2w")
    assert names(tmp_path / "b") - ABOUT == {"sub-01/anat/sub-01_T2w.nii.gz"}


def test_what_is_there_is_not_fetched_again(openneuro, tmp_path):
    fetch(openneuro, tmp_path, subjects=["01"])
    openneuro.requests.clear()
    assert fetch(openneuro, tmp_path).fetched == 3
    assert openneuro.asked_for(f"{NAME}/sub-01/anat/sub-01_T1w.nii.gz") == []
    assert len(openneuro.asked_for(f"{NAME}/sub-02/anat/sub-02_T1w.nii.gz")) == 1
    assert fetch(openneuro, tmp_path).fetched == 0


def test_after_a_cut_the_same_command_resumes(openneuro, tmp_path):
    key = f"{NAME}/sub-02/anat/sub-02_T1w.nii.gz"
    listings = 2
    openneuro.cuts = [10**6] * (listings + len(ABOUT) + 1) + [500, 700]
    with pytest.raises(DownloadError, match="run the same command again"):
        fetch(openneuro, tmp_path)
    assert names(tmp_path) & SCANS == {"sub-01/anat/sub-01_T1w.nii.gz"}
    fetch(openneuro, tmp_path)
    assert [headers.get("Range") for headers in openneuro.asked_for(key)] == [None, "bytes=500-", "bytes=1200-"]
    assert (tmp_path / "sub-02/anat/sub-02_T1w.nii.gz").read_bytes() == openneuro.files[key]


def test_a_cut_listing_is_asked_for_again(openneuro, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "RETRIES", 2)
    openneuro.cuts = [100]
    openneuro.statuses = [503]
    fetch(openneuro, tmp_path)
    assert names(tmp_path) == SCANS | {SESSION} | ABOUT


def test_a_wrong_checksum_names_the_file_and_what_to_do(openneuro, tmp_path):
    openneuro.sent[f"{NAME}/sub-02/anat/sub-02_T1w.nii.gz"] = b"?" * 3000
    with pytest.raises(DownloadError, match=r"sub-02_T1w\.nii\.gz.*md5.*removed; run the same command again"):
        fetch(openneuro, tmp_path)
    assert names(tmp_path) == ABOUT | {"sub-01/anat/sub-01_T1w.nii.gz"}


def test_given_checksums_are_held(openneuro, tmp_path, caplog):
    name = "sub-01/anat/sub-01_T1w.nii.gz"
    right = hashlib.sha256(openneuro.files[f"{NAME}/{name}"]).hexdigest()
    fetch(openneuro, tmp_path / "a", checksums={name: right, "sub-99": right})
    assert "1 checksums are of files that are not fetched, for instance sub-99" in caplog.text
    with pytest.raises(DownloadError, match=r"sub-01_T1w\.nii\.gz.*sha256"):
        fetch(openneuro, tmp_path / "b", checksums={name: "0" * 64})
    with pytest.raises(InputError, match="64 hexadecimal"):
        fetch(openneuro, tmp_path / "c", checksums={name: "abc"})


def test_other_files_of_the_same_names_are_kept_and_nothing_is_mixed_in(openneuro, tmp_path):
    (tmp_path / "participants.tsv").write_bytes(b"my own")
    with pytest.raises(OutputExistsError, match=r"participants\.tsv differs"):
        fetch(openneuro, tmp_path)
    assert names(tmp_path) == {"participants.tsv"}
    assert (tmp_path / "participants.tsv").read_bytes() == b"my own"
    fetch(openneuro, tmp_path, overwrite=True)
    assert (tmp_path / "participants.tsv").read_bytes().startswith(b"participant_id")


@pytest.mark.parametrize("accession", ["ds2748", "ds0027480", "DS002748", "../ds002748", "ds002748/", "ds002748\n", ""])
def test_a_malformed_accession_asks_no_server(openneuro, tmp_path, accession):
    with pytest.raises(InputError, match="six digits"):
        download_openneuro(accession, tmp_path / "scans", base_url=openneuro.url)
    assert openneuro.requests == []
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_accession_is_reported_and_leaves_no_folder(openneuro, tmp_path):
    with pytest.raises(DownloadError, match=r"no data set ds999999.*openneuro\.org/datasets/ds999999"):
        download_openneuro("ds999999", tmp_path / "scans", base_url=openneuro.url)
    assert list(tmp_path.iterdir()) == []


def test_a_subject_without_a_scan_is_named(openneuro, tmp_path):
    with pytest.raises(DownloadError, match=r"no \*_T1w scan of sub-05, sub-77"):
        fetch(openneuro, tmp_path / "scans", subjects=["05", "01", "sub-77"])
    with pytest.raises(DownloadError, match="another suffix"):
        fetch(openneuro, tmp_path / "scans", suffix="FLAIR")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("subjects", [[], "01", ["../01"], ["01/anat"], [""]])
def test_subjects_are_names(openneuro, tmp_path, subjects):
    with pytest.raises(InputError, match="subjects"):
        fetch(openneuro, tmp_path, subjects=subjects)


@pytest.mark.parametrize("suffix", ["T1w.*", "", "../T1w", "_T1w"])
def test_a_suffix_is_a_word(openneuro, tmp_path, suffix):
    with pytest.raises(InputError, match="suffix"):
        fetch(openneuro, tmp_path, suffix=suffix)


@pytest.mark.parametrize("fault", ["gone", "missing"])
def test_a_server_that_does_not_list_is_reported(openneuro, tmp_path, fault):
    if fault == "gone":
        openneuro.stop()
    else:
        openneuro.statuses = [404]
    with pytest.raises(DownloadError, match="connection to .* failed.*refused" if fault == "gone" else "answers 404"):
        fetch(openneuro, tmp_path / "scans")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_reported_before_the_first_byte(openneuro, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 11_000}))
    with pytest.raises(DownloadError, match="space"):
        fetch(openneuro, tmp_path)
    assert names(tmp_path) == set()
    fetch(openneuro, tmp_path, subjects=["01", "02"])


def listing(*entries, more=""):
    return f"<ListBucketResult>{''.join(entries)}{more}</ListBucketResult>".encode()


def entry(key, size="5", etag="5d41402abc4b2a76b9719d911017c592"):
    return f"<Contents><Key>{key}</Key><Size>{size}</Size><ETag>{etag}</ETag></Contents>"


@pytest.mark.parametrize(
    "key",
    [
        f"{NAME}/../x",
        f"{NAME}/sub-01/anat/../../../x_T1w.nii",
        f"{NAME}/..\\x",
        f"{NAME}/sub-01\\..\\..\\x",
        "/etc/x",
        "../x",
        "C:\\x",
        f"{NAME}x",
        "sub-01/anat/sub-01_T1w.nii",
        "",
    ],
)
def test_a_hostile_listing_writes_nothing_anywhere(openneuro, tmp_path, key):
    openneuro.files[key] = b"hello"
    openneuro.listing = listing(entry(key))
    with pytest.raises(DownloadError, match="outside"):
        fetch(openneuro, tmp_path / "deep" / "scans")
    openneuro.listing = listing(entry(key.replace(".", "%2E")), more="<EncodingType>url</EncodingType>")
    with pytest.raises(DownloadError, match="outside"):
        fetch(openneuro, tmp_path / "deep" / "scans")
    assert list(tmp_path.iterdir()) == []


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">]><ListBucketResult>&a;</ListBucketResult>'


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (BOMB.encode(), "document type"),
        (f'<?xml version="1.0" encoding="UTF-16"?>{BOMB}'.encode("utf-16"), "document type"),
        (b"<a>" * 100_000, "nests more than"),
        (b"<ListBucketResult>" + b"<a/>" * 4_000_000 + b"</ListBucketResult>", "more or longer elements"),
        (b"<ListBucketResult " + b" ".join(b'a%d=""' % i for i in range(300_000)) + b"/>", "more or longer elements"),
        (b"<" + b"a" * 1_000_000 + b"/>", "more or longer elements"),
        (b"<html>sign in</html>", "not the listing"),
        (b"welcome", "not XML"),
        (b"", "not XML"),
        (b'<?xml version="1.0" encoding="wrong"?><a/>', "not XML"),
        (listing(entry(f"{NAME}/CHANGES", size="-5")), "size"),
        (listing(entry(f"{NAME}/CHANGES", size="9" * 30)), "size"),
        (listing(entry(f"{NAME}/CHANGES", etag="")), "ETag"),
        (listing(entry(f"{NAME}/CHANGES", etag="a\nb")), "ETag"),
        (listing(more="<IsTruncated>true</IsTruncated>"), "not where"),
        (listing(more="<IsTruncated>true</IsTruncated><NextContinuationToken>a</NextContinuationToken>"), "not where"),
        (b"<!--" + b"x" * (17 << 20), "more than"),
    ],
)
def test_an_answer_that_is_not_a_listing_is_reported(openneuro, tmp_path, content, match):
    openneuro.listing = content
    with pytest.raises(DownloadError, match=match):
        fetch(openneuro, tmp_path / "scans")
    assert list(tmp_path.iterdir()) == []


def test_a_listing_of_more_files_than_memory_holds_is_left(openneuro, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MOST_FILES", 4)
    with pytest.raises(DownloadError, match="more than 4 files"):
        fetch(openneuro, tmp_path / "scans")


def test_a_name_that_no_file_can_have_and_a_redirect_to_no_address_are_errors_of_ours(openneuro, tmp_path, monkeypatch):
    subject = "a" * 300
    openneuro.listing = listing(entry(f"{NAME}/sub-{subject}/anat/sub-{subject}_T1w.nii.gz"))
    with pytest.raises(DownloadError, match="choose another folder"):
        fetch(openneuro, tmp_path / "scans")

    def redirected(url):
        raise ValueError("Invalid IPv6 URL")

    monkeypatch.setattr(download, "_get", redirected)
    with pytest.raises(DownloadError, match="answers what no server of files does"):
        fetch(openneuro, tmp_path / "scans")


def test_the_verb_downloads_and_says_what_went_wrong(openneuro, tmp_path, capsys):
    folder = tmp_path / "scans"
    verb = ["download", NAME, "--output", str(folder), "--subjects", "01", "sub-02", "--mirror", openneuro.url]
    assert main(verb) == 0
    assert names(folder) - ABOUT == {f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz" for subject in ("01", "02")}
    assert f"{NAME}: 100%" in capsys.readouterr().err
    (folder / "CHANGES").write_bytes(b"mine")
    assert main(verb) == 2
    assert "overwrite" in capsys.readouterr().err
    assert main([*verb, "--overwrite"]) == 0
    assert main(["download", "ds2748", "--mirror", openneuro.url]) == 2
    assert "six digits" in capsys.readouterr().err
    assert main([*verb[:2], "--output", str(tmp_path / "T2"), "--suffix", "T2w", "--mirror", openneuro.url]) == 0
    assert names(tmp_path / "T2") - ABOUT == {"sub-01/anat/sub-01_T2w.nii.gz"}


def test_the_folder_is_out_and_the_accession_where_none_is_given(openneuro, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["download", "--mirror", openneuro.url]) == 0
    assert names(tmp_path / "out" / NAME) == SCANS | {SESSION} | ABOUT


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
    fetch_file(remote, path)
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert is_in_place(remote, path)


def test_the_disk_has_the_bytes_before_they_get_their_name(bucket, remote, path, monkeypatch):
    before = []
    monkeypatch.setattr(os, "fsync", lambda _: before.append(path.read_bytes() if path.exists() else None))
    fetch_file(remote, path)
    bucket.files[KEY] = b"next" * 100
    fetch_file(remote._replace(size=400, etag=bucket.etag(KEY)), path)
    assert before == [None, CONTENT]
    assert path.read_bytes() == b"next" * 100


def test_a_cut_connection_is_resumed_where_it_stopped(bucket, remote, path, monkeypatch):
    monkeypatch.setattr(download, "RETRIES", 2)
    bucket.cuts = [1000, 2000]
    fetch_file(remote, path)
    assert path.read_bytes() == CONTENT
    asked = bucket.asked_for(KEY)
    assert [headers.get("Range") for headers in asked] == [None, "bytes=1000-", "bytes=3000-"]
    assert asked[1]["If-Range"] == f'"{remote.etag}"'


def test_a_later_run_resumes_the_earlier_one(bucket, remote, path):
    bucket.cuts = [700, 300]
    with pytest.raises(DownloadError, match=r"scan\.nii failed .*2 attempts.*same command again.*resumes"):
        fetch_file(remote, path)
    assert not path.exists()
    assert remote.part_of(path).read_bytes() == CONTENT[:1000]
    fetch_file(remote, path)
    assert bucket.asked_for(KEY)[-1]["Range"] == "bytes=1000-"
    assert path.read_bytes() == CONTENT


def test_a_part_that_is_already_whole_needs_no_server(bucket, remote, path):
    path.parent.mkdir()
    remote.part_of(path).write_bytes(CONTENT)
    fetch_file(remote, path)
    assert path.read_bytes() == CONTENT
    assert bucket.requests == []


@pytest.mark.parametrize("fault", ["knows no ranges", "has another version", "sends another range"])
def test_a_server_that_does_not_resume_starts_again(bucket, remote, path, fault):
    path.parent.mkdir()
    remote.part_of(path).write_bytes(CONTENT[:5000])
    bucket.knows_ranges = fault != "knows no ranges"
    bucket.wrong_range = fault == "sends another range"
    if fault == "has another version":
        bucket.etags[KEY] = "another"
    bucket.cuts = [] if bucket.wrong_range else [2000]
    fetch_file(remote, path)
    assert path.read_bytes() == CONTENT


def test_parts_of_another_version_are_not_resumed_and_go_in_the_end(bucket, remote, path):
    path.parent.mkdir()
    old = remote._replace(etag="older").part_of(path)
    old.write_bytes(b"x" * 500)
    neighbor = remote.part_of(path.with_name(f"{KEY}.gz"))
    neighbor.write_bytes(b"y")
    fetch_file(remote, path)
    assert "Range" not in bucket.asked_for(KEY)[0]
    assert path.read_bytes() == CONTENT
    assert sorted(path.parent.iterdir()) == sorted([path, neighbor])


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
    remote.part_of(path).write_bytes(b"?" * 1000)
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
    with pytest.raises(DownloadError, match=f"has {len(sent)} bytes instead of {len(CONTENT)}.*changed"):
        fetch_file(remote, path)
    assert len(bucket.requests) == 1
    assert not path.exists()


def test_an_answer_without_a_length_might_have_no_end_and_is_refused(bucket, remote, path, monkeypatch):
    def endless(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT)

    monkeypatch.setattr(bucket.server.RequestHandlerClass, "do_GET", endless)
    with pytest.raises(DownloadError, match=f"instead of {len(CONTENT)}"):
        fetch_file(remote, path)
    assert not path.exists()


def test_bytes_are_kept_as_they_are_stored_whatever_encoding_the_server_names(bucket, path, monkeypatch):
    packed = gzip.compress(CONTENT)
    bucket.files["scan.nii.gz"] = packed
    answer = bucket.server.RequestHandlerClass.answer
    monkeypatch.setattr(
        bucket.server.RequestHandlerClass,
        "answer",
        lambda self, status, body, headers: answer(self, status, body, {**headers, "Content-Encoding": "gzip"}),
    )
    fetch_file(RemoteFile(f"{bucket.url}/scan.nii.gz", len(packed), bucket.etag("scan.nii.gz")), path)
    assert path.read_bytes() == packed


def test_an_empty_file_is_a_file(bucket, path):
    bucket.files["empty"] = b""
    fetch_file(RemoteFile(f"{bucket.url}/empty", 0, bucket.etag("empty")), path)
    assert path.read_bytes() == b""


def test_a_busy_server_is_asked_again_with_growing_pauses(bucket, remote, path, monkeypatch):
    bucket.statuses = [503, 500, 429, 503, 503, 503, 503]
    pauses = []
    monkeypatch.setattr(download, "FIRST_PAUSE_S", 1.0)
    monkeypatch.setattr(download, "RETRIES", 7)
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    fetch_file(remote, path)
    assert path.read_bytes() == CONTENT
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_is_final(bucket, remote, path, status):
    bucket.statuses = [status]
    with pytest.raises(DownloadError, match=rf"{KEY} answers {status}.*check the address"):
        fetch_file(remote, path)
    assert len(bucket.requests) == 1


def test_a_server_that_is_gone_is_reported_and_the_part_stays(bucket, remote, path, monkeypatch):
    bucket.cuts = [1000]
    monkeypatch.setattr(download, "RETRIES", 0)
    with pytest.raises(DownloadError):
        fetch_file(remote, path)
    bucket.stop()
    monkeypatch.setattr(download, "RETRIES", 2)
    with pytest.raises(DownloadError, match=r"refused.*3 attempts.*Check the connection"):
        fetch_file(remote, path)
    assert remote.part_of(path).stat().st_size == 1000


def test_a_silent_server_is_not_waited_for_forever(bucket, remote, path, monkeypatch):
    bucket.cuts = [100, 200]
    bucket.stalls.set()
    monkeypatch.setattr(download, "TIMEOUT_S", 1.0)  # what the server does send comes sooner, on a busy machine, too
    monkeypatch.setattr(download, "RETRIES", 0)
    begin = time.monotonic()
    with pytest.raises(DownloadError, match="timed out"):
        fetch_file(remote, path)
    assert time.monotonic() - begin < 20  # far from the half minute that is the default
    monkeypatch.setattr(download, "RETRIES", 1)
    monkeypatch.setattr(download.time, "sleep", lambda _: bucket.stalls.clear())  # it wakes up in the pause
    fetch_file(remote, path)
    assert path.read_bytes() == CONTENT
    assert [headers.get("Range") for headers in bucket.asked_for(KEY)] == [None, "bytes=100-", "bytes=300-"]


@pytest.mark.parametrize("what", ["the listing", "a file"])
def test_a_server_that_drips_is_left_at_the_deadline_of_the_whole_download(bucket, tmp_path, monkeypatch, what):
    """Each read is in time, and the whole would take for ever."""
    for key, content in ((f"{NAME}/CHANGES", b"1.0"), (f"{NAME}/sub-01/anat/sub-01_T1w.nii", bytes(1000))):
        bucket.files[key] = content
    monkeypatch.setattr(download, "GRACE_S", 0.5)
    monkeypatch.setattr(download, "_get" if what == "the listing" else "_resume", lambda *_: time.sleep(30))
    begin = time.monotonic()
    with pytest.raises(DownloadError, match=r"the time for this download is over.*it resumes"):
        download.download_openneuro(NAME, tmp_path, base_url=bucket.url, progress=False)
    assert time.monotonic() - begin < 10


def test_a_server_that_lists_page_after_page_is_left(openneuro, tmp_path, monkeypatch):
    openneuro.page_size = 1
    monkeypatch.setattr(download, "MOST_PAGES", 3)
    with pytest.raises(DownloadError, match="lists more than 3 pages"):
        fetch(openneuro, tmp_path / "scans")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is always full")
def test_a_full_disk_is_reported(remote, path):
    path.parent.mkdir()
    remote.part_of(path).symlink_to("/dev/full")
    with pytest.raises(DownloadError, match=r"scan\.nii cannot be written: No space left.*resumes"):
        fetch_file(remote, path)
    assert not path.exists()


def test_a_folder_that_cannot_be_created_is_reported(remote, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError, match="cannot be written"):
        fetch_file(remote, tmp_path / "file" / KEY)
    with pytest.raises(DownloadError, match="cannot be used"):
        check_space(tmp_path / "file" / "folder", {})


def test_space_is_checked_less_what_is_already_there(remote, path, monkeypatch):
    free = len(CONTENT) - 1000
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))
    with pytest.raises(DownloadError, match="space"):
        check_space(path.parent, {path: remote})
    remote.part_of(path).write_bytes(CONTENT[:1000])
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
def test_only_plain_web_addresses_are_accepted(url, tmp_path):
    with pytest.raises(InputError, match=r"give one like https://") as caught:
        download_openneuro(NAME, tmp_path, base_url=url)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x"])
def test_a_redirect_leads_to_no_other_protocol(bucket, remote, path, target, monkeypatch):
    handler = bucket.server.RequestHandlerClass
    monkeypatch.setattr(handler, "do_GET", lambda self: self.answer(302, b"", {"Location": target}))
    with pytest.raises(DownloadError):
        fetch_file(remote, path)
    assert not path.exists()


@pytest.mark.parametrize(("target", "refused"), [("http://host/a", True), ("https://host/b", False), ("/b", False)])
def test_a_redirect_does_not_leave_https(target, refused):
    response = requests.Response()
    response.url, response.status_code, response.headers["Location"] = "https://host/a", 302, target
    with pytest.raises(DownloadError, match="not https") if refused else contextlib.nullcontext():
        download._stay_on_https(response)


def test_download_errors_are_os_errors_too():
    assert issubclass(DownloadError, OSError)
    assert issubclass(DownloadError, VQGenError)


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(bytes(range(256)) * 20))
    return path


def _flip(path, index):
    content = bytearray(path.read_bytes())
    content[index] ^= 1
    path.write_bytes(content)


def test_an_md5_etag_tells_one_flipped_bit(scan):
    etag = hashlib.md5(scan.read_bytes()).hexdigest()
    assert find_fault(scan, RemoteFile("", scan.stat().st_size, etag)) is None
    _flip(scan, -20)
    assert "md5" in find_fault(scan, RemoteFile("", scan.stat().st_size, etag))


def test_a_given_sha256_is_what_counts(scan):
    size, content = scan.stat().st_size, scan.read_bytes()
    right = hashlib.sha256(content).hexdigest()
    assert find_fault(scan, RemoteFile("", size, "0" * 32, right.upper())) is None
    assert "sha256" in find_fault(scan, RemoteFile("", size, hashlib.md5(content).hexdigest(), "0" * 64))


def test_the_size_always_counts(scan):
    size = scan.stat().st_size
    assert find_fault(scan, RemoteFile("", size, "unknown")) is None
    assert "bytes" in find_fault(scan, RemoteFile("", size + 1, "unknown"))


@pytest.mark.parametrize("part_mib", [5, 8])
def test_an_etag_of_parts_is_told_from_a_flipped_bit(tmp_path, part_mib):
    path = tmp_path / "scan.nii"
    content = bytes(9 << 20) + b"end"
    path.write_bytes(content)
    first, second = content[: part_mib << 20], content[part_mib << 20 :]
    parts = hashlib.md5(hashlib.md5(first).digest() + hashlib.md5(second).digest()).hexdigest()
    assert multipart_etag(path, part_mib << 20) == f"{parts}-2"
    path = path.rename(tmp_path / "scan.nii.gz")  # no gzip: only the parts' digests can say that it is right
    assert find_fault(path, RemoteFile("", len(content), f"{parts}-2")) is None
    _flip(path, 100)
    assert find_fault(path, RemoteFile("", len(content), f"{parts}-2")) is not None


@pytest.mark.parametrize("etag", ["0" * 32 + "-2", "another-servers-kind"])
def test_where_the_etag_proves_nothing_the_crc_of_gzip_does(scan, etag):
    size = scan.stat().st_size
    assert find_fault(scan, RemoteFile("", size, etag)) is None
    _flip(scan, -6)  # in the CRC
    assert "gzip" in find_fault(scan, RemoteFile("", size, etag))
    scan.write_bytes(b"x" * size)
    assert "gzip" in find_fault(scan, RemoteFile("", size, etag))
