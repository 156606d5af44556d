"""Seeded fuzz: a changed file loads with the values it had, or one of our errors names it, in little memory."""

from __future__ import annotations

import gzip
import json
import resource
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from monai_vqgen.data import CodeStore, read_volume, save_codes
from monai_vqgen.errors import VQGenError
from monai_vqgen.transforms import LoadSlice

CHANGES = 150
MEMORY = 2**30  # bytes that one file may take
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")  # Pillow and nibabel warn of what they mend


@pytest.fixture
def little_memory():
    """No more address space than there is now, and a GiB."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def changed(content: bytes, random: np.random.Generator, head: int) -> bytes:
    """Bits turned, bytes written over, cut out, doubled or appended; half of the time within the head."""
    data = bytearray(content)
    for _ in range(random.integers(1, 4)):
        place = int(random.integers(0, min(head, len(data)) if random.random() < 0.5 else len(data)))
        kind = random.integers(0, 5)
        if kind == 0:
            data[place] ^= 1 << int(random.integers(0, 8))
        elif kind == 1:
            data[place : place + 4] = random.integers(0, 256, 4, dtype=np.uint8).tobytes()
        elif kind == 2:
            data[place : place + 4] = random.choice([b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xff\xff\xff\xff"])
        elif kind == 3:
            del data[place : place + int(random.integers(1, 50))]
        else:
            data[place:place] = data[place : place + int(random.integers(1, 50))]
    return bytes(data)


RANDOM = np.random.default_rng(0)
GRAY = RANDOM.integers(0, 255, (24, 20), dtype=np.uint8)
VOXELS = RANDOM.integers(0, 900, (9, 8, 7)).astype(np.int16)


def write_pictures(folder: Path, suffix: str) -> Path:
    Image.fromarray(GRAY).save(folder / f"a{suffix}")
    return folder / f"a{suffix}"


def write_nifti(folder: Path, values: np.ndarray) -> Path:
    image = nib.Nifti1Image(values, np.diag([2.0, 2, 2, 1]))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", json.dumps({"subject": "a"}).encode()))
    nib.save(image, folder / "a.nii")
    return folder / "a.nii"


def names(error: VQGenError, path: Path) -> bool:
    if path.name not in str(error) and str(path.parent) not in str(error):
        pytest.fail(f"{path} is not named: {error}")
    return True


def check(path: Path, load, same, *, head: int, packed: bool = False) -> None:
    content, refused = path.read_bytes(), 0
    for seed in range(CHANGES):
        other = changed(content, np.random.default_rng(seed), head)
        path.write_bytes(gzip.compress(other, 1) if packed else other)
        try:
            loaded = load(path)
        except VQGenError as error:
            refused += names(error, path)
        else:
            assert same(loaded), f"seed {seed}"
    assert refused > CHANGES / 4


@pytest.mark.parametrize("suffix", [".png"])
def test_pngs(tmp_path, little_memory, suffix):
    check(
        write_pictures(tmp_path, suffix),
        LoadSlice(),
        lambda image: np.array_equal(image[0].numpy(), (GRAY / 255).astype(np.float32)),
        head=60,
    )


@pytest.mark.parametrize("suffix", [".jpg", ".bmp", ".tif"])
def test_pictures_without_a_checksum_load_in_range_or_are_refused(tmp_path, little_memory, suffix):
    path = write_pictures(tmp_path, suffix)
    content = path.read_bytes()
    for seed in range(CHANGES // 3):
        path.write_bytes(changed(content, np.random.default_rng(seed), 60))
        try:
            image = LoadSlice()(path)
        except VQGenError as error:
            names(error, path)
        else:
            assert 0 <= float(image.min()) <= float(image.max()) <= 1


@pytest.mark.parametrize("packed", [True, False])
def test_niftis_without_a_checksum_load_finite_or_are_refused(tmp_path, little_memory, packed):
    def finite(loaded):
        return bool(np.isfinite(loaded.voxels_s).all()) and bool(np.isfinite(loaded.affine).all())

    check(write_nifti(tmp_path, VOXELS), read_volume, finite, head=360, packed=packed)
    slices = write_nifti(tmp_path, (GRAY[..., None] / 255).astype(np.float32))
    check(
        slices, LoadSlice(), lambda image: 0 <= float(image.min()) <= float(image.max()) <= 1, head=360, packed=packed
    )


def test_packed_niftis_load_equal_or_are_refused(tmp_path, little_memory):
    path = write_nifti(tmp_path, VOXELS)
    path.write_bytes(gzip.compress(path.read_bytes()))
    check(path, read_volume, lambda volume: np.array_equal(volume.voxels_s, VOXELS), head=20)


@pytest.mark.parametrize("name", ["codes.safetensors", "codes.json"])
def test_code_stores_load_equal_or_are_refused(tmp_path, little_memory, name):
    codes = torch.arange(24).view(4, 2, 3) % 7
    save_codes(tmp_path, {"training": [codes]}, {"training": [{}] * 4}, codebook_sizes=(7,), fingerprint="abc")
    check(
        tmp_path / name,
        lambda path: CodeStore(path.parent),
        lambda s: torch.equal(s.codes("training", 0), codes),
        head=90,
    )
