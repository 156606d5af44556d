"""One file from a server to its final name: resumed where it stopped, checked, then moved into place."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from http.client import HTTPResponse
from pathlib import Path
from typing import NamedTuple

from monai_vqgen.data.checksums import find_fault
from monai_vqgen.data.web import ConnectionLost, open_url, read_some, try_again
from monai_vqgen.errors import DownloadError, OutputExistsError

__all__ = ["RemoteFile", "check_space", "fetch_file", "is_in_place", "part_path"]

logger = logging.getLogger(__name__)

CHUNK = 1 << 18  # bytes between two steps of the progress bar
MEGABYTE = 1e6  # bytes
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class RemoteFile(NamedTuple):
    """A file on a server and what is known about it."""

    url: str
    size: int
    """In bytes."""
    etag: str
    """The server's name of this version of the file, without quotes; what it proves, `find_fault` says."""
    sha256: str | None = None


def part_path(remote: RemoteFile, path: Path) -> Path:
    """Where the bytes lie until the file is complete: beside it, named after the version they are of."""
    version = re.sub("[^0-9A-Za-z-]", "", remote.etag)[:40]
    return path.with_name(f"{path.name}.{version}.part")


def is_in_place(remote: RemoteFile, path: Path, *, overwrite: bool = False) -> bool:
    """Whether the file is there, complete and as the server has it.

    Raises:
        OutputExistsError: another file has its name, and ``overwrite`` does not allow to replace it.
        DownloadError: the file cannot be read.
    """
    try:
        if not path.is_file():
            return False
        fault = find_fault(path, remote.size, etag=remote.etag, sha256=remote.sha256)
    except OSError as error:
        raise DownloadError(f"{path} cannot be read: {error.strerror or error}; choose another folder.") from error
    if fault is None:
        return True
    if not overwrite:
        raise OutputExistsError(
            f"{path} differs from the server's file: it {fault}. It may be edited, damaged, another version's or "
            "another data set's. Nothing was fetched: choose another folder, move it away, or give overwrite."
        )
    logger.warning("%s %s; it is replaced.", path, fault)
    return False


def check_space(folder: Path, to_fetch: Mapping[Path, RemoteFile]) -> None:
    """Make the folder, and raise DownloadError unless its disk has space for what is still to come."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise DownloadError(f"{folder} cannot be made: {error.strerror or error}; choose another folder.") from error
    parts = [part_path(remote, path) for path, remote in to_fetch.items()]
    needed = sum(remote.size for remote in to_fetch.values()) - sum(p.stat().st_size for p in parts if p.is_file())
    if needed > free:
        raise DownloadError(
            f"{folder} has {free / MEGABYTE:.0f} MB of space where {needed / MEGABYTE:.0f} MB are still to come; make "
            "space, choose another folder, or fewer subjects."
        )


def fetch_file(
    remote: RemoteFile,
    path: Path,
    *,
    timeout_s: float = 30.0,
    retries: int = 5,
    progress: Callable[[int], object] = lambda _: None,
) -> None:
    """Fetch a file; what stands at ``path`` afterwards is complete and checked, and takes the place of an earlier one.

        server --Range--> NAME.VERSION.part --size, checksum--> NAME

    A part of an earlier attempt is resumed, and left for the next where this one fails. Parts of other versions are
    not touched before the file is complete, then removed.

    Args:
        remote: what to fetch.
        path: its final name; folders are made.
        timeout_s: how long the server may be silent.
        retries: further attempts after a lost connection.
        progress: told how many bytes have come to lie here since the last call; negative where the start is repeated.

    Raises:
        DownloadError: server gone, file gone, wrong checksum, no space; the message says what to do.
    """
    part = part_path(remote, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        try_again(_Transfer(remote, part, timeout_s, progress).resume, retries=retries)
        _settle(remote, part, path)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(
            f"{path} cannot be written: {error.strerror or error}. Make space, or choose a folder that can be written; "
            "then run the same command again: it resumes where it stopped."
        ) from error


class _Transfer:
    """Fills the part file, over as many connections as it takes.

    Nothing is ever cut off the part, and each byte is written at its own place: two processes that fetch the same
    version of a file write the same bytes to the same places.
    """

    def __init__(self, remote: RemoteFile, part: Path, timeout_s: float, progress: Callable[[int], object]) -> None:
        self.remote, self.part, self.timeout_s, self.progress = remote, part, timeout_s, progress
        self.position = 0
        self._go_to(min(part.stat().st_size, remote.size))

    def resume(self) -> None:
        url, size, etag = self.remote.url, self.remote.size, self.remote.etag
        if self.position == size:
            return
        headers = {"Range": f"bytes={self.position}-", "If-Range": f'"{etag}"'} if self.position else {}
        with open_url(url, timeout_s=self.timeout_s, headers=headers) as response, open(self.part, "rb+") as file:
            self._check_answer(response)
            file.seek(self.position)
            while self.position < size:
                chunk = read_some(response, min(CHUNK, size - self.position))
                if not chunk:
                    raise ConnectionLost(f"{url} was cut after {self.position} of {size} bytes")
                file.write(chunk)
                self._go_to(self.position + len(chunk))

    def _go_to(self, position: int) -> None:
        self.progress(position - self.position)
        self.position = position

    def _check_answer(self, response: HTTPResponse) -> None:
        """Go to the place of the answer's first byte: the beginning where the server does not know ranges."""
        total: int | None
        if response.status == 206:
            match = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if match is None or int(match.group(1)) != self.position:
                self._go_to(0)
                raise ConnectionLost(f"{self.remote.url} answers with another range than the one asked for")
            total = None if match.group(2) == "*" else int(match.group(2))
        else:
            self._go_to(0)
            total = response.length
        if total is not None and total != self.remote.size:
            raise DownloadError(
                f"{self.remote.url} has {total} bytes where the server's listing says {self.remote.size}; it changed "
                "meanwhile. Run the same command again."
            )


def _settle(remote: RemoteFile, part: Path, path: Path) -> None:
    """Check the part and give it its final name; remove it where it is wrong, since no resuming would mend it."""
    fault = find_fault(part, remote.size, etag=remote.etag, sha256=remote.sha256)
    if fault is not None:
        part.unlink()
        raise DownloadError(
            f"{path} is not in place: what {remote.url} sent {fault}. It was removed; run the same command again to "
            "fetch it anew. If that does not help, the file on the server or the expected checksum is wrong."
        )
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    parts = re.compile(re.escape(path.name) + r"\.[0-9A-Za-z-]*\.part")
    for other in path.parent.iterdir():
        if parts.fullmatch(other.name):
            other.unlink(missing_ok=True)
