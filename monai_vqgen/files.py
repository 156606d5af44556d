"""Files that are complete or absent, and folders whose earlier results stay until the new ones are complete.

.<host>-<process>-<count>.partial.NAME    a file or a folder of results that is being written
.<host>-<process>-<count>.ready.NAME      a complete folder of results that is taking the place of the earlier ones
.NAME.earlier                             the results of an earlier training, until the one that replaces them has ended
.NAME.lock                                held by the process that writes NAME

What a kill leaves of these the next claim of the folder completes or removes.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from monai_vqgen.errors import InputError, OutputExistsError

try:
    import fcntl
except ImportError:  # not POSIX: nothing is locked
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "claim_folder",
    "claim_place",
    "claim_run",
    "clean",
    "forget_earlier",
    "hold_alone",
    "keep_earlier",
    "make_writable",
    "place_of",
    "previous_path",
    "publish",
    "read_json",
    "replace_file",
    "replace_path",
    "write_bytes",
    "write_json",
]

logger = logging.getLogger(__name__)

_held: dict[tuple[int, Path], int] = {}  # by process, because a fork does not inherit locks
_unpublished: dict[Path, list[str]] = {}  # folders being written, and the names of what each replaces
_set_aside: dict[Path, tuple[list[str], list[str]]] = {}  # earlier results: what replaces them, and its by-products
_COUNT = itertools.count()
_TOLD = 5  # results of an earlier run that an error names
_TEMPORARY = re.compile(r"\.([0-9a-f]{8})-([0-9]+)(?:-[0-9]+)?\.(partial|ready)\.(.+)", re.DOTALL)
_SWAP = ".swap.json"  # in a ready folder: what goes, and what comes last
_MOST_JSON, _ENTRY = 2**31, 100  # bytes that a JSON file may take in memory; one entry of its lists, about
_SEAL, _SEALED = "seal", re.compile("sha256:[0-9a-f]{64}")


def _host() -> str:
    """Of processes that see one another: containers may have one name, and processes of one number."""
    told = socket.gethostname()
    with contextlib.suppress(OSError):  # Linux only
        told += f" {os.stat('/proc/self/ns/pid').st_ino}"
    return hashlib.sha256(told.encode()).hexdigest()[:8]


_HOST = _host()


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
    partial = _beside(path)
    try:
        yield partial
        if durable:
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
        if keep_previous and path.is_file():
            os.replace(path, previous_path(path))
        os.replace(partial, path)
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = os.fspath(path)  # a write does not tell which disk is full
        raise
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


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any], *, sealed: bool = False) -> None:
    """Write ``content`` as indented JSON, complete or not at all; NaN is refused because JSON has none.

    Args:
        path: the final name.
        content: what `read_json` gives back.
        sealed: add a checksum of the content, which `read_json` compares.
    """
    content = {**content, _SEAL: _seal(content)} if sealed else content
    write_bytes(path, json.dumps(content, indent=4, allow_nan=False).encode() + b"\n")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read an object that `write_json` wrote, without its seal; one that never had a seal is taken as it is.

    Raises:
        ValueError: no JSON object, or not the one that was sealed.
    """
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):
        raise ValueError("it is no file, but a folder, pipe or device")
    size = state.st_size
    written = Path(path).read_bytes() if size <= _MOST_JSON else b""
    entries = sum(map(written.count, (b",", b"[", b"{")))
    if max(size, len(written)) + _ENTRY * entries > _MOST_JSON:
        raise ValueError(f"it would take more than {_MOST_JSON >> 30} GiB of memory")
    try:
        content = json.loads(written.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it is not a dictionary")
    # a bit that turned may have hit the seal's own name, and then its value still looks like one
    near = [key for key in content if len(key) == len(_SEAL) and sum(map(str.__ne__, key, _SEAL)) <= 1]
    seals = [key for key in near if key == _SEAL or _SEALED.fullmatch(str(content[key]))]
    given = [content.pop(key) for key in seals]
    if given and given != [_seal(content)]:
        raise ValueError(f"its checksum is wrong; whoever changed it on purpose removes its line {_SEAL!r}")
    return content


def _seal(content: Mapping[str, Any]) -> str:
    told = json.dumps(json.loads(json.dumps(content)), sort_keys=True)
    return f"sha256:{hashlib.sha256(told.encode()).hexdigest()}"


def claim_folder(
    folder: str | os.PathLike[str],
    names: Sequence[str],
    *,
    overwrite: bool,
    by_products: Sequence[str] = (),
    set_aside: bool = False,
) -> Path:
    """Make a folder, and refuse or replace the earlier results in it. An empty subfolder is no result.

    The first of the names is locked as by `hold_alone`: of two processes that write the same the second is refused.

    Args:
        folder: created if missing.
        names: files and folders that will be written, relative to it; a pattern with a star stands for all matches.
        overwrite: replace them.
        by_products: like names, but they do not stop a run.
        set_aside: move earlier results to a hidden folder until `forget_earlier`, and let the run write to their place:
            for runs that are resumed, and looked at while they run. They come back where the run leaves no result.

    Returns:
        Where to write: a hidden folder beside the earlier results, which stay until `publish`; the folder itself where
        there are none, or where they were set aside.

    Raises:
        InputError: the folder cannot be made or written to.
        OutputExistsError: one of ``names`` exists and ``overwrite`` is off, or another process is writing them.
    """
    folder = Path(folder)
    make_writable(folder)
    key = _key(names[0])
    clean(folder, [*names, *by_products], locked=hold_alone(folder, names[0]))
    kept, every = folder / f".{key}.earlier", [*names, *by_products]
    if kept.exists() and not _results(folder, names):
        _restore(kept, every)
    earlier = _results(folder, names)
    if earlier and not overwrite:
        more = f" and {len(earlier) - _TOLD} more" if len(earlier) > _TOLD else ""
        raise OutputExistsError(
            f"{str(folder)!r} already holds {', '.join(earlier[:_TOLD])}{more}; give another output_dir, or "
            "overwrite=True (--overwrite True) to replace earlier results"
        )
    replaced = _results(folder, every) if overwrite else []
    if not set_aside:
        return claim_place(folder, every) if replaced else folder
    if kept.exists() and not (folder / names[0]).exists():  # what lies in the folder is of a run without weights
        _remove(folder, replaced)
    elif replaced:
        logger.info("Earlier results in %s are kept until this run has ended", folder)
        _move(folder, aside := kept.with_suffix(".aside"), replaced)
        shutil.rmtree(kept, ignore_errors=True)  # older than those
        os.replace(aside, kept)
    keep_earlier(folder, names, by_products)
    return folder


def make_writable(folder: Path) -> None:
    """Make a folder where it is missing.

    Raises:
        InputError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"output_dir={str(folder)!r} cannot be made: {error}. Give another folder") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"output_dir={str(folder)!r} is not writable. Give another folder")


def claim_place(folder: Path, names: Sequence[str]) -> Path:
    """A new hidden folder for what `publish` then puts in place of the ``names`` in a folder, all at once."""
    place = _beside(folder / _key(names[0]))
    place.mkdir(parents=True)
    _unpublished[place] = list(names)
    return place


def place_of(folder: Path, name: str) -> Path:
    """Where this process writes a result of a folder: to a place that it has claimed, or to the folder itself."""
    claimed = [place for place, names in _unpublished.items() if place.parent == folder and name in names]
    return claimed[-1] if claimed else folder


def publish(place: Path) -> Path:
    """Let what a run has written to the place that `claim_folder` gave replace the earlier results.

    From one rename on the new results count: a kill after it leaves a folder without the first of the names, which the
    next claim completes. One that wrote nothing replaces nothing.

    Returns:
        The folder that was claimed.
    """
    names = _unpublished.pop(place, None)
    if names is None:
        return place
    folder, new = place.parent, _files(place, ["*"])
    if not new:
        shutil.rmtree(place)
        return folder
    for name in new:
        with open(place / name, "rb+") as file:
            os.fsync(file.fileno())
    gone, last = sorted({*_files(folder, names)} - {*new}), names[0] if names[0] in new else new[-1]
    write_json(place / _SWAP, {"gone": [last, *gone], "last": last})
    ready = _beside(folder / _key(names[0]), "ready")
    os.replace(place, ready)
    _swap(folder, ready)
    return folder


def _swap(folder: Path, ready: Path) -> None:
    """Replace earlier results by those of a ready folder; done twice, or from halfway, it ends alike."""
    try:
        told: dict[str, Any] = read_json(ready / _SWAP) if (ready / _SWAP).exists() else {"gone": [], "last": ""}
        if not all(_stays_inside(name) for name in (*told["gone"], told["last"] or "none")):
            raise ValueError("a name in it leads out of the folder")
    except (ValueError, KeyError, TypeError) as error:
        raise OutputExistsError(
            f"{ready} holds complete results, and its {_SWAP} is damaged ({error}): move them to their places, or "
            "remove it"
        ) from error
    unfinished = (ready / told["last"]).is_file()
    _remove(folder, told["gone"] if unfinished else [])
    for name in sorted(_files(ready, ["*"]) if unfinished else [], key=lambda name: name == told["last"]):
        _put(ready / name, folder / name)
    shutil.rmtree(ready)


def _stays_inside(name: str) -> bool:
    parts = Path(name).parts
    return bool(parts) and ".." not in parts and not Path(name).is_absolute()


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder itself: one that a link leads to is not ours."""
    return path.is_dir() and not path.is_symlink()


def _put(source: Path, target: Path) -> None:
    """Move a file or a link, also where a subfolder is a link to another disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with replace_path(target, durable=not source.is_symlink()) as partial:
            shutil.copyfile(source, partial, follow_symlinks=False)
        source.unlink()


def keep_earlier(folder: Path, names: Sequence[str], by_products: Sequence[str] = ()) -> None:
    """Take over the results that this or an earlier claim has set aside, where there are any."""
    kept = folder / f".{_key(names[0])}.earlier"
    if kept.exists():
        _set_aside[kept] = [*names], [*by_products]


def forget_earlier(folder: Path) -> None:
    """Remove the results that were set aside in a folder: the run that replaces them has ended well."""
    for kept in [kept for kept in _set_aside if kept.parent == folder]:
        del _set_aside[kept]
        shutil.rmtree(kept)


def _restore(kept: Path, replaced_by: Sequence[str] = ()) -> None:
    """Move results that were set aside back to their places, and remove what a run without a result has left there."""
    _remove(kept.parent, _results(kept.parent, replaced_by))
    for name in _files(kept, ["*"]):
        _put(kept / name, kept.parent / name)
    shutil.rmtree(kept)
    _set_aside.pop(kept, None)
    logger.info("Brought the earlier results back to %s", kept.parent)


def _move(folder: Path, target: Path, names: Sequence[str]) -> None:
    for name in _files(folder, names):
        _put(folder / name, target / name)
    _remove(folder, names)


def _remove(folder: Path, names: Sequence[str]) -> None:
    """Remove files, folders and links (not what they point to), and the folders that are empty then."""
    known = set(names)
    for name in names:
        above = [folder / parent for parent in Path(name).parents if parent.as_posix() in known]
        path = next((link for link in above if link.is_symlink()), folder / name)  # what it points to is not ours
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        for parent in Path(name).parents[:-1]:
            with contextlib.suppress(OSError):
                (folder / parent).rmdir()


def clean(folder: Path, names: Sequence[str], *, locked: bool = False) -> None:
    """Complete or remove what dead processes of this machine have left in a folder.

    Args:
        folder: and the folders of the names in it.
        names: of results, relative to the folder.
        locked: the lock of the first name is held, so what has that name is left by a dead process of any machine; or
            it is a place that this process has claimed, which stays.
    """
    key, mine = _key(names[0]), {place.resolve() for place in _unpublished}
    for kept in (folder / f".{key}.aside", folder / f".{key}.earlier"):
        if os.path.lexists(kept) and not _is_folder(kept):  # nothing that a run has left
            kept.unlink(missing_ok=True)
    if (aside := folder / f".{key}.aside").exists():
        _restore(aside)
    places = [folder, *(folder / name for name in names if "*" not in name), *((folder / n).parent for n in names)]
    for path in [path for home in {*places} if home.is_dir() for path in home.iterdir()]:
        if not (match := _TEMPORARY.fullmatch(path.name)) or path.resolve() in mine:
            continue
        host, process, kind, name = match.groups()
        if not (locked and _is_folder(path) and name == key) and (host != _HOST or _lives(int(process))):
            continue
        if kind == "ready" and _is_folder(path):
            _swap(path.parent, path)
        elif _is_folder(path):
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


def _beside(path: Path, kind: str = "partial") -> Path:
    return path.with_name(f".{_HOST}-{os.getpid()}-{next(_COUNT)}.{kind}.{path.name}")


def _key(name: str) -> str:
    return name.replace("/", "_").replace("*", "_")[:200]


def hold_alone(folder: Path, name: str) -> bool:
    """Keep every other process from writing ``name`` in a folder until this one ends, however it ends.

    The lock is the kernel's (`fcntl.lockf`), not the file ``.NAME.lock``, which a kill leaves behind and nobody minds.
    Workers that are forked do not hold it. A file system that cannot lock is said in the log.

    Args:
        folder: must exist.
        name: of the first result of the run; slashes and stars become underscores.

    Returns:
        Whether it is held: not where nothing can be locked.

    Raises:
        OutputExistsError: another process holds it.
    """
    path = folder.resolve() / f".{_key(name)}.lock"
    if fcntl is None:
        return False
    if (held := _held.get((os.getpid(), path))) and _is_at(held, path):
        return True
    while True:
        mode = stat.S_IFREG
        with contextlib.suppress(FileNotFoundError):  # also where its process ends now and takes it along
            mode = os.lstat(path).st_mode
        if not stat.S_ISREG(mode):
            raise OutputExistsError(f"{path} is no lock, but a link, folder, pipe or device: remove it")
        try:
            # open until the process ends; what a link leads to would be emptied
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except PermissionError as error:
            raise OutputExistsError(
                f"{path} is the lock of another user's run of {name}: wait until that has ended, remove the file if "
                "the run was killed, or give another output_dir"
            ) from error
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
            return False
        if _is_at(descriptor, path):
            break
        os.close(descriptor)  # its last holder ended, and removed it, between the opening and the lock
    os.truncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()} on {socket.gethostname()}".encode())
    _held[os.getpid(), path] = descriptor
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether a path still is that of an open file."""
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


@atexit.register
def _leave() -> None:
    """Take away what this process would leave behind, and bring back what it has replaced by nothing."""
    for place in [place for place in _unpublished if place.name.startswith(f".{_HOST}-{os.getpid()}-")]:
        shutil.rmtree(place, ignore_errors=True)
    for kept, (names, by_products) in list(_set_aside.items()):
        mine = (os.getpid(), kept.parent.resolve() / f".{_key(names[0])}.lock") in _held
        if mine and not _results(kept.parent, names):
            _restore(kept, [*names, *by_products])
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
        try:
            before = read_json(folder / marker)
        except ValueError as error:
            raise OutputExistsError(
                f"{folder / marker} does not say which run the folder holds ({error}): give another output folder"
            ) from error
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
        for path in dict.fromkeys(found)
        if os.path.lexists(path) and not (path.is_dir() and not path.is_symlink() and not any(path.iterdir()))
    ]


def _files(folder: Path, names: Sequence[str]) -> list[str]:
    """The files and links of the results of these names, relative to the folder; nothing temporary."""
    found = [folder / name for name in _results(folder, names)]
    below = [path.rglob("*") if path.is_dir() and not path.is_symlink() else [path] for path in found]
    files = [path for paths in below for path in paths if path.is_symlink() or not path.is_dir()]
    names = [path.relative_to(folder).as_posix() for path in files if not _TEMPORARY.fullmatch(path.name)]
    return sorted({name for name in names if name != _SWAP})
