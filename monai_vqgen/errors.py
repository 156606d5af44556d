"""The few errors this project raises on purpose, and what a person needs of any error, in one line.

Every message says what was given, what is expected, and what to do. Each class also derives from the built-in error
that a caller who does not know this project would catch.
"""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path

__all__ = [
    "CheckpointError",
    "CodesMismatchError",
    "DatalistError",
    "DownloadError",
    "InputError",
    "OutputExistsError",
    "ScanError",
    "StageError",
    "StreamError",
    "VQGenError",
    "in_one_line",
    "root_cause",
]


class VQGenError(Exception):
    """Base of all errors that this project raises on purpose."""


class InputError(VQGenError, ValueError):
    """An argument or an option has a value that cannot work."""


class ScanError(VQGenError, ValueError):
    """A scan cannot be used: unreadable, truncated, not a volume, constant. The message names the file."""


class DatalistError(VQGenError, ValueError):
    """A folder or a datalist does not hold what the task needs, for example no scans or only one subject."""


class DownloadError(VQGenError, OSError):
    """Public data cannot be fetched: server gone, file unknown, wrong checksum, no space. What is in place is right."""


class CodesMismatchError(VQGenError, ValueError):
    """Codes and weights do not belong together: made by another autoencoder, or of another size."""


class CheckpointError(VQGenError, ValueError):
    """A weights file is missing, damaged, or belongs to another architecture."""


class StreamError(VQGenError, ValueError):
    """A compressed stream cannot be decoded: cut off, damaged, of a newer format, of other weights or machines."""


class OutputExistsError(VQGenError, FileExistsError):
    """The output folder holds earlier results, which are never overwritten silently."""


class StageError(VQGenError, RuntimeError):
    """A stage that ran in a process of its own failed. The message names its log."""


def root_cause(error: BaseException) -> BaseException:
    """What MONAI's parser, loader or transforms have wrapped: the first error of ours, else where it all began.

    Examples:
        >>> wrapped = RuntimeError("applying transform")
        >>> wrapped.__cause__ = InputError("pixel_mm=0")
        >>> root_cause(wrapped)
        InputError('pixel_mm=0')
    """
    while not isinstance(error, VQGenError) and (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FULL_IN_TEXT = re.compile(r"(\[Errno |\(os error )(28|122)\b")  # what MONAI and safetensors make of such an error
_LONELY = re.compile(r"gloo/transport|NCCL.* remote process exited|Connection closed by peer")  # torch, of its peers
_WRAPPERS = re.compile(
    r"Failed to (evaluate|instantiate)|applying transform|Caught \w+ in DataLoader worker|SaveImage cannot find"
)
"""How the errors begin that MONAI and torch put around the one that tells what happened."""


def in_one_line(error: BaseException, folder: str | Path = ".") -> str:
    """The kind of any error and what it says, without MONAI's wrapping and without line breaks.

    Args:
        error: any.
        folder: where the program writes, to tell which disk is full.

    Examples:
        >>> wrapped = RuntimeError("Failed to evaluate ConfigExpression")
        >>> wrapped.__cause__ = TypeError("unsupported\\noperand")
        >>> in_one_line(wrapped), in_one_line(KeyboardInterrupt())
        ('TypeError: unsupported operand', 'Interrupted')
    """
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    if any(isinstance(each, KeyboardInterrupt) for each in chain):
        return "Interrupted"
    if full := next((each for each in chain if getattr(each, "errno", None) in _FULL), None) or next(
        (each for each in chain if _FULL_IN_TEXT.search(str(each))), None
    ):
        path = Path(getattr(full, "filename", None) or folder).absolute()
        place = next(known for known in (path, *path.parents) if known.exists())
        left_mb = shutil.disk_usage(place).free / 1e6
        return f"OSError: the disk of {place} is full ({left_mb:.1f} MB left): make room"
    own = root_cause(error)
    if isinstance(own, RuntimeError) and not isinstance(own, VQGenError) and _LONELY.search(str(own)):
        return "StageError: this process stops because another one has ended; look at that one's error"
    if not isinstance(own, VQGenError):
        own = next((each for each in chain if not _WRAPPERS.match(str(each))), own)
    lines = [line.strip() for line in str(own).splitlines() if line.strip()]
    if lines and _WRAPPERS.match(lines[0]):  # the traceback of a loader's worker, as text
        return re.sub(r"^[\w.]*\.(\w+: )", r"\1", lines[-1])
    return f"{type(own).__name__}: {' '.join(lines)}".removesuffix(": ")
