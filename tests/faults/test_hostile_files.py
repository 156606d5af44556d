"""Weights, records and lists that announce much, nest deep or name odd things end at once, small, and in an error."""

from __future__ import annotations

import json
import tracemalloc
import zipfile

import pytest
import torch
from factories import tiny_model

from monai_vqgen.errors import CheckpointError, InputError
from monai_vqgen.files import read_json, write_json
from monai_vqgen.models import TrainedModel
from monai_vqgen.models.record import autoencoder_record
from monai_vqgen.networks.architecture import architecture, build
from monai_vqgen.weights import read_state


@pytest.fixture
def folder(tmp_path):
    return tiny_model().save(tmp_path / "run")


def shared(depth):
    part = [1.0]
    for _ in range(depth):
        part = [part, part]
    return part


def holding_itself():
    state = {"w": torch.ones(2)}
    state["again"] = state
    return state


@pytest.mark.filterwarnings("ignore:.*(beta state|deprecated|prototype)")
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (lambda: torch.zeros(1).expand(10**14), "w has fewer values than its shape"),
        (lambda: torch.zeros(1, dtype=torch.int64).expand(10**14), "w has fewer values than its shape"),
        (lambda: torch.eye(2).to_sparse(), "w is no plain tensor"),
        (lambda: torch.eye(2).to_sparse_csr(), "w is no plain tensor"),
        (lambda: torch.zeros(10**6, device="meta"), "w is no plain tensor"),
        (lambda: torch.tensor([complex("nan")]), "not finite, in w"),
        (lambda: torch.tensor([float("nan")]).to(torch.float8_e4m3fn), "not finite, in w"),
    ],
    ids=["expanded", "expanded-integers", "sparse", "csr", "meta", "complex", "float8"],
)
def test_tensors_that_only_announce_their_values_or_hide_them_are_refused(tmp_path, tensor, message):
    torch.save({"w": tensor()}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=rf"w\.pt .*{message}"):
        read_state(tmp_path / "w.pt")


def test_parts_that_are_shared_are_looked_at_once(tmp_path):
    """A walk of every path through them would take 2^40 steps."""
    torch.save(shared(40), tmp_path / "w.pt")
    read_state(tmp_path / "w.pt")
    torch.save(holding_itself(), tmp_path / "w.pt")
    assert read_state(tmp_path / "w.pt")["again"]["w"].tolist() == [1, 1]


def test_states_nested_deeper_than_any_are_refused(tmp_path):
    nested = [1.0]
    for _ in range(100):
        nested = [nested]
    torch.save(nested, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="nested more than 64 deep"):
        read_state(tmp_path / "w.pt")


def test_weights_that_unpack_to_more_than_they_have_are_refused(tmp_path):
    torch.save({"w": torch.zeros(1000)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(CheckpointError, match="members are compressed"):
        read_state(tmp_path / "w.pt")
    content = bytearray((tmp_path / "plain.pt").read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 20 : at + 28] = (10**9).to_bytes(4, "little") * 2  # sizes, packed and unpacked
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(CheckpointError):
        read_state(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "changes",
    [
        {"channels": 10**6},
        {"num_residual_blocks": 10**7},
        {"strides": [2] * 5000},
    ],
    ids=["channels", "blocks", "strides"],
)
def test_an_architecture_larger_than_its_weights_is_refused_before_it_takes_memory(folder, changes):
    record = read_json(folder / "model.json")
    write_json(folder / "model.json", {**record, "architecture": {**record["architecture"], **changes}})
    with pytest.raises(CheckpointError, match=r"the recorded architecture has (weights|num_|strides)"):
        TrainedModel.from_bundle(folder)


def test_a_prior_larger_than_its_weights_is_refused_before_it_takes_memory(folder):
    record = read_json(folder / "model_prior_level0.json")
    record["architecture"]["channels"] = 10**6
    write_json(folder / "model_prior_level0.json", record)
    with pytest.raises(CheckpointError, match=r"has weights of .* MiB, and the file beside it holds fewer"):
        TrainedModel.from_bundle(folder)


def test_every_network_is_built_where_its_weights_may_be_as_large_as_they_are():
    model = tiny_model()
    for network in (model.autoencoder, *model.priors):
        size = sum(value.numel() * value.element_size() for value in network.state_dict().values())
        assert architecture(build(architecture(network), max_bytes=4 * size)) == architecture(network)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pixel_mm", -4),
        ("pixel_mm", "4"),
        ("pixel_mm", 1e-9),
        ("pixel_mm", True),
        ("plane", "x"),
        ("plane", 5),
        ("image_size", [0, 64]),
        ("image_size", [10**6, 64]),
        ("percentiles", [0.5]),
        ("percentiles", [99, 1]),
        ("data", 5),
    ],
)
def test_a_record_of_what_no_slices_have_is_refused(folder, tmp_path, name, value):
    for file in ("model.json", "model_prior_level0.json"):
        before = read_json(folder / file)
        write_json(folder / file, {**before, name: value})
        with pytest.raises(CheckpointError, match=f"{file} is damaged .{name} is "):
            TrainedModel.from_bundle(folder)
        write_json(folder / file, before)
    if name != "data":  # a datalist has it under another name
        (tmp_path / "datalist.json").write_text(json.dumps({name: value}))
        with pytest.raises(InputError, match=rf"datalist\.json: {name} is .*extract the slices again"):
            autoencoder_record(tiny_model().autoencoder, tmp_path)


@pytest.mark.parametrize("changes", [{"sampling": [1]}, {"condition": 5}, {"level": 1}])
def test_a_priors_record_that_is_not_one_is_refused(folder, changes):
    record = read_json(folder / "model_prior_level0.json")
    write_json(folder / "model_prior_level0.json", {**record, **changes})
    with pytest.raises(CheckpointError, match=r"model_prior_level0\.json is "):
        TrainedModel.from_bundle(folder)


def test_json_that_would_fill_the_memory_is_not_parsed(tmp_path):
    (tmp_path / "datalist.json").write_bytes(b'{"training": [' + b"[]," * 12_000_000 + b"[]]}")
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 2 GiB of memory"):
        read_json(tmp_path / "datalist.json")
    assert tracemalloc.get_traced_memory()[1] < 1e8
    tracemalloc.stop()


def test_a_zip_that_unpacks_to_too_much_is_refused_and_what_is_not_ours_stays_packed(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
        with archive.open("junk.bin", "w", force_zip64=True) as junk:
            for _ in range(100):
                junk.write(bytes(2**20))
    assert len(TrainedModel.from_bundle(tmp_path / "b.zip").priors) == 2
    with zipfile.ZipFile(tmp_path / "b.zip", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("more.pt", bytes(100 * 2**20))
    with pytest.raises(InputError, match="would unpack to more than 0"):
        TrainedModel.from_bundle(tmp_path / "b.zip")


@pytest.mark.parametrize("fault", ["encrypted", "method", "deflate"])
def test_a_zip_that_cannot_be_unpacked_is_named(folder, tmp_path, fault):
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
        first = archive.infolist()[0]
    content = bytearray((tmp_path / "b.zip").read_bytes())
    at, listed = first.header_offset, content.index(b"PK\x01\x02")
    if fault == "encrypted":
        content[at + 6] |= 1
        content[listed + 8] |= 1
    elif fault == "method":
        content[listed + 10] = 97
    else:
        content[at + 30 + len(first.filename) : at + 60 + len(first.filename)] = b"\xff" * 30
    (tmp_path / "b.zip").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"b\.zip is damaged"):
        TrainedModel.from_bundle(tmp_path / "b.zip")
