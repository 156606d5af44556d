"""Files that are complete or absent, and folders whose earlier results are never overwritten silently."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from monai_vqgen.errors import OutputExistsError

__all__ = ["claim_folder", "claim_run", "replace_file", "replace_path", "write_bytes", "write_json"]

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def replace_path(
    path: str | os.PathLike[str], *, durable: bool = True, previous: str | os.PathLike[str] | None = None
) -> Iterator[Path]:
    """Give the path of a temporary file that takes the place of ``path`` when the block ends without an error.

    The temporary file lies in the same folder, so that the last step is one atomic rename, and keeps the suffix, which
    some writers go by. A full disk, an exception or a kill leaves an earlier file at ``path`` as it was.

    Args:
        path: the final name.
        durable: wait until the disk has the content. Not for one of many files of which a last, durable one says that
            they are all there: a thousand slices would wait a thousand times.
        previous: name under which an earlier file at ``path`` is kept, once the new one is complete; None replaces it.

    Examples:
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
        if previous is not None and path.is_file():
            os.replace(path, previous)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_file(
    path: str | os.PathLike[str], *, durable: bool = True, previous: str | os.PathLike[str] | None = None
) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of ``path`` when the block ends without an error.

    Args:
        path: the final name.
        durable: see `replace_path`.
        previous: see `replace_path`.

    Examples:
        >>> with replace_file("note.txt") as file:  # doctest: +SKIP
        ...     file.write(b"complete")
    """
    with replace_path(path, durable=durable, previous=previous) as partial, open(partial, "wb") as file:
        yield file


def write_bytes(path: str | os.PathLike[str], content: bytes, *, durable: bool = True) -> None:
    """Write ``content``, complete or not at all; `durable` as in `replace_path`."""
    with replace_file(path, durable=durable) as file:
        file.write(content)


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write ``content`` as indented JSON, complete or not at all; NaN is refused because JSON has none."""
    write_bytes(path, json.dumps(content, indent=4, allow_nan=False).encode() + b"\n")


def claim_folder(
    folder: str | os.PathLike[str], names: Sequence[str], *, overwrite: bool, by_products: Sequence[str] = ()
) -> Path:
    """Make a folder, and remove the earlier results in it or refuse them. An empty subfolder is no result.

    Earlier results are removed at once, so that a run that ends early does not leave them beside its own.

    Args:
        folder: created if missing.
        names: files and folders that will be written, relative to it; a pattern with a star stands for all matches.
        overwrite: remove them.
        by_products: like names, but they do not stop a run.

    Raises:
        OutputExistsError: one of ``names`` exists and ``overwrite`` is off.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _results(folder, names)
    if earlier and not overwrite:
        raise OutputExistsError(
            f"{str(folder)!r} already holds {', '.join(earlier)}; give another output_dir, or overwrite=True "
            "(--overwrite True) to replace earlier results"
        )
    for name in [*earlier, *_results(folder, by_products)] if overwrite else []:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:  # of a link the link, not what it points to
            path.unlink(missing_ok=True)
        logger.info("Removed %s, a result of an earlier run", path)
    return folder


def claim_run(folder: Path, marker: str, run: Mapping[str, Any]) -> None:
    """Make a folder the place of one run that can be taken up: by a file that says which run, or check that it is.

    Args:
        folder: created if missing.
        marker: name of that file.
        run: what makes it this run and no other; can be written as JSON.

    Raises:
        OutputExistsError: the folder holds another run, or something else.
    """
    told = json.loads(json.dumps(run))
    if (folder / marker).is_file():
        before = json.loads((folder / marker).read_text())
        other = sorted(key for key in told if before.get(key) != told[key])
        if other:
            raise OutputExistsError(f"{folder} holds a run with other {', '.join(other)}: give another output folder")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(f"{folder} holds files that no such run has written: give another output folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / marker, told)


def _results(folder: Path, names: Sequence[str]) -> list[str]:
    """Those of the names that exist in the folder, stars resolved, without empty folders."""
    found = [path for name in names for path in (sorted(folder.glob(name)) if "*" in name else [folder / name])]
    return [
        path.relative_to(folder).as_posix()
        for path in found
        if os.path.lexists(path) and not (path.is_dir() and not path.is_symlink() and not any(path.iterdir()))
    ]
