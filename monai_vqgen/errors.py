"""The few errors this project raises on purpose.

Every message names what was given, what is allowed, and how to mend it. Each class also derives from the built-in
error that a caller who does not know this project would catch.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "CodesMismatchError",
    "DatalistError",
    "DownloadError",
    "InputError",
    "OutputExistsError",
    "ScanError",
    "StageError",
    "VQGenError",
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
