"""Files that are complete or absent: what stands at its final name was written to the end."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["replace_file", "write_json"]


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of ``path`` only when the block ends without an error.

    The temporary file lies in the same folder, so that the last step is one atomic rename. A full disk, an exception
    or a kill leaves an earlier file at ``path`` as it was.

    Example:
        >>> with replace_file("/tmp/note.txt") as file:
        ...     _ = file.write(b"complete")
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write ``content`` as indented JSON, complete or not at all; NaN is refused because JSON has none."""
    text = json.dumps(content, indent=4, allow_nan=False)
    with replace_file(path) as file:
        file.write(text.encode() + b"\n")
