"""Files that are complete or absent: what stands at its final name was written to the end."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["replace_file", "replace_path", "write_bytes", "write_json"]


@contextlib.contextmanager
def replace_path(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """Give the path of a temporary file that takes the place of ``path`` when the block ends without an error.

    The temporary file lies in the same folder, so that the last step is one atomic rename, and keeps the suffix, which
    some writers go by. A full disk, an exception or a kill leaves an earlier file at ``path`` as it was.

    Args:
        path: the final name.
        durable: wait until the disk has the content. Not for one of many files of which a last, durable one says that
            they are all there: a thousand slices would wait a thousand times.

    Example:
        >>> with replace_path("picture.png") as partial:  # doctest: +SKIP
        ...     picture.save(partial)
    """
    path = Path(path)
    partial = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        yield partial
        if durable:
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of ``path`` when the block ends without an error.

    Args:
        path: the final name.
        durable: see `replace_path`.

    Example:
        >>> with replace_file("note.txt") as file:  # doctest: +SKIP
        ...     file.write(b"complete")
    """
    with replace_path(path, durable=durable) as partial, open(partial, "wb") as file:
        yield file


def write_bytes(path: str | os.PathLike[str], content: bytes, *, durable: bool = True) -> None:
    """Write ``content``, complete or not at all; `durable` as in `replace_path`."""
    with replace_file(path, durable=durable) as file:
        file.write(content)


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write ``content`` as indented JSON, complete or not at all; NaN is refused because JSON has none."""
    write_bytes(path, json.dumps(content, indent=4, allow_nan=False).encode() + b"\n")
