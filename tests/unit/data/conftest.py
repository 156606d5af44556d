"""A small S3 bucket on this machine, with a fault for each promise of the downloads."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote_plus, unquote_plus, urlsplit
from xml.sax.saxutils import escape

import pytest


class Bucket:
    """What the server holds, what goes wrong, and what it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}  # instead of the MD5
        self.sent: dict[str, bytes] = {}  # instead of what the listing describes
        self.cuts: list[int] = []  # the next answers end after so many bytes of their body
        self.statuses: list[int] = []  # the next answers are nothing but these
        self.knows_ranges = True
        self.wrong_range = False
        self.stalls = threading.Event()
        self.page_size = 1000
        self.quotes_keys = True
        self.listing: bytes | None = None
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.url = ""
        self.server: ThreadingHTTPServer | None = None

    def etag(self, key: str) -> str:
        return self.etags.get(key, hashlib.md5(self.files[key]).hexdigest())

    def asked_for(self, key: str) -> list[dict[str, str]]:
        """The headers of the requests for one file, in their order."""
        return [headers for path, headers in self.requests if unquote_plus(urlsplit(path).path) == f"/{key}"]

    def stop(self) -> None:
        if self.server is not None:
            self.stalls.clear()
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def page(self, query: dict[str, str]) -> bytes:
        keys = sorted(key for key in self.files if key.startswith(query["prefix"]))
        if "delimiter" in query:
            keys = [key for key in keys if query["delimiter"] not in key[len(query["prefix"]) :]]
        start = int(query.get("continuation-token", "page 0").removeprefix("page "))
        shown, more = keys[start : start + self.page_size], start + self.page_size < len(keys)
        quoted = self.quotes_keys and query.get("encoding-type") == "url"
        entries = "".join(
            f"<Contents><Key>{quote_plus(key, safe='/') if quoted else escape(key)}</Key>"
            f"<ETag>&quot;{self.etag(key)}&quot;</ETag><Size>{len(self.files[key])}</Size></Contents>"
            for key in shown
        )
        return (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>'
            f"{'<EncodingType>url</EncodingType>' if quoted else ''}"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{entries}"
            f"{f'<NextContinuationToken>page {start + self.page_size}</NextContinuationToken>' if more else ''}"
            "</ListBucketResult>"
        ).encode()


class _Handler(BaseHTTPRequestHandler):
    bucket: Bucket

    def log_message(self, *arguments) -> None:
        pass

    def do_GET(self) -> None:
        bucket, parts = self.bucket, urlsplit(self.path)
        bucket.requests.append((self.path, dict(self.headers)))
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        key = unquote_plus(parts.path).removeprefix("/")  # as S3, which takes + for a space
        if bucket.statuses:
            self.answer(bucket.statuses.pop(0), b"", {})
        elif query.get("list-type") == "2":
            self.answer(200, bucket.page(query) if bucket.listing is None else bucket.listing, {})
        elif key not in bucket.files:
            self.answer(404, b"<Error/>", {})
        else:
            self.answer_file(key)

    def answer_file(self, key: str) -> None:
        content = self.bucket.sent.get(key, self.bucket.files[key])
        headers = {"ETag": f'"{self.bucket.etag(key)}"'}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]
        if asked is None or not same or not self.bucket.knows_ranges:
            self.answer(200, content, headers)
            return
        start = int(asked.group(1)) + self.bucket.wrong_range
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.answer(206, content[start:], headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        bucket = self.bucket
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        end = bucket.cuts.pop(0) if bucket.cuts and status < 300 else len(body)
        self.wfile.write(body[:end])
        self.wfile.flush()
        while bucket.stalls.is_set():
            threading.Event().wait(0.01)


@pytest.fixture
def bucket(monkeypatch) -> Iterator[Bucket]:
    """An empty bucket that answers at `bucket.url`; downloads take small chunks and do not pause between attempts."""
    monkeypatch.setenv("no_proxy", "*")
    for name, value in {"FIRST_PAUSE_S": 0.0, "RETRIES": 1, "CHUNK": 100}.items():
        monkeypatch.setattr(f"monai_vqgen.data.download.{name}", value)
    bucket = Bucket()
    handler = type("Handler", (_Handler,), {"bucket": bucket})
    bucket.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    bucket.url = f"http://127.0.0.1:{bucket.server.server_port}"
    thread = threading.Thread(target=bucket.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield bucket
    bucket.stop()
    thread.join()
