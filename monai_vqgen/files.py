"""Files that are complete or absent, and folders whose earlier results are never overwritten silently."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from monai_vqgen.errors import OutputExistsError

try:
    import fcntl
except ImportError:  # not POSIX: nothing is locked
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "claim_folder",
    "claim_run",
    "hold_alone",
    "previous_path",
    "replace_file",
    "replace_path",
    "write_bytes",
    "write_json",
]

logger = logging.getLogger(__name__)

_held: dict[tuple[int, Path], int] = {}  # by process, because a fork does not inherit locks


def previous_path(path: Path) -> Path:
    """Where the file lies that was at ``path`` before the one that is.

    Examples:
        >>> previous_path(Path("training_state.pt")).name
        'training_state.previous.pt'
    """
    return path.with_suffix(f".previous{path.suffix}")


@contextlib.contextmanager
def replace_path(path: str | os.PathLike[str], *, durable: bool = True, keep_previous: bool = False) -> Iterator[Path]:
    """Give the path of a temporary file that takes the place of ``path`` when the block ends without an error.

    The temporary file lies in the same folder, so that the last step is one atomic rename, and keeps the suffix, which
    some writers go by. A full disk, an exception or a kill leaves an earlier file at ``path`` as it was.

    Args:
        path: the final name.
        durable: wait until the disk has the content. Not for one of many files of which a last, durable one says that
            they are all there: a thousand slices would wait a thousand times.
        keep_previous: keep an earlier file at ``path`` as `previous_path`, once the new one is complete.

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
        if keep_previous and path.is_file():
            os.replace(path, previous_path(path))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_file(
    path: str | os.PathLike[str], *, durable: bool = True, keep_previous: bool = False
) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of ``path`` when the block ends without an error.

    Args:
        path: the final name.
        durable: see `replace_path`.
        keep_previous: see `replace_path`.

    Examples:
        >>> with replace_file("note.txt") as file:  # doctest: +SKIP
        ...     file.write(b"complete")
    """
    with replace_path(path, durable=durable, keep_previous=keep_previous) as partial, open(partial, "wb") as file:
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

    Earlier results are removed at once, so that a run that ends early does not leave them beside its own. The first of
    the names is locked as by `hold_alone`: of two processes that write the same the second is refused.

    Args:
        folder: created if missing.
        names: files and folders that will be written, relative to it; a pattern with a star stands for all matches.
        overwrite: remove them.
        by_products: like names, but they do not stop a run.

    Raises:
        OutputExistsError: one of ``names`` exists and ``overwrite`` is off, or another process is writing them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names[:1]:
        hold_alone(folder, name)
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


def hold_alone(folder: Path, name: str) -> None:
    """Keep every other process from writing ``name`` in a folder until this one ends, however it ends.

    The lock is the kernel's (`fcntl.lockf`), not the file ``.NAME.lock``, which a kill leaves behind and nobody minds.
    Workers that are forked do not hold it. A file system that cannot lock is said in the log.

    Args:
        folder: must exist.
        name: of the first result of the run; slashes and stars become underscores.

    Raises:
        OutputExistsError: another process holds it.
    """
    path = folder.resolve() / f".{name.replace('/', '_').replace('*', '_')[:200]}.lock"
    if fcntl is None or ((held := _held.get((os.getpid(), path))) and _is_at(held, path)):
        return
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # open until the process ends
        with contextlib.suppress(PermissionError):  # whoever shares the folder may take over what a kill left
            os.fchmod(descriptor, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            holder = os.read(descriptor, 200).decode(errors="replace")
            os.close(descriptor)
            raise OutputExistsError(
                f"another run is writing {name} to {str(folder)!r} (process {holder or 'unknown'}): wait until it has "
                "ended, or give another output_dir"
            ) from error
        except OSError as error:
            os.close(descriptor)
            logger.warning("%s cannot be locked (%s): start no second run into it", folder, error)
            return
        if _is_at(descriptor, path):
            break
        os.close(descriptor)  # its last holder ended, and removed it, between the opening and the lock
    os.truncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()} on {socket.gethostname()}".encode())
    _held[os.getpid(), path] = descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether a path still is that of an open file."""
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


@atexit.register
def _remove_locks() -> None:
    for (process, path), descriptor in _held.items():
        if process == os.getpid() and _is_at(descriptor, path):
            path.unlink(missing_ok=True)


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
