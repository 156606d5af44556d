"""Models go to a hub and come back the same, from a server of this machine; what is none of ours is refused by name."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from factories import POSITIONS, tiny_autoencoder, tiny_model
from hub_server import Hub, serving
from safetensors.torch import load_file, save_file

from monai_vqgen.errors import CheckpointError, CodesMismatchError, DownloadError, InputError, OutputExistsError
from monai_vqgen.files import read_json, write_json
from monai_vqgen.models import TrainedModel, recorded_autoencoder, start_from

hub_client = pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # the client's own uploads
NAME = "somebody/brains"
RECORD = {"license": "Apache-2.0", "data": "OpenNeuro ds002748 v1.0.5 (CC0)"}
FILES = {"README.md", "config.json", "model.safetensors", "model_prior_level0.safetensors",
         "model_prior_level1.safetensors"}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return tiny_model(condition=POSITIONS, record=RECORD)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty hub that huggingface_hub takes for its own, and an empty cache."""
    with serving() as server:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        _take_for_the_hub(monkeypatch, server.url)
        monkeypatch.setattr(hub_client.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(hub_client.constants, "HF_HUB_DISABLE_XET", True)
        yield server


def _take_for_the_hub(monkeypatch, address: str) -> None:
    """As HF_ENDPOINT does, which is read once, when huggingface_hub is imported."""
    monkeypatch.setattr(hub_client.constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(hub_client.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def assert_same(found: TrainedModel, expected: TrainedModel) -> None:
    assert found.record == expected.record
    assert (found.grids, found.settings) == (expected.grids, expected.settings)
    assert len(found.priors) == len(expected.priors)
    pairs = zip((found.autoencoder, *found.priors), (expected.autoencoder, *expected.priors), strict=True)
    for mine, theirs in ((a.state_dict(), b.state_dict()) for a, b in pairs):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_what_is_pushed_comes_back_the_same(model, hub):
    address = model.push_to_hub(NAME, token="hf_secret", private=True)
    sha, files = hub.repositories[NAME][-1]
    assert address == f"{hub.url}/{NAME}/commit/{sha}"
    assert files.keys() - {".gitattributes"} == FILES
    assert hub.private == {NAME}
    assert {token for verb, _, token in hub.asked if verb == "POST"} == {"Bearer hf_secret"}
    assert hub.large.keys() == {hashlib.sha256(files[name]).hexdigest() for name in FILES if "safetensors" in name}
    assert_same(TrainedModel.from_pretrained(NAME), model)
    mine, theirs = TrainedModel.from_pretrained(NAME).sample(2, seed=3), model.sample(2, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(mine.codes, theirs.codes, strict=True))
    assert hub.downloaded() == sorted(FILES), "each once, then from the cache"


def test_a_second_push_replaces_the_weights_and_leaves_the_card_and_other_files(model, hub):
    first = hub.commit(NAME, {"README.md": b"ours", "notes.txt": b"x", "models/model.pt": b"old"})
    model.push_to_hub(NAME)
    without = tiny_model(with_priors=False, autoencoder=tiny_autoencoder(seed=5))
    without.push_to_hub(NAME, commit_message="No priors")
    left = {"README.md", "notes.txt", "models/model.pt", "config.json", "model.safetensors"}
    assert hub.files(NAME).keys() == left
    assert hub.files(NAME)["README.md"] == b"ours"
    assert_same(TrainedModel.from_pretrained(NAME), without)
    assert_same(TrainedModel.from_pretrained(NAME, revision=hub.repositories[NAME][1][0]), model)
    with pytest.raises(CheckpointError, match=f"{NAME} holds no model of monai_vqgen"):
        TrainedModel.from_pretrained(NAME, revision=first)


def test_a_bundle_is_a_repository_and_its_models_are_loaded(model, hub, tmp_path):
    model.save(tmp_path / "bundle/models")
    other = tiny_model(with_priors=False, autoencoder=tiny_autoencoder(seed=5))
    other.save(tmp_path / "bundle/models/generative")
    for name in ("configs/train.json", "docs/README.md", "models/big.onnx", "models/healthy.safetensors"):
        (tmp_path / "bundle" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bundle" / name).write_text("{}")
    hub.upload(NAME, tmp_path / "bundle")
    assert_same(TrainedModel.from_pretrained(NAME), model)
    names = [f"model{end}" for end in ("", "_prior_level0", "_prior_level1")]
    ours = {f"models/{name}{suffix}" for name in names for suffix in (".pt", ".json")}
    ours.add("models/healthy.safetensors")
    assert set(hub.downloaded()) == ours
    assert_same(TrainedModel.from_pretrained(NAME, subfolder="models/generative"), other)
    assert set(hub.downloaded()) == ours | {f"models/generative/model{suffix}" for suffix in (".pt", ".json")}
    assert_same(TrainedModel.from_pretrained(tmp_path / "bundle", subfolder="models/generative"), other)


def test_every_loader_takes_the_name_of_a_repository(model, hub, tmp_path, monkeypatch):
    """What `--model` and `--start_from` hand to."""
    monkeypatch.chdir(tmp_path)
    model.push_to_hub(NAME)
    assert_same(TrainedModel.from_bundle(NAME), model)
    built = recorded_autoencoder(NAME)
    assert_same(TrainedModel.from_bundle(NAME, network=built), model)
    fresh = start_from(tiny_autoencoder(seed=9), NAME)
    wanted = model.autoencoder.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in fresh.state_dict().items())
    prior = start_from(recorded_prior(model, 1), NAME, level=1)
    wanted = model.priors[1].state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in prior.state_dict().items())
    for load in (TrainedModel.from_bundle, recorded_autoencoder):
        with pytest.raises(
            DownloadError, match=r"no folder here is named nobody/nothing, and .*there is no repository"
        ):
            load("nobody/nothing")


def recorded_prior(model, level):
    """An untrained prior of the same architecture."""
    prior = copy.deepcopy(model.priors[level])
    with torch.no_grad():
        for weights in prior.parameters():
            weights.add_(1)
    return prior


def test_a_folder_here_wins_over_a_repository_of_its_name(model, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model(with_priors=False, autoencoder=tiny_autoencoder(seed=5)).push_to_hub(NAME)
    hub.asked.clear()
    model.save(tmp_path / NAME)
    assert_same(TrainedModel.from_bundle(NAME), model)
    for path in ("somebody/brain", f"{NAME}/x.zip", "nowhere/model.pt"):  # a folder of ours, a file: typing errors
        with pytest.raises(InputError, match=f"{path} does not exist"):
            TrainedModel.from_bundle(path)
    assert hub.asked == [], "nobody was told"


@pytest.mark.parametrize(
    "path", ["out/model", ".runs/model", "./out/model", "../out/model", "~/model", "/nowhere/model"]
)
def test_the_place_of_a_run_is_asked_of_no_hub_whether_it_is_there_or_not(path, model, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub_client, "HfApi", lambda **_: pytest.fail("asked"))
    for load in (TrainedModel.from_bundle, lambda name: start_from(tiny_autoencoder(), name)):
        with pytest.raises(InputError, match=r"model does not exist: give .*a run's output folder"):
            load(path)
    with pytest.raises(InputError, match="is neither a folder nor the name of a repository"):
        TrainedModel.from_pretrained(path)
    if path == "out/model":
        model.save(tmp_path / path)
        for load in (TrainedModel.from_bundle, TrainedModel.from_pretrained):
            assert_same(load(path), model)


def test_a_folder_is_read_alike_by_every_loader(model, tmp_path):
    folder = model.save_pretrained(tmp_path / "brains")
    assert {path.name for path in folder.iterdir()} == FILES
    archive = shutil.make_archive(str(tmp_path / "brains"), "zip", tmp_path, "brains")
    for path in (folder, folder / "model.safetensors", archive):
        assert_same(TrainedModel.from_bundle(path), model)
    assert_same(TrainedModel.from_pretrained(folder), model)
    assert TrainedModel.from_bundle(folder, with_priors=False).priors == ()
    for name in FILES & {path.name for path in folder.glob("*.safetensors")}:
        assert load_file(folder / name), "any reader of safetensors reads it"
    with pytest.raises(OutputExistsError, match=r"model\.safetensors.*config\.json: give another folder"):
        model.save_pretrained(folder)
    (folder / "README.md").write_text("mine")
    tiny_model(with_priors=False).save_pretrained(folder, overwrite=True)
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert (folder / "README.md").read_text() == "mine"
    model.save(folder, overwrite=True)
    assert not list(folder.glob("*.safetensors")), "a folder holds one model"
    assert_same(TrainedModel.from_bundle(folder), model)


def front_matter(folder: Path) -> dict:
    start, text, _ = (folder / "README.md").read_text().split("---\n", 2)
    assert start == ""
    return yaml.safe_load(text)


def test_the_card_says_license_library_tags_and_data(model, tmp_path):
    front = front_matter(model.save_pretrained(tmp_path / "a"))
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "monai_vqgen"
    assert {"monai", "medical", "pixelcnn"} <= set(front["tags"])
    assert front["datasets"] == ["openneuro/ds002748"]
    text = (tmp_path / "a/README.md").read_text()
    assert "position_mm 40 to 97" in text
    data = hub_client.ModelCard.load(tmp_path / "a/README.md").data
    assert (data.license, data.library_name) == ("apache-2.0", "monai_vqgen")
    other = tiny_model(with_priors=False, record={"license": "Our own, v2"})
    front = front_matter(other.save_pretrained(tmp_path / "b", datasets=["us/scans"]))
    assert (front["license"], front["license_name"]) == ("other", "Our own, v2")
    assert front["datasets"] == ["us/scans"]
    assert "pixelcnn" not in front["tags"]
    assert front_matter(tiny_model().save_pretrained(tmp_path / "c")).keys() & {"license", "datasets"} == set()


def test_what_a_repository_holds_is_checked_like_any_file(model, tmp_path):
    folder = model.save_pretrained(tmp_path)
    weights, config = folder / "model.safetensors", folder / "config.json"
    whole, records = weights.read_bytes(), config.read_bytes()
    turned = bytearray(whole)
    turned[-3] ^= 1
    for content in (bytes(turned), whole[:-5], b"", b"\xff" * 64):
        weights.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read.*not a \.safetensors file"):
            TrainedModel.from_bundle(folder)
    state = load_file(_put(weights, whole))
    save_file({key: value * 2 if value.is_floating_point() else value for key, value in state.items()}, weights)
    with pytest.raises(CheckpointError, match=r"config\.json is the record of other weights"):
        TrainedModel.from_bundle(folder)
    key = next(key for key, value in state.items() if value.is_floating_point())
    save_file({**state, key: torch.full_like(state[key], torch.nan)}, weights)
    with pytest.raises(CheckpointError, match=f"not finite, in {key}"):
        TrainedModel.from_bundle(folder)
    _put(weights, whole)
    config.write_bytes(records.replace(b'"axial"', b'"axiel"'))
    with pytest.raises(CheckpointError, match=r"config\.json is damaged .its checksum is wrong"):
        TrainedModel.from_bundle(folder)
    content = read_json(_put(config, records))
    content["model_prior_level1"]["autoencoder_fingerprint"] = "0" * 64
    write_json(config, content, sealed=True)
    with pytest.raises(CodesMismatchError, match="prior of level 1"):
        TrainedModel.from_bundle(folder)
    del content["model_prior_level1"]
    write_json(config, content, sealed=True)
    with pytest.raises(CheckpointError, match=r"no prior of level 1 .*config\.json does not tell of one"):
        TrainedModel.from_bundle(folder)
    content["model"]["architecture"] = {"_target_": "os.system", "command": f"touch {tmp_path / 'ran'}"}
    write_json(config, content, sealed=True)
    with pytest.raises(CheckpointError, match="build that network and pass it"):
        TrainedModel.from_bundle(folder)
    assert not (tmp_path / "ran").exists()


def _put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    broken = tiny_model(with_priors=False)
    with torch.no_grad():
        next(broken.autoencoder.parameters()).fill_(torch.inf)
    with pytest.raises(CheckpointError, match="not finite"):
        broken.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("[!.]*"))


def test_a_model_of_another_library_is_named_before_its_weights_are_fetched(hub):
    hub.commit(NAME, {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"large"})
    with pytest.raises(CheckpointError, match=rf"{NAME} holds no model of monai_vqgen: neither its config\.json"):
        TrainedModel.from_pretrained(NAME)
    assert hub.downloaded() == ["config.json"]


def test_a_folder_of_another_library_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"is no model of monai_vqgen: config\.json beside it"):
        TrainedModel.from_pretrained(tmp_path)


def test_what_the_hub_does_not_have_is_named(hub: Hub, model, monkeypatch):
    with pytest.raises(DownloadError, match=f"no repository nobody/nothing on {hub.url}.*hf auth login"):
        TrainedModel.from_pretrained("nobody/nothing")
    model.push_to_hub(NAME)
    with pytest.raises(DownloadError, match=f"{NAME} on {hub.url} has no such revision"):
        TrainedModel.from_pretrained(NAME, revision="v7")
    for name in ("nothing", "a/b/c", "somebody/what else", "somebody/--x"):
        with pytest.raises(InputError, match="OWNER/NAME"):
            TrainedModel.from_pretrained(name)
        with pytest.raises(InputError, match="OWNER/NAME"):
            model.push_to_hub(name)


def test_a_hub_that_is_gone_is_named_unless_the_cache_has_the_model(hub, model, monkeypatch):
    model.push_to_hub(NAME)
    TrainedModel.from_pretrained(NAME)
    _take_for_the_hub(monkeypatch, "http://127.0.0.1:9")  # discard: nobody listens
    assert_same(TrainedModel.from_pretrained(NAME), model)
    with pytest.raises(DownloadError, match=r"http://127\.0\.0\.1:9 cannot be reached for somebody/else"):
        TrainedModel.from_pretrained("somebody/else")
    with pytest.raises(DownloadError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        model.push_to_hub(NAME)


def test_without_the_extra_both_ways_say_what_to_install(model, monkeypatch, tmp_path):
    folder = model.save_pretrained(tmp_path / "brains")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert_same(TrainedModel.from_pretrained(folder), model)
    for call in (lambda: TrainedModel.from_pretrained(NAME), lambda: model.push_to_hub(NAME)):
        with pytest.raises(InputError, match=r"pip install 'monai-vqgen\[hub\]'"):
            call()
