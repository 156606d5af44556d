"""Public scans by name: an OpenNeuro data set's anatomical scans, as the BIDS tree that `discover_volumes` reads.

bucket --list_objects--> RemoteFile --fetch_file--> NAME.VERSION.part --find_fault--> NAME

pooch transfers and hashes. Not in pooch, and therefore here: resuming a partial file, S3's listings and its ETags of
multipart uploads, and limits on what a server may send.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import itertools
import logging
import math
import os
import re
import shutil
import threading
import time
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote_plus, urlencode, urljoin

import pooch
import requests
from tqdm import tqdm

from monai_vqgen.errors import DownloadError, InputError, OutputExistsError

__all__ = ["OpenNeuroDownload", "download_openneuro"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

OPENNEURO_URL = "https://s3.amazonaws.com/openneuro.org"
# Who made the data, under which terms, and what is known about the subjects
ABOUT = re.compile(r"dataset_description\.json|participants\.(tsv|json)|CHANGES|LICENSE|README(\.md)?")
TIMEOUT_S = 30.0  # how long the server may be silent
RETRIES = 5  # further attempts after a lost connection, for each file
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # before the second attempt, then twice as long before each further one
LOST = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})  # the statuses after which the same request may succeed
GRACE_S, LEAST_RATE = 1800.0, 1 << 14  # of a whole download: it may take this long, and a second each so many bytes
CHUNK = 1 << 14  # bytes; at most this much is lost when a connection is cut
LONGEST_PAGE = 16 << 20  # bytes; S3 lists at most 1000 keys a page, of at most 1024 bytes, three times as long quoted
MOST_TAGS, LONGEST_TAG = 200_000, 1 << 14  # on a page: S3's has some 20,000; bytes of one with the text before it
DEEPEST = 16  # elements within elements of a listing; S3's are three deep
MOST_PAGES = 10_000  # ten million files; a server that continues is broken
MOST_FILES = 1_000_000  # of a listing, some 600 bytes of memory each
MULTIPART_ETAG = re.compile(r"[0-9a-f]{32}-([1-9][0-9]{0,4})")  # S3: the MD5 of the parts' MD5s, and how many parts
# In MiB, the part sizes of upload tools: S3's least 5, AWS' 8, s3cmd's 15, MinIO's 16 and 64, OpenNeuro's 1024
PART_SIZES_MIB = (5, 8, 10, 15, 16, 25, 32, 50, 64, 100, 128, 256, 512, 1024)


class RemoteFile(NamedTuple):
    """A file on a server: its address, its size in bytes, its ETag without quotes, and its SHA-256 if known."""

    url: str
    size: int
    etag: str
    sha256: str | None = None

    def part_of(self, path: Path) -> Path:
        """Where the bytes lie until the file is complete: beside it, named after their version."""
        return path.with_name(f"{path.name}.{re.sub('[^0-9A-Za-z-]', '', self.etag)[:40]}.part")


class OpenNeuroDownload(NamedTuple):
    """What is in the folder after a download."""

    folder: Path
    files: tuple[Path, ...]
    """All that were requested, complete and checked, sorted: the scans and their description."""
    fetched: int
    """How many of them were not there before."""


def download_openneuro(
    accession: str,
    folder: str | Path,
    *,
    subjects: Sequence[str] | None = None,
    suffix: str = "T1w",
    checksums: Mapping[str, str] | None = None,
    overwrite: bool = False,
    base_url: str | None = None,
    progress: bool = True,
) -> OpenNeuroDownload:
    """Download the anatomical scans of an OpenNeuro data set, with participants.tsv and the data set's description.

        bucket/ds002748/sub-01/anat/sub-01_T1w.nii.gz  -->  folder/sub-01/anat/sub-01_T1w.nii.gz

    This is the data set's latest version, whose number is in `CHANGES` and `dataset_description.json`. Each file is
    checked before it gets its name: size, and MD5 by the bucket's ETag or your SHA-256; for ETags that prove nothing
    see `find_fault`. An interrupted download is resumed: run it again, and only what is missing is fetched.

    Args:
        accession: "ds" and six digits, for instance "ds002748", 72 adults (Bezmaternykh et al. 2021).
        folder: becomes the BIDS tree.
        subjects: which, as "01" or "sub-01"; None for all.
        suffix: which contrast, "T1w", "T2w", "FLAIR" ...
        checksums: SHA-256 by file name in the tree ("sub-01/anat/sub-01_T1w.nii.gz"), to be sure of getting the very
            files of an earlier study, and where a mirror's ETag is not an MD5.
        overwrite: replace files of the folder that differ from the server's.
        base_url: of a mirror that lists its files as S3 does; None for OpenNeuro's own bucket.
        progress: show a bar.

    Raises:
        InputError: an argument that cannot work, for instance the accession "ds2748".
        OutputExistsError: the folder has other files of these names: edited, of another version or another data set.
            Nothing is fetched, so that they do not mix.
        DownloadError: unknown data set or subject, server unreachable, wrong checksum, no space on the disk. The files
            in place are complete, and running it again resumes.

    Examples:
        >>> download_openneuro("ds002748", "scans", subjects=["01", "02"]).files  # doctest: +SKIP
    """
    base_url, checksums, folder = base_url or OPENNEURO_URL, checksums or {}, Path(folder)
    wanted = _check_arguments(accession, base_url, subjects, suffix, checksums)
    chosen = _choose_files(base_url.rstrip("/"), accession, wanted, suffix)
    if unused := sorted(set(checksums) - set(chosen)):
        logger.warning("%d checksums are of files that are not fetched, for instance %s", len(unused), unused[0])
    files = {folder / name: file._replace(sha256=checksums.get(name)) for name, file in chosen.items()}
    to_fetch = {path: remote for path, remote in files.items() if not is_in_place(remote, path, overwrite=overwrite)}
    check_space(folder, to_fetch)
    total = sum(remote.size for remote in to_fetch.values())
    deadline = time.monotonic() + GRACE_S + total / LEAST_RATE
    with tqdm(total=total, desc=accession, unit="B", unit_scale=True, disable=not progress) as bar:
        for path, remote in to_fetch.items():
            bar.set_postfix_str(path.name, refresh=False)
            fetch_file(remote, path, deadline=deadline)
            bar.update(remote.size)
    logger.info("%s: %d files in %s, %d of them fetched now", accession, len(files), folder, len(to_fetch))
    return OpenNeuroDownload(folder, tuple(files), len(to_fetch))


def _check_arguments(
    accession: str, base_url: str, subjects: Sequence[str] | None, suffix: str, checksums: Mapping[str, str]
) -> list[str] | None:
    """The subjects without "sub-", sorted; InputError for what cannot work."""
    if not re.fullmatch(r"https?://[A-Za-z0-9.\-]+(:[0-9]+)?(/[!-~]*)?", base_url) or set("@?#") & set(base_url):
        raise InputError(
            "base_url is no address without user name, query or fragment; give one like https://host/bucket"
        )
    if not re.fullmatch(r"ds[0-9]{6}", accession):
        raise InputError(f'accession {accession!r} is not OpenNeuro\'s; give "ds" and six digits, as in "ds002748"')
    if not re.fullmatch(r"[A-Za-z0-9]+", suffix):
        raise InputError(f"suffix {suffix!r} is not a BIDS suffix; give letters and digits, as in T1w")
    for name, value in checksums.items():
        if not re.fullmatch(r"[0-9A-Fa-f]{64}", value):
            raise InputError(f"checksum {value!r} of {name} is not a SHA-256; give 64 hexadecimal digits")
    if subjects is None:
        return None
    names = [] if isinstance(subjects, str) else [subject.removeprefix("sub-") for subject in subjects]
    if not names or not all(re.fullmatch(r"[A-Za-z0-9]+", name) for name in names):
        raise InputError(f'subjects are {subjects!r}; give a list of names as in ["01", "sub-02"], or None')
    return sorted(set(names))


def _choose_files(base_url: str, accession: str, subjects: list[str] | None, suffix: str) -> dict[str, RemoteFile]:
    """The scans and their description by name in the tree; only BIDS names, which lead nowhere else."""
    deadline = time.monotonic() + GRACE_S
    files = list_objects(base_url, f"{accession}/", below=False, deadline=deadline)
    if not files:
        raise DownloadError(
            f"{base_url} has no data set {accession}; check the number, and on "
            f"https://openneuro.org/datasets/{accession} that the data set is public"
        )
    for prefix in ["sub-"] if subjects is None else [f"sub-{subject}/" for subject in subjects]:
        files |= list_objects(base_url, f"{accession}/{prefix}", deadline=deadline)  # derivatives are not even listed
    named = {key.removeprefix(f"{accession}/"): file for key, file in sorted(files.items())}
    scan = re.compile(
        rf"sub-([A-Za-z0-9]+)/(?:ses-[A-Za-z0-9]+/)?anat/sub-\1_(?:[A-Za-z0-9+-]+_)*{suffix}\.nii(?:\.gz)?"
    )
    owners = {match.group(1) for match in map(scan.fullmatch, named) if match}
    if not owners:
        raise DownloadError(f"{accession} has no *_{suffix} scan of these subjects; choose another suffix or data set")
    if missing := [f"sub-{subject}" for subject in subjects or () if subject not in owners]:
        raise DownloadError(f"{accession} has no *_{suffix} scan of {', '.join(missing)}; leave them out")
    return {name: file for name, file in named.items() if ABOUT.fullmatch(name) or scan.fullmatch(name)}


def find_fault(path: Path, remote: RemoteFile) -> str | None:
    """What is wrong with a file, in words, or None where it is what the server promised.

    Checked are the size, always, and the first of these that applies: the SHA-256 where one is given; the MD5 where the
    ETag is one (S3: every object uploaded in one piece); the MD5 of the parts' MD5s where one of the usual part sizes
    gives the ETag; the CRC-32 inside the file where its name ends in .gz.
    """
    found = path.stat().st_size
    if found != remote.size:
        return f"has {found} bytes instead of {remote.size}"
    is_md5 = re.fullmatch("[0-9a-f]{32}", remote.etag)
    if remote.sha256 or is_md5:
        algorithm, expected = ("sha256", remote.sha256.lower()) if remote.sha256 else ("md5", remote.etag)
        digest = pooch.file_hash(str(path), alg=algorithm)
        return None if digest == expected else f"has the {algorithm} {digest} instead of {expected}"
    if match := MULTIPART_ETAG.fullmatch(remote.etag):
        sizes = [size << 20 for size in PART_SIZES_MIB if max(1, -(-found // (size << 20))) == int(match.group(1))]
        if any(multipart_etag(path, size) == remote.etag for size in sizes):
            return None  # no match proves nothing: the part size may be another
    try:
        with gzip.open(path) if path.name.endswith(".gz") else io.BytesIO() as file:
            while file.read(CHUNK):
                pass
    except (OSError, EOFError, zlib.error) as error:
        return f"is not an intact gzip file ({error})"
    return None


def multipart_etag(path: Path, part_size: int) -> str:
    """The ETag that S3 gives a file uploaded in parts of so many bytes: MD5 of the parts' MD5s, dash, their number."""
    digests = []
    with path.open("rb") as file:
        for left in [part_size] * max(1, -(-path.stat().st_size // part_size)):
            state = hashlib.md5(usedforsecurity=False)
            while left and (chunk := file.read(min(CHUNK, left))):
                state.update(chunk)
                left -= len(chunk)
            digests.append(state.digest())
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


def is_in_place(remote: RemoteFile, path: Path, *, overwrite: bool = False) -> bool:
    """Whether the file is there, complete and the server's; OutputExistsError for another one, unless `overwrite`."""
    try:
        if not path.is_file():
            return False
        fault = find_fault(path, remote)
    except OSError as error:
        raise DownloadError(f"{path} cannot be read: {error.strerror or error}; choose another folder") from error
    if fault and not overwrite:
        raise OutputExistsError(
            f"{path} differs from the server's file: it {fault}. It may be edited, damaged, of another version or "
            "another data set. Nothing was fetched: choose another folder, move it away, or give overwrite"
        )
    if fault:
        logger.warning("%s %s; it is replaced", path, fault)
    return not fault


def check_space(folder: Path, to_fetch: Mapping[Path, RemoteFile]) -> None:
    """Make the folder, and raise DownloadError unless its disk has space for what is still to come."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        parts = [remote.part_of(path) for path, remote in to_fetch.items()]
        there = sum(part.stat().st_size for part in parts if part.is_file())
    except OSError as error:
        raise DownloadError(f"{folder} cannot be used: {error.strerror or error}; choose another folder") from error
    needed = sum(remote.size for remote in to_fetch.values()) - there
    if needed > free:
        raise DownloadError(
            f"{folder} has {free / 1e6:.0f} MB of free space, and {needed / 1e6:.0f} MB are still to come; free some, "
            "choose another folder, or fewer subjects"
        )


def fetch_file(remote: RemoteFile, path: Path, *, deadline: float = math.inf) -> None:
    """Fetch a file; what is at ``path`` afterwards is complete and checked, and replaces an earlier file.

    The part file of an earlier attempt is resumed, and kept for the next where this one fails. Parts of other versions
    are removed once the file is complete.

    Args:
        remote: the file on the server.
        path: the final name.
        deadline: on the monotonic clock, in seconds.

    Raises:
        DownloadError: server unreachable or too slow, file gone, wrong checksum, no space; the message says what to do.
    """
    part = remote.part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        _try_again(partial(_resume, remote, part), remote.url, deadline)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        fault = find_fault(part, remote)
        if fault is None:
            os.replace(part, path)
        others = re.compile(re.escape(path.name) + r"\.[0-9A-Za-z-]*\.part")
        for other in [part] if fault else [file for file in path.parent.iterdir() if others.fullmatch(file.name)]:
            other.unlink(missing_ok=True)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(
            f"{path} cannot be written: {error.strerror or error}. Free some space, or choose a folder that can be "
            "written; then run the same command again: it resumes where it stopped"
        ) from error
    if fault is not None:
        raise DownloadError(
            f"{path} is not in place: what {remote.url} sent {fault}. It was removed; run the same command again to "
            "fetch it anew. If that does not help, the file on the server or the expected checksum is wrong"
        )


def _resume(remote: RemoteFile, part: Path) -> None:
    """Fill the part file over one connection, from where it ends.

    Each byte is written at its own place: two processes that fetch the same version do not disturb each other.
    """
    end = min(part.stat().st_size, remote.size)
    if end == remote.size:
        return
    resume = {"Range": f"bytes={end}-", "If-Range": f'"{remote.etag}"'} if end else {}
    with part.open("rb+") as file, contextlib.ExitStack() as answers:

        def place(response: requests.Response, **_: Any) -> None:
            """Go to the place of the answer's first byte: the beginning where the server does not resume."""
            answers.callback(response.close)
            _stay_on_https(response)
            if response.is_redirect or not response.ok:
                return
            response.raw.headers.pop("Content-Encoding", None)  # the bytes as they are stored
            start = file.seek(end if response.status_code == 206 else 0)
            if start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                file.truncate(0)
                raise requests.ConnectionError("the answer is another range than the one requested")
            length = response.raw.length_remaining  # None where it is not announced, and might have no end
            if length != remote.size - start:
                raise DownloadError(
                    f"{remote.url} has {length and start + length} bytes instead of {remote.size} as listed: it has "
                    "changed. Run the same command again"
                )

        headers = {"Accept-Encoding": "identity", **resume}
        pooch.HTTPDownloader(chunk_size=CHUNK, timeout=TIMEOUT_S, headers=headers, hooks={"response": place})(
            remote.url, file, None
        )


def _stay_on_https(response: requests.Response, **_: Any) -> None:
    if response.is_redirect and response.url.startswith("https:"):
        target = urljoin(response.url, response.headers["Location"])
        if not target.startswith("https:"):
            raise DownloadError(f"{response.url} redirects to {target}, which is not https; choose another server")


def _within(action: Callable[[], T], url: str, deadline: float) -> T:
    """Call ``action``; DownloadError at the deadline, whatever it waits for then: each read may take its timeout."""
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(action())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, name="download", daemon=True).start()
    left = deadline - time.monotonic()
    if not wait([answer], timeout=None if left == math.inf else max(left, 0.0)).done:
        raise DownloadError(
            f"{url} sends less than {LEAST_RATE >> 10} KiB a second: the time for this download is over. Run the same "
            "command again: it resumes where it stopped"
        )
    return answer.result()


def _try_again(action: Callable[[], T], url: str, deadline: float) -> T:
    """Call ``action`` until the connection holds, with growing pauses; DownloadError where it never does."""
    for attempt in itertools.count():
        try:
            return _within(action, url, deadline)
        except requests.RequestException as error:
            status = getattr(error.response, "status_code", None)
            reason = getattr(next(iter(error.args), None), "reason", error)  # of urllib3's MaxRetryError
            what = f"the connection to {url} failed ({reason})"
            if error.response is not None:
                what = f"{url} answers {status} {error.response.reason}"
            untrusted = "CERTIFICATE_VERIFY_FAILED" in str(error)
            if not (status in TRANSIENT or (status is None and isinstance(error, LOST) and not untrusted)):
                raise DownloadError(f"{what}; check the address and that the data are public") from error
            if attempt >= RETRIES:
                raise DownloadError(
                    f"{what}; gave up after {attempt + 1} attempts. Check the connection and run the same "
                    "command again: it resumes where it stopped"
                ) from error
            pause = min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S)
            logger.warning("%s; next attempt in %g s (%d left)", what, pause, RETRIES - attempt)
            time.sleep(pause)
        except ValueError as error:  # of a redirect to what is no address
            raise DownloadError(f"{url} answers what no server of files does ({error}); check base_url") from error
    raise AssertionError("unreachable")


def list_objects(
    base_url: str, prefix: str, *, below: bool = True, deadline: float = math.inf
) -> dict[str, RemoteFile]:
    """By key, the files of an S3 bucket whose keys begin with ``prefix`` (ListObjectsV2); the answer is not trusted.

    Without ``below`` those that have no slash after the prefix.

    Raises:
        DownloadError: the server is unreachable or refuses, or its answer is not a listing or leaves the prefix.
    """
    query = {"list-type": "2", "prefix": prefix, "encoding-type": "url"} | ({} if below else {"delimiter": "/"})
    files: dict[str, RemoteFile] = {}
    tokens: set[str] = set()
    while len(tokens) < MOST_PAGES:
        url = f"{base_url}/?{urlencode(query)}"
        content = _try_again(partial(_get, url), url, deadline)
        try:
            page = _parse(content)
            for entry in page.iterfind("{*}Contents"):
                key, size, etag = _read_entry(entry, prefix, quoted=page.findtext("{*}EncodingType") == "url")
                files[key] = RemoteFile(f"{base_url}/{quote(key)}", size, etag)
            if len(files) > MOST_FILES:
                raise DownloadError(f"it lists more than {MOST_FILES} files of {prefix}")
            if page.findtext("{*}IsTruncated", "false") != "true":
                return files
            token = page.findtext("{*}NextContinuationToken")
            if not token or token in tokens:
                raise DownloadError("its listing says that there is more, but not where")
        except DownloadError as error:
            raise DownloadError(f"{base_url} cannot be used: {error}; check base_url") from error
        tokens.add(token)
        query["continuation-token"] = token
    raise DownloadError(f"{base_url} lists more than {MOST_PAGES} pages of {prefix}; check base_url")


def _get(url: str) -> bytes:
    content = bytearray()
    hooks = {"response": _stay_on_https}
    with requests.get(url, stream=True, timeout=TIMEOUT_S, hooks=hooks) as response:
        response.raise_for_status()
        for chunk in response.iter_content(CHUNK):
            content += chunk
            if len(content) > LONGEST_PAGE:
                raise DownloadError(f"{url} sends more than {LONGEST_PAGE} bytes, which is no listing; check base_url")
    return bytes(content)


class _PlainXML(ElementTree.TreeBuilder):
    """Refuses document types, and with them entities, and deep nesting, before any of it is kept."""

    depth = 0

    def start(self, tag: str, attributes: dict[str, str]) -> ElementTree.Element:
        self.depth += 1
        if self.depth > DEEPEST:
            raise DownloadError(f"its listing nests more than {DEEPEST} elements, as no S3 bucket does")
        return super().start(tag, attributes)

    def end(self, tag: str) -> ElementTree.Element:
        self.depth -= 1
        return super().end(tag)

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise DownloadError("its listing declares a document type, as no S3 bucket does")


def _parse(content: bytes) -> ElementTree.Element:
    if content.count(b">") > MOST_TAGS or max(map(len, content.split(b">"))) > LONGEST_TAG:
        raise DownloadError("its listing has more or longer elements than that of any S3 bucket")
    parser = ElementTree.XMLParser(target=_PlainXML())
    try:
        parser.feed(content)
        page = parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # not XML, or of an unknown encoding
        raise DownloadError(f"its listing is not XML ({error})") from error
    if not isinstance(page, ElementTree.Element) or page.tag.rpartition("}")[2] != "ListBucketResult":
        raise DownloadError("its answer is not the listing of an S3 bucket")
    return page


def _read_entry(entry: ElementTree.Element, prefix: str, *, quoted: bool) -> tuple[str, int, str]:
    """Key, size and ETag of a listed file."""
    key, size = entry.findtext("{*}Key", ""), entry.findtext("{*}Size", "")
    key, etag = unquote_plus(key) if quoted else key, entry.findtext("{*}ETag", "").strip('"')
    if not key.startswith(prefix) or not {"..", "."}.isdisjoint(re.split(r"[/\\]", key)):
        raise DownloadError(f"its listing names {key!r}, which is outside {prefix!r}")
    if not re.fullmatch("[0-9]{1,18}", size) or not re.fullmatch(r"[\x21\x23-\x7e]+", etag):
        raise DownloadError(f"its listing gives {key!r} the size {size!r} and the ETag {etag!r}")
    return key, int(size), etag
