"""A wrong file is found wrong, a right one right, by whatever the server tells."""

from __future__ import annotations

import gzip
import hashlib

import pytest

from monai_vqgen.data.checksums import MIB, find_fault, multipart_etag


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(bytes(range(256)) * 20))
    return path


def _flip(path, index):
    content = bytearray(path.read_bytes())
    content[index] ^= 1
    path.write_bytes(content)


def test_an_md5_etag_tells_one_flipped_bit(scan):
    etag = hashlib.md5(scan.read_bytes()).hexdigest()
    assert find_fault(scan, scan.stat().st_size, etag=etag) is None
    _flip(scan, -20)
    assert "md5" in find_fault(scan, scan.stat().st_size, etag=etag)


def test_a_given_sha256_is_what_counts(scan):
    size, content = scan.stat().st_size, scan.read_bytes()
    right = hashlib.sha256(content).hexdigest()
    assert find_fault(scan, size, etag="0" * 32, sha256=right.upper()) is None
    assert "sha256" in find_fault(scan, size, etag=hashlib.md5(content).hexdigest(), sha256="0" * 64)


def test_the_size_always_counts(scan):
    size = scan.stat().st_size
    assert find_fault(scan, size, etag="unknown") is None
    assert "bytes" in find_fault(scan, size + 1, etag="unknown")


@pytest.mark.parametrize("part_mib", [5, 8])
def test_an_etag_of_parts_is_told_from_a_flipped_bit(tmp_path, part_mib):
    path = tmp_path / "scan.nii"
    content = bytes(9 * MIB) + b"end"
    path.write_bytes(content)
    first, second = content[: part_mib * MIB], content[part_mib * MIB :]
    parts = hashlib.md5(hashlib.md5(first).digest() + hashlib.md5(second).digest()).hexdigest()
    assert multipart_etag(path, part_mib * MIB) == f"{parts}-2"
    path = path.rename(tmp_path / "scan.nii.gz")  # no gzip: only the parts' digests can say that it is right
    assert find_fault(path, len(content), etag=f"{parts}-2") is None
    _flip(path, 100)
    assert find_fault(path, len(content), etag=f"{parts}-2") is not None


@pytest.mark.parametrize("etag", ["0" * 32 + "-2", "another-servers-kind"])
def test_where_the_etag_proves_nothing_the_crc_of_gzip_does(scan, etag):
    size = scan.stat().st_size
    assert find_fault(scan, size, etag=etag) is None
    _flip(scan, -6)  # in the CRC
    assert "gzip" in find_fault(scan, size, etag=etag)
    scan.write_bytes(b"x" * size)
    assert "gzip" in find_fault(scan, size, etag=etag)
