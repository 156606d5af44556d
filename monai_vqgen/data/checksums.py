"""Whether a file is what its server says it is."""

from __future__ import annotations

import gzip
import hashlib
import math
import re
import zlib
from pathlib import Path
from typing import BinaryIO

__all__ = ["find_fault", "multipart_etag"]

MD5_ETAG = re.compile(r"[0-9a-f]{32}")
MULTIPART_ETAG = re.compile(r"[0-9a-f]{32}-([1-9][0-9]{0,4})")  # S3: the MD5 of the parts' MD5s, and how many parts
CHUNK = 1 << 20  # bytes
MIB = 1 << 20  # bytes
# In MiB, what upload tools cut by: S3's least 5, AWS' 8, s3cmd's 15, MinIO's 16 and 64, OpenNeuro's (git-annex) 1024.
PART_SIZES_MIB = (5, 8, 10, 15, 16, 25, 32, 50, 64, 100, 128, 256, 512, 1024)


def _digest(file: BinaryIO, algorithm: str, length: float = math.inf) -> bytes:
    """The digest of the next ``length`` bytes."""
    state = hashlib.new(algorithm, usedforsecurity=False)
    while length > 0 and (chunk := file.read(int(min(CHUNK, length)))):
        state.update(chunk)
        length -= len(chunk)
    return state.digest()


def multipart_etag(path: Path, part_size: int) -> str:
    """The ETag that S3 gives a file uploaded in parts of so many bytes: MD5 of the parts' MD5s, dash, their number."""
    parts = max(1, math.ceil(path.stat().st_size / part_size))
    with path.open("rb") as file:
        digests = b"".join(_digest(file, "md5", part_size) for _ in range(parts))
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{parts}"


def _gzip_fault(path: Path) -> str | None:
    try:
        with gzip.open(path) as file:
            while file.read(CHUNK):
                pass
    except (OSError, EOFError, zlib.error) as error:
        return f"is no intact gzip file ({error})"
    return None


def find_fault(path: Path, size: int, *, etag: str, sha256: str | None = None) -> str | None:
    """What is wrong with the file, in words, or None where it is what was promised.

    Checked are the size, always, and the first of these that can be:

    1. the SHA-256, where one is given;
    2. the MD5, where the ETag is one (S3: every object uploaded in one piece);
    3. the MD5 of the parts' MD5s, where the ETag is of that kind and one of the usual part sizes gives it;
    4. the CRC-32 inside the file, where its name ends in .gz. An ETag of parts of unknown size is no proof of a fault.

    Args:
        path: the file.
        size: in bytes.
        etag: the server's ETag without quotes.
        sha256: 64 hexadecimal digits.

    Example:
        >>> _ = Path("hello.txt").write_bytes(b"hello")
        >>> find_fault(Path("hello.txt"), 5, etag="5d41402abc4b2a76b9719d911017c592") is None
        True
        >>> find_fault(Path("hello.txt"), 7, etag="5d41402abc4b2a76b9719d911017c592")
        'has 5 bytes where 7 are due'
    """
    found = path.stat().st_size
    if found != size:
        return f"has {found} bytes where {size} are due"
    if sha256 is not None:
        return _digest_fault(path, "sha256", sha256.lower())
    if MD5_ETAG.fullmatch(etag):
        return _digest_fault(path, "md5", etag)
    if match := MULTIPART_ETAG.fullmatch(etag):
        part_sizes = [mib * MIB for mib in PART_SIZES_MIB]
        fitting = [part for part in part_sizes if max(1, math.ceil(size / part)) == int(match.group(1))]
        if any(multipart_etag(path, part) == etag for part in fitting):
            return None
    return _gzip_fault(path) if path.name.endswith(".gz") else None


def _digest_fault(path: Path, algorithm: str, due: str) -> str | None:
    with path.open("rb") as file:
        found = _digest(file, algorithm).hex()
    return None if found == due else f"has the {algorithm} {found} where {due} is due"
