"""Seeded fuzz: a changed file loads with the values it had, or one of our errors names it, in little memory."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from factories import POSITIONS, tiny_model
from PIL import Image

from monai_vqgen.data import CodeStore, read_volume, save_codes
from monai_vqgen.errors import InputError, VQGenError
from monai_vqgen.transforms import FitToSize, LoadSlice

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


NO_NUMBERS = ["abc", np.array(["a", "b"]), ["a"], [[1, 2], [3]], None, {}, b"a", np.zeros((1, 1, 16, 16), complex)]
KINDS = ["text", "array of text", "list of text", "ragged", "None", "dict", "bytes", "complex"]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=KINDS)
def test_what_is_no_image_no_code_and_no_number_is_one_error_of_ours(value):
    model = tiny_model()
    image, codes = torch.zeros(1, 1, 16, 16), model.sample(1).codes
    calls = [
        lambda: model.encode(value),
        lambda: model.decode(value),
        lambda: model.decode([codes[0], value]),
        lambda: model.log_prob(value),
        lambda: model.complete(value, image > -1),
        lambda: model.complete(image, value),
        lambda: model.compress(value),
        lambda: model.sample(value),
        lambda: model.sample(1, first_sample=value),
        lambda: FitToSize(8)(value),
    ]
    if not isinstance(value, str):  # the name of a file, and a stream
        calls.append(lambda: model.reconstruct(value))
    if not isinstance(value, bytes):
        calls.append(lambda: model.decompress(value))
    taken = {}
    for number, call in enumerate(calls):
        with contextlib.suppress(VQGenError):
            taken[number] = call()
    assert taken == {}


@pytest.mark.parametrize("values", [np.zeros((1, 16, 16), complex), np.full((1, 16, 16), "a")], ids=["complex", "text"])
def test_an_array_of_no_real_numbers_is_no_image(values):
    with pytest.raises(InputError, match="give an array of real numbers"):
        FitToSize(8)(values)


def test_numbers_in_text_are_numbers_wherever_a_sample_is_used(tmp_path):
    model = tiny_model(condition=POSITIONS, record={"plane": "axial", "pixel_mm": 2.0})
    text, number = model.sample(1, position_mm="65", seed=3), model.sample(1, position_mm=65.0, seed=3)
    assert text.conditions == number.conditions == [{"position_mm": 65.0}]
    assert torch.equal(text.images, number.images)
    assert torch.equal(text.affine, number.affine)
    unknown = model.sample(1, conditions=[{"position_mm": "n/a"}])
    assert unknown.conditions == [{"position_mm": None}]


READERS = {
    "scan.nii": "read_volume(path)",
    "scan.nii.gz": "LoadScand()({'image': path})",
    "slice.png": "LoadSlice()(path)",
    "datalist.json": "load_datalist(path.parent, 'training')",
    "split.json": "read_split(path, ['a'])",
    "participants.tsv": "read_participants(path)",
    "codes.json": "CodeStore(path.parent)",
    "model.pt": "load_autoencoder(path)",
    "model.zip": "TrainedModel.from_bundle(path)",
    "a.vqg": "decompress_files([path], path.parent / 'out')",
}


def test_a_pipe_and_a_device_in_the_place_of_a_file_are_refused_and_not_waited_for(tmp_path):
    code = [
        "import sys",
        "from pathlib import Path",
        "from monai_vqgen import TrainedModel",
        "from monai_vqgen.data import CodeStore, load_datalist, read_volume",
        "from monai_vqgen.data.slices.participants import read_participants",
        "from monai_vqgen.data.slices.splits import read_split",
        "from monai_vqgen.errors import VQGenError",
        "from monai_vqgen.models.loading import load_autoencoder",
        "from monai_vqgen.models.scans import LoadScand",
        "from monai_vqgen.models.stream_files import decompress_files",
        "from monai_vqgen.transforms import LoadSlice",
    ]
    for kind in ("pipe", "device"):
        for number, (name, call) in enumerate(READERS.items()):
            path = tmp_path / kind / str(number) / name
            path.parent.mkdir(parents=True)
            os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
            code += [f"path = Path({str(path)!r})", "try:", f"    print(path, {call})"]
            code += ["except VQGenError:", f"    print({kind!r}, {name!r}, 'refused')"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code)], capture_output=True, text=True, timeout=120, env=environment
    )
    said = done.stdout.splitlines()
    expected = [f"{kind} {name} refused" for kind in ("pipe", "device") for name in READERS]
    assert [line for line in said if "participants" not in line] == [e for e in expected if "participants" not in e]
    assert sum("participants.tsv {}" in line for line in said) == 2  # no table beside the scans
    assert not done.stderr
