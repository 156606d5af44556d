"""HTTP as far as downloads need it: only http and https, errors in words, lost connections tried again."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import re
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPException, HTTPMessage, HTTPResponse, InvalidURL
from typing import IO, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from monai_vqgen.errors import DownloadError, InputError

__all__ = ["ConnectionLost", "check_patience", "check_url", "open_url", "read_some", "read_whole", "try_again"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

WRITABLE = re.compile(r"[\x21-\x7e]+")  # what an address is made of; all else is quoted

TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})  # the statuses after which the same request may succeed
FIRST_PAUSE_S = 1.0  # before the second attempt; twice as long before each further one
LONGEST_PAUSE_S = 30.0


class ConnectionLost(Exception):  # noqa: N818  # an event that calls for another attempt, not yet an error
    """The server did not answer, or not to the end; another attempt may succeed."""


class _GuardedRedirects(urllib.request.HTTPRedirectHandler):
    """What was asked for over https is not taken from anywhere else."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            fp.close()
            raise DownloadError(f"{req.full_url} redirects to {newurl}, which is not https; choose another server.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    """Without the handlers of file:, ftp: and data:, so that a redirect cannot read what lies on this machine."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _GuardedRedirects(),
    ):
        opener.add_handler(handler)
    return opener


def check_url(url: str) -> str:
    """The address of a server or of a folder on it, without the last slash.

    Raises:
        InputError: for another scheme than http and https, without a host, with a user name, a query or a fragment.
    """
    try:
        parts = urlsplit(url)
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:
        port_is_right = False
    if not port_is_right or not WRITABLE.fullmatch(url) or parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"base_url {url!r} cannot be downloaded from; give an address like https://host/bucket.")
    if parts.username is not None or parts.query or parts.fragment:
        raise InputError("base_url holds a user name, a query or a fragment; give an address like https://host/bucket.")
    return url.rstrip("/")


def check_patience(timeout_s: float, retries: int) -> None:
    """Raise InputError for a time-out that is not positive or for a negative number of retries."""
    if not (math.isfinite(timeout_s) and timeout_s > 0):
        raise InputError(f"timeout_s is {timeout_s}; give a positive number of seconds.")
    if retries < 0:
        raise InputError(f"retries is {retries}; give 0 or more.")


@contextlib.contextmanager
def open_url(url: str, *, timeout_s: float, headers: Mapping[str, str] | None = None) -> Iterator[HTTPResponse]:
    """Open ``url``; a proxy named in the environment is used.

    Raises:
        ConnectionLost: the server is not there, or busy.
        DownloadError: it refuses (404, 403, ...), or its certificate is not trusted.
    """
    try:
        response = _opener().open(urllib.request.Request(url, headers=dict(headers or {})), timeout=timeout_s)
    except DownloadError:
        raise
    except HTTPError as error:
        with error:
            message = f"{url} answers {error.code} {error.reason}"
        if error.code in TRANSIENT:
            raise ConnectionLost(message) from error
        raise DownloadError(f"{message}; check the address and that the data are public.") from error
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        hopeless = isinstance(reason, (ssl.SSLCertVerificationError, InvalidURL))
        if hopeless or not isinstance(reason, (OSError, HTTPException)):
            raise DownloadError(f"{url} cannot be opened: {reason}; check the address.") from error
        raise ConnectionLost(f"{url} does not answer ({reason})") from error
    with response:
        yield response


def read_some(response: HTTPResponse, size: int) -> bytes:
    """At most ``size`` bytes, none at the end; ConnectionLost where the connection breaks or stalls.

    It gives what has come, and does not wait for the rest: a stall would take it along.
    """
    try:
        return response.read1(size)
    except (OSError, HTTPException) as error:
        raise ConnectionLost(f"{response.url} was cut ({error!r})") from error


def read_whole(url: str, *, limit: int, timeout_s: float) -> bytes:
    """The content of a small page; DownloadError where it has more than ``limit`` bytes."""
    content = bytearray()
    with open_url(url, timeout_s=timeout_s) as response:
        announced = response.length
        while len(content) <= limit and (chunk := read_some(response, limit + 1 - len(content))):
            content += chunk
    if len(content) > limit:
        raise DownloadError(f"{url} sends more than {limit} bytes, which is no listing of files; check the address.")
    if announced is not None and len(content) < announced:
        raise ConnectionLost(f"{url} was cut after {len(content)} of {announced} bytes")
    return bytes(content)


def try_again(action: Callable[[], T], *, retries: int) -> T:
    """Call ``action`` until the connection holds, with pauses of 1, 2, 4, ... 30 seconds between the attempts.

    Raises:
        DownloadError: the connection was lost in the first attempt and in all of the ``retries`` further ones.
    """
    for attempt in itertools.count():
        try:
            return action()
        except ConnectionLost as error:
            if attempt >= retries:
                raise DownloadError(
                    f"{error}; given up after {attempt + 1} attempts. Check the connection and run the same command "
                    "again: it resumes where it stopped."
                ) from error
            pause = min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S)
            logger.warning("%s; next attempt in %g s (%d left).", error, pause, retries - attempt)
            time.sleep(pause)
    raise AssertionError("unreachable")
