"""The code store gives back what was put in, says whose it is, and notices damage."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from monai_vqgen.data.codes.store import CodesDataset, CodeStore, save_codes
from monai_vqgen.errors import CodesMismatchError, InputError
from monai_vqgen.files import read_json, write_json
from monai_vqgen.networks import GatedPixelCNN, HierarchicalVQVAE

SIZES = (12, 40000)


def write(folder, count=5):
    generator = torch.Generator().manual_seed(0)
    grids, records = {}, {}
    for split, number in {"training": count, "validation": 2}.items():
        coarse = torch.randint(0, SIZES[0], (number, 2, 3), generator=generator)
        fine = torch.randint(0, SIZES[1], (number, 4, 6), generator=generator)
        grids[split] = [coarse, fine]
        records[split] = [{"subject": f"sub-{i}", "position_mm": float(i)} for i in range(number)]
    grids["training"][1][0, 0, 0] = SIZES[1] - 1
    save_codes(folder, grids, records, codebook_sizes=SIZES, fingerprint="abc", image_size=(16, 24))
    return grids, records


def test_codes_and_records_come_back_as_they_were(tmp_path):
    grids, records = write(tmp_path)
    store = CodeStore(tmp_path)
    assert (store.fingerprint, store.codebook_sizes, store.image_size) == ("abc", SIZES, (16, 24))
    assert store.grids == ((2, 3), (4, 6))
    for split in ("training", "validation"):
        assert store.records(split) == records[split]
        for level in (0, 1):
            assert torch.equal(store.codes(split, level), grids[split][level])
    assert [torch.equal(a, b[3]) for a, b in zip(store.read("training", 3), grids["training"], strict=True)] == [
        True
    ] * 2


def test_codebooks_come_back_and_may_be_absent(tmp_path):
    grids, records = write(tmp_path)
    assert CodeStore(tmp_path).codebook(0) is None
    books = [torch.randn(size, 4) for size in SIZES]
    options = {"codebook_sizes": SIZES, "fingerprint": "abc"}
    save_codes(tmp_path, grids, records, codebooks_kd=books, **options)
    assert all(torch.equal(CodeStore(tmp_path).codebook(level), book) for level, book in enumerate(books))
    with pytest.raises(CodesMismatchError, match="codebooks of"):
        save_codes(tmp_path, grids, records, codebooks_kd=books[:1], **options)


def test_the_checksum_is_that_of_the_file_without_what_python_3_11_brought(tmp_path, monkeypatch):
    monkeypatch.delattr("hashlib.file_digest", raising=False)
    write(tmp_path)
    assert CodeStore(tmp_path).splits == ("training", "validation")


@pytest.mark.parametrize("damage", ["bit", "truncated", "missing", "json", "field"])
def test_damage_is_noticed_when_the_store_is_opened(tmp_path, damage):
    write(tmp_path)
    tensors, description = tmp_path / "codes.safetensors", tmp_path / "codes.json"
    content = bytearray(tensors.read_bytes())
    if damage == "bit":
        content[-3] ^= 1
        tensors.write_bytes(content)
    elif damage == "truncated":
        tensors.write_bytes(content[:-10])
    elif damage == "missing":
        tensors.unlink()
    elif damage == "json":
        description.write_text(description.read_text()[:-30])
    else:
        fields = read_json(description)
        del fields["grids"]
        write_json(description, fields, sealed=True)
    with pytest.raises(InputError, match=r"damaged.*run extract_codes"):
        CodeStore(tmp_path)


def test_what_does_not_exist_is_named(tmp_path):
    with pytest.raises(InputError, match=r"run extract_codes\.json first"):
        CodeStore(tmp_path)
    write(tmp_path)
    store = CodeStore(tmp_path)
    for level in (2, -1, True, "0"):
        with pytest.raises(InputError, match=r"levels 0 \(coarsest\) to 1"):
            store.codes("training", level)
    with pytest.raises(InputError, match="training, validation"):
        CodesDataset(store, "test")


def test_codes_of_another_autoencoder_or_size_are_refused(tmp_path):
    write(tmp_path)
    store = CodeStore(tmp_path)
    store.check_fingerprint("abc")
    store.check_fingerprint(None)
    with pytest.raises(CodesMismatchError, match="not by def"):
        store.check_fingerprint("def")
    small = {"channels": 4, "num_layers": 1, "attention_every": 0}
    store.check_prior(GatedPixelCNN(12, **small), 0)
    with pytest.raises(CodesMismatchError, match="num_codes=12"):
        store.check_prior(GatedPixelCNN(13, **small), 0)
    with pytest.raises(CodesMismatchError, match="coarser_codes"):
        store.check_prior(GatedPixelCNN(12, coarser_codes=[4], **small), 0)


def test_codes_that_do_not_fit_one_another_are_not_written(tmp_path):
    codes = torch.zeros(2, 2, 2, dtype=torch.int64)
    with pytest.raises(CodesMismatchError, match="outside"):
        save_codes(tmp_path, {"training": [codes + 4]}, {"training": [{}, {}]}, codebook_sizes=(4,), fingerprint="")
    with pytest.raises(CodesMismatchError, match="records"):
        save_codes(tmp_path, {"training": [codes]}, {"training": [{}]}, codebook_sizes=(4,), fingerprint="")
    rows = {"training": [{}, {}]}
    for size in ((3, 1), (8, 8, 8)):
        with pytest.raises(CodesMismatchError, match="image_size"):
            save_codes(tmp_path, {"training": [codes]}, rows, codebook_sizes=(4,), fingerprint="", image_size=size)


@pytest.mark.parametrize("size", [(13, 23), (16, 24), (20, 30)])
def test_the_size_of_padded_images_is_taken(tmp_path, size):
    network = HierarchicalVQVAE(channels=4, residual_channels=2)
    grids = [torch.zeros(2, *grid, dtype=torch.int64) for grid in network.grids(size)]
    rows = {"training": [{}, {}]}
    save_codes(tmp_path, {"training": grids}, rows, codebook_sizes=(4, 4), fingerprint="a", image_size=size)
    assert CodeStore(tmp_path).image_size == size


def rewrite(folder, tensors=None, **fields):
    """Another content whose checksum is right."""
    content = load_file(folder / "codes.safetensors") | (tensors or {})
    save_file(content, folder / "codes.safetensors")
    written = (folder / "codes.safetensors").read_bytes()
    description = read_json(folder / "codes.json") | fields
    description["file"] |= {"bytes": len(written), "sha256": hashlib.sha256(written).hexdigest()}
    write_json(folder / "codes.json", description, sealed=True)


@pytest.mark.parametrize(
    ("tensors", "fields", "fault"),
    [
        ({"training/level0": torch.full((5, 2, 3), 12, dtype=torch.int16)}, {}, "codes outside 0 to 11"),
        ({"training/level0": torch.full((5, 2, 3), -1, dtype=torch.int16)}, {}, "codes outside 0 to 11"),
        ({"training/level0": torch.zeros(5, 2, 3)}, {}, "float32 of shape"),
        ({"training/level0": torch.zeros(4, 2, 3, dtype=torch.int16)}, {}, "shape .4, 2, 3.; .5, 2, 3. is described"),
        ({"validation/level1": torch.zeros(2, 6, 4, dtype=torch.int32)}, {}, "level1 is .* is described"),
        ({}, {"grids": [[2, 3], [4, 7]]}, "is described"),
        ({}, {"grids": [[2, 3]]}, "misstates"),
        ({}, {"grids": [[2, 0], [4, 6]]}, "misstates whole numbers"),
        ({}, {"codebook_sizes": [12, True]}, "misstates whole numbers"),
        ({}, {"codebook_sizes": [12, "40000"]}, "misstates whole numbers"),
        ({}, {"splits": {"training": [], "validation": []}}, "is described"),
        ({}, {"splits": [1]}, "misstates"),
        ({}, {"image_size": [160, 24]}, "misstates the size of the images"),
        ({}, {"image_size": [16]}, "misstates the size of the images"),
        ({}, {"image_size": [16, 24, 16]}, "misstates the size of the images"),
        ({}, {"image_size": [1, 24]}, "misstates the size of the images"),
        ({}, {"splits": {"training": 3}}, "misstates"),
    ],
)
def test_what_the_store_describes_is_what_it_holds(tmp_path, tensors, fields, fault):
    write(tmp_path)
    rewrite(tmp_path)
    CodeStore(tmp_path)
    rewrite(tmp_path, tensors, **fields)
    with pytest.raises(InputError, match=f"damaged: .*{fault}"):
        CodeStore(tmp_path)


def test_other_codes_in_their_place_are_noticed_by_the_checksum_and_the_description_has_one_too(tmp_path):
    write(tmp_path)
    assert '"seal": "sha256:' in (tmp_path / "codes.json").read_text()
    tensors = load_file(tmp_path / "codes.safetensors")
    tensors["training/level0"] = tensors["training/level0"].flip(0)
    save_file(tensors, tmp_path / "codes.safetensors")
    with pytest.raises(InputError, match=r"damaged: the checksum of codes\.safetensors is wrong"):
        CodeStore(tmp_path)


def test_a_tensor_that_a_store_describes_and_lacks_is_named(tmp_path):
    write(tmp_path)
    tensors = load_file(tmp_path / "codes.safetensors")
    del tensors["validation/level1"]
    save_file(tensors, tmp_path / "codes.safetensors")
    written = (tmp_path / "codes.safetensors").read_bytes()
    description = read_json(tmp_path / "codes.json")
    description["file"] |= {"bytes": len(written), "sha256": hashlib.sha256(written).hexdigest()}
    write_json(tmp_path / "codes.json", description, sealed=True)
    with pytest.raises(InputError, match=r"damaged: codes\.safetensors lacks validation/level1"):
        CodeStore(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "3", "\xff"])
def test_a_description_of_another_kind_is_one_error(tmp_path, text):
    write(tmp_path)
    (tmp_path / "codes.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"codes\.json cannot be read"):
        CodeStore(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fingerprint", 5),
        ("fingerprint", ""),
        ("plane", "x"),
        ("plane", [1]),
        ("codebook_sizes", [12, 2**40]),
        ("grids", []),
    ]
    + [("pixel_mm", value) for value in ("4", -4, True, float("nan"), float("inf"))],
)
def test_a_description_of_what_no_slices_have_is_refused(tmp_path, name, value):
    """Else a training ends when it writes that into its record, or the record places samples elsewhere."""
    write(tmp_path)
    content = {**read_json(tmp_path / "codes.json"), name: value}
    (tmp_path / "codes.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"damaged: codes\.json lacks or misstates "):
        CodeStore(tmp_path)


@pytest.mark.parametrize("book_kd", [torch.full((12, 4), float("nan")), torch.zeros(3, 4), torch.zeros(12)])
def test_a_codebook_that_is_none_of_the_store_is_refused(tmp_path, book_kd):
    write(tmp_path)
    tensors = load_file(tmp_path / "codes.safetensors")
    save_file({**tensors, "codebook/level0": book_kd}, tmp_path / "codes.safetensors")
    content = read_json(tmp_path / "codes.json")
    written = (tmp_path / "codes.safetensors").read_bytes()
    content["file"].update(bytes=len(written), sha256=hashlib.sha256(written).hexdigest())
    write_json(tmp_path / "codes.json", content)
    with pytest.raises(InputError, match="damaged: codebook/level0 has shape"):
        CodeStore(tmp_path)
