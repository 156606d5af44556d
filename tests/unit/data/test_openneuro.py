"""A stranger gets the very scans of a data set by its name, or is told why not."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from monai_vqgen.__main__ import main
from monai_vqgen.data import discover_volumes, download_openneuro
from monai_vqgen.data.bucket_listing import list_objects
from monai_vqgen.errors import DownloadError, InputError, OutputExistsError

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
    return download_openneuro(NAME, folder, **{"base_url": bucket.url, "progress": False, "retries": 1, **options})


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
    keys = [item.key for item in list_objects(openneuro.url, f"{NAME}/sub-")]
    assert keys == sorted(key for key in openneuro.files if key.startswith(f"{NAME}/sub-"))


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


def test_a_cut_listing_is_asked_for_again(openneuro, tmp_path):
    openneuro.cuts = [100]
    openneuro.statuses = [503]
    fetch(openneuro, tmp_path, retries=2)
    assert names(tmp_path) == SCANS | {SESSION} | ABOUT


def test_a_wrong_checksum_names_the_file_and_the_mend(openneuro, tmp_path):
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


def test_an_unknown_accession_is_said_so_and_leaves_no_folder(openneuro, tmp_path):
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
def test_a_server_that_has_gone_is_said_so(openneuro, tmp_path, fault):
    if fault == "gone":
        openneuro.stop()
    else:
        openneuro.statuses = [404]
    with pytest.raises(DownloadError, match="does not answer" if fault == "gone" else "answers 404"):
        fetch(openneuro, tmp_path / "scans")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_said_so_before_the_first_byte(openneuro, tmp_path, monkeypatch):
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
        (b"<html>sign in</html>", "no listing"),
        (b"welcome", "no XML"),
        (b"", "no XML"),
        (b'<?xml version="1.0" encoding="wrong"?><a/>', "no XML"),
        (listing(entry(f"{NAME}/CHANGES", size="-5")), "size"),
        (listing(entry(f"{NAME}/CHANGES", size="9" * 30)), "size"),
        (listing(entry(f"{NAME}/CHANGES", etag="")), "ETag"),
        (listing(entry(f"{NAME}/CHANGES", etag="a\nb")), "ETag"),
        (listing(more="<IsTruncated>true</IsTruncated>"), "not where"),
        (listing(more="<IsTruncated>true</IsTruncated><NextContinuationToken>a</NextContinuationToken>"), "not where"),
        (b"<!--" + b"x" * (17 << 20), "more than"),
    ],
)
def test_an_answer_that_is_no_listing_is_said_so(openneuro, tmp_path, content, match):
    openneuro.listing = content
    with pytest.raises(DownloadError, match=match):
        fetch(openneuro, tmp_path / "scans")
    assert list(tmp_path.iterdir()) == []


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
