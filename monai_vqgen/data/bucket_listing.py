"""What a public S3 bucket holds, by S3's REST call ListObjectsV2; the answer is not trusted."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple
from urllib.parse import unquote_plus, urlencode

from monai_vqgen.data.web import read_whole, try_again
from monai_vqgen.errors import DownloadError

__all__ = ["StoredObject", "list_objects"]

LONGEST_PAGE = (
    16 << 20
)  # bytes; S3 sends at most 1000 keys a page, of at most 1024 bytes each, three times as long quoted
MOST_PAGES = 10_000  # that is ten million files; a server that goes on is broken


class StoredObject(NamedTuple):
    """One file of a bucket."""

    key: str
    """Its path in the bucket, with slashes; begins with the prefix asked for and never leaves it."""
    size: int
    """In bytes."""
    etag: str
    """Without quotes."""


class _PlainXML(ElementTree.TreeBuilder):
    """Refuses document types, and with them entities, before any of them is read."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise DownloadError("its listing declares a document type, as no S3 bucket does")


def list_objects(
    base_url: str, prefix: str, *, below: bool = True, timeout_s: float = 30.0, retries: int = 5
) -> Iterator[StoredObject]:
    """The files whose key begins with ``prefix``, over as many pages as there are.

    Args:
        base_url: of the bucket, for instance https://s3.amazonaws.com/openneuro.org.
        prefix: what the keys begin with.
        below: also what has a slash after the prefix.
        timeout_s: how long the server may be silent.
        retries: further attempts after a lost connection, for each page.

    Raises:
        DownloadError: the server is gone or refuses, or its answer is no listing or names files outside the prefix.
    """
    query = {"list-type": "2", "prefix": prefix, "encoding-type": "url"} | ({} if below else {"delimiter": "/"})
    tokens: set[str] = set()
    for _ in range(MOST_PAGES):
        url = f"{base_url}/?{urlencode(query)}"
        content = try_again(partial(read_whole, url, limit=LONGEST_PAGE, timeout_s=timeout_s), retries=retries)
        try:
            page = _parse(content)
            for entry in page.iterfind("{*}Contents"):
                yield _stored_object(entry, prefix, quoted=page.findtext("{*}EncodingType") == "url")
            if page.findtext("{*}IsTruncated", "false") != "true":
                return
            token = page.findtext("{*}NextContinuationToken")
            if not token or token in tokens:
                raise DownloadError("its listing says that there is more, but not where")
        except DownloadError as error:
            raise DownloadError(f"{base_url} cannot be used: {error}. Check base_url.") from error
        tokens.add(token)
        query["continuation-token"] = token
    raise DownloadError(f"{base_url} lists more than {MOST_PAGES} pages of {prefix}; check base_url.")


def _parse(content: bytes) -> ElementTree.Element:
    parser = ElementTree.XMLParser(target=_PlainXML())
    try:
        parser.feed(content)
        page = parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # not XML, or of an unknown encoding
        raise DownloadError(f"its listing is no XML ({error})") from error
    if not isinstance(page, ElementTree.Element) or page.tag.rpartition("}")[2] != "ListBucketResult":
        raise DownloadError("its answer is no listing of an S3 bucket")
    return page


def _stored_object(entry: ElementTree.Element, prefix: str, *, quoted: bool) -> StoredObject:
    key = entry.findtext("{*}Key", "")
    key = unquote_plus(key) if quoted else key
    size, etag = entry.findtext("{*}Size", ""), entry.findtext("{*}ETag", "").strip('"')
    if not key.startswith(prefix) or not {"..", "."}.isdisjoint(re.split(r"[/\\]", key)):
        raise DownloadError(f"its listing names {key!r}, which lies outside {prefix!r}")
    if not re.fullmatch("[0-9]{1,18}", size) or not re.fullmatch(r"[\x21\x23-\x7e]+", etag):
        raise DownloadError(f"its listing gives {key!r} the size {size!r} and the ETag {etag!r}")
    return StoredObject(key, int(size), etag)
