"""Weights are found in bundles, runs and zips, and what is damaged or does not go together is named."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch
from factories import POSITIONS, tiny_autoencoder, tiny_model, tiny_priors
from torch import nn

from monai_vqgen.errors import CheckpointError, CodesMismatchError, InputError
from monai_vqgen.files import read_json, write_json
from monai_vqgen.models import TrainedModel, recorded_autoencoder, start_from
from monai_vqgen.networks import GenerativeVQVAE, HierarchicalVQVAE


@pytest.fixture
def folder(tmp_path):
    return tiny_model(condition=POSITIONS).save(tmp_path / "run")


def edit(path, **changes) -> None:
    write_json(path, {**read_json(path), **changes}, sealed=True)


def zipped(folder, path, prefix="bundle/models/"):
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, prefix + file.name)
    return path


def test_a_bundle_a_run_a_file_and_a_zip_give_the_same_model(folder, tmp_path):
    codes = TrainedModel.from_bundle(folder).sample(2, seed=1).codes
    (tmp_path / "bundle").mkdir()
    folder.rename(tmp_path / "bundle" / "models")
    models = tmp_path / "bundle" / "models"
    for path in (tmp_path / "bundle", models, models / "model.pt", zipped(models, tmp_path / "bundle.zip")):
        assert torch.equal(TrainedModel.from_bundle(path).sample(2, seed=1).codes[1], codes[1])


def test_without_a_path_the_packages_own_weights_come():
    model = TrainedModel.from_bundle()
    assert (model.record.plane, model.record.image_size) == ("axial", (128, 128))
    assert model.settings.temperature == (0.8, 1.0)


def test_priors_may_lie_elsewhere_or_stay_where_they_are(folder, tmp_path):
    (tmp_path / "priors").mkdir()
    for path in folder.glob("model_prior_*"):
        path.rename(tmp_path / "priors" / path.name)
    assert TrainedModel.from_bundle(folder).priors == ()
    assert len(TrainedModel.from_bundle(folder, priors_dir=tmp_path / "priors").priors) == 2
    assert TrainedModel.from_bundle(folder, priors_dir=tmp_path / "priors", with_priors=False).priors == ()


def test_weights_of_version_0_1_load_without_a_record_where_their_networks_are_given(folder):
    codes = TrainedModel.from_bundle(folder).sample(2, seed=1).codes
    (folder / "model.json").unlink()
    for path in folder.glob("model_prior_*.json"):
        content = read_json(path)
        old = {name: content[name] for name in content if name not in ("format_version", "architecture", "fingerprint")}
        path.write_text(json.dumps(old))
    with pytest.raises(CheckpointError, match=r"no record of the architecture.*network=.*save\(\) writes the record"):
        TrainedModel.from_bundle(folder)
    networks = {"network": tiny_autoencoder(seed=9), "priors": tiny_priors(condition=POSITIONS, seed=9)}
    model = TrainedModel.from_bundle(folder, **networks)
    assert torch.equal(model.sample(2, seed=1).codes[1], codes[1])
    model.save(folder, overwrite=True)
    assert torch.equal(TrainedModel.from_bundle(folder).sample(2, seed=1).codes[1], codes[1])


def test_a_folder_without_weights_says_what_to_give(tmp_path):
    with pytest.raises(InputError, match=r"nowhere does not exist: give --bundle_root"):
        TrainedModel.from_bundle(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no model\.pt, nor does its folder models"):
        TrainedModel.from_bundle(tmp_path)
    (tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises(InputError, match=r"neither a folder, a zip of a bundle nor a model\.pt"):
        TrainedModel.from_bundle(tmp_path / "notes.txt")


def test_a_zip_is_read_by_its_weights_alone(folder, tmp_path):
    path = zipped(folder, tmp_path / "odd.zip", prefix="../../escaped/")
    assert len(TrainedModel.from_bundle(path).priors) == 2
    assert not (tmp_path.parent / "escaped").exists()
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("readme", "nothing")
    with pytest.raises(InputError, match=r"holds 0 files named model\.pt"):
        TrainedModel.from_bundle(tmp_path / "empty.zip")


def test_a_record_that_is_newer_damaged_or_of_other_weights_is_named(folder):
    edit(folder / "model.json", format_version=2)
    with pytest.raises(CheckpointError, match=r"model\.json is of format 2.*reads up to 1: upgrade"):
        TrainedModel.from_bundle(folder)
    edit(folder / "model.json", format_version=1, fingerprint="0" * 64)
    with pytest.raises(CheckpointError, match=r"model\.json is the record of other weights"):
        TrainedModel.from_bundle(folder)
    for text in ("{", '{"format_version": 1e999}', '{"image_size": [1e999, 16]}'):
        (folder / "model.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"model\.json is damaged"):
            TrainedModel.from_bundle(folder)


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": ["wide", 16]},
        {"image_size": 16},
        {"percentiles": ["low", 1]},
        {"fingerprint": 12},
        {"fingerprint": ["a"]},
        {"architecture": 12},
        {"replaces": "text"},
    ],
    ids=str,
)
def test_values_of_a_record_that_are_no_such_values_are_damage(folder, wrong):
    edit(folder / "model.json", **wrong)
    with pytest.raises(CheckpointError, match=r"model\.json is damaged"):
        TrainedModel.from_bundle(folder)


def test_a_record_that_does_not_match_the_tensors_is_named(folder):
    architecture = json.loads((folder / "model.json").read_text())["architecture"]
    edit(folder / "model.json", architecture={**architecture, "channels": 16})
    with pytest.raises(CheckpointError, match=r"model\.pt does not fit"):
        TrainedModel.from_bundle(folder)
    for wrong in ({"chanels": 16}, {"in_channels": -1}, {"channels": [2]}, {"strides": 0}):
        edit(folder / "model.json", architecture={**architecture, **wrong})
        with pytest.raises(CheckpointError, match=r"architecture of HierarchicalVQVAE cannot be built"):
            TrainedModel.from_bundle(folder)


def test_a_record_builds_networks_of_this_package_and_nothing_else(folder, tmp_path):
    for target in ("os.system", "monai_vqgen.networks.priors.layers.CroppedConv", "monai_vqgen.files.write_bytes", ""):
        edit(folder / "model.json", architecture={"_target_": target, "command": f"touch {tmp_path / 'ran'}"})
        with pytest.raises(CheckpointError, match="build that network and pass it"):
            TrainedModel.from_bundle(folder)
    assert not (tmp_path / "ran").exists()


def test_priors_that_do_not_belong_are_named(folder, tmp_path):
    (folder / "model_prior_level1.pt").rename(tmp_path / "kept.pt")
    with pytest.raises(CheckpointError, match=r"model_prior_level1\.pt"):
        TrainedModel.from_bundle(folder)
    (tmp_path / "kept.pt").rename(folder / "model_prior_level1.pt")
    edit(folder / "model_prior_level1.json", plane="coronal")
    with pytest.raises(CheckpointError, match="different plane"):
        TrainedModel.from_bundle(folder)
    edit(folder / "model_prior_level1.json", plane="axial", autoencoder_fingerprint="0" * 64)
    with pytest.raises(CodesMismatchError, match=r"prior of level 1 .* another autoencoder"):
        TrainedModel.from_bundle(folder)
    (folder / "model_prior_level1.json").unlink()
    with pytest.raises(CheckpointError, match=r"no prior of level 1.*--level 1"):
        TrainedModel.from_bundle(folder)


def test_damaged_weights_are_named(folder):
    whole = (folder / "model.pt").read_bytes()
    (folder / "model.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"model\.pt cannot be read"):
        TrainedModel.from_bundle(folder)


def test_an_architecture_with_networks_of_ones_own_is_passed_as_an_argument(tmp_path):
    class Doubled(HierarchicalVQVAE):
        """Elsewhere than in the package."""

    torch.manual_seed(0)
    mine = Doubled(channels=8, residual_channels=4).eval()
    tiny_model((16, 16), autoencoder=mine, with_priors=False).save(tmp_path)
    with pytest.raises(CheckpointError, match="build that network and pass it"):
        TrainedModel.from_bundle(tmp_path)
    again = TrainedModel.from_bundle(tmp_path, network=Doubled(channels=8, residual_channels=4))
    assert isinstance(again.autoencoder, nn.Module)
    assert torch.equal(again.encode(torch.ones(1, 1, 16, 16))[1], mine.encode(torch.ones(1, 1, 16, 16))[1])


def test_priors_whose_records_are_all_missing_are_named(tmp_path):
    tiny_model().save(tmp_path)
    for path in tmp_path.glob("model_prior_level*.json"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"model_prior_level0\.json is missing"):
        TrainedModel.from_bundle(tmp_path)


def test_a_prior_in_place_of_the_autoencoder_is_named(tmp_path):
    tiny_model().save(tmp_path)
    with pytest.raises(CheckpointError, match=r"model_prior_level0\.pt is a prior"):
        TrainedModel.from_bundle(tmp_path / "model_prior_level0.pt")


def test_a_cut_zip_is_damaged_and_a_folder_tells_the_recorded_architecture(tmp_path):
    (tmp_path / "bundle.ZIP").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="is no zip, or cut off"):
        TrainedModel.from_bundle(tmp_path / "bundle.ZIP")
    saved = tiny_model()
    saved.save(tmp_path / "run")
    for place in (tmp_path / "run", tmp_path / "run/model.pt"):
        assert recorded_autoencoder(place).codebook_sizes == saved.autoencoder.codebook_sizes


def same(one, other) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("level", [None, 0, 1])
def test_a_network_starts_from_a_run_a_bundle_a_file_or_a_zip(folder, tmp_path, level):
    trained = TrainedModel.from_bundle(folder)
    wanted = trained.autoencoder if level is None else trained.priors[level]
    (tmp_path / "bundle").mkdir()
    folder.rename(tmp_path / "bundle" / "models")
    models = tmp_path / "bundle" / "models"
    for path in (tmp_path / "bundle", models, str(models / "model.pt"), zipped(models, tmp_path / "bundle.zip")):
        others = (tiny_autoencoder(seed=9, finer_dropout=0.5), *tiny_priors(condition=POSITIONS, seed=9, dropout=0.3))
        fresh = others[0 if level is None else level + 1]
        assert not same(wanted, fresh)
        assert start_from(fresh, path, level=level) is fresh
        assert same(wanted, fresh)
        assert fresh.training


def test_weights_with_a_code_for_blank_cells_start_a_training_with_one_and_no_other(tmp_path):
    options = {"channels": 8, "residual_channels": 4}
    given = tiny_autoencoder(512, blank_threshold=0.01)  # whose record names the quantizers
    tiny_model(autoencoder=given, with_priors=False).save(tmp_path / "blank")
    fresh = HierarchicalVQVAE(**options, blank_threshold=0.01)
    assert torch.equal(start_from(fresh, tmp_path / "blank").quantizers[1].blank_d, given.quantizers[1].blank_d)
    with pytest.raises(CheckpointError, match=r'give --network_def::blank_threshold "0.01", or other weights'):
        start_from(HierarchicalVQVAE(**options), tmp_path / "blank")


def test_weights_without_a_code_for_blank_cells_are_told_from_a_network_with_one(tmp_path):
    tiny_model(with_priors=False).save(tmp_path)
    record = read_json(tmp_path / "model.json")
    for name in ("blank_threshold", "blank_margin"):  # as weights of version 0.1 were recorded
        del record["architecture"][name]
    write_json(tmp_path / "model.json", record, sealed=True)
    with pytest.raises(CheckpointError, match=r"give --network_def::blank_threshold '\$None', or other weights"):
        start_from(tiny_autoencoder(blank_threshold=0.01), tmp_path)
    assert start_from(tiny_autoencoder(), tmp_path).codebook_sizes == (8, 8)


def test_priors_start_from_a_folder_that_holds_nothing_else(folder):
    (folder / "model.pt").unlink()
    fresh = tiny_priors(condition=POSITIONS, seed=9)[1]
    wanted = torch.load(folder / "model_prior_level1.pt", weights_only=True)
    assert all(
        torch.equal(value, wanted[name]) for name, value in start_from(fresh, folder, level=1).state_dict().items()
    )


def test_without_a_path_a_network_stays_as_it_is():
    fresh = tiny_autoencoder()
    assert same(tiny_autoencoder(), start_from(fresh, None))


def test_the_packages_own_weights_are_a_start_by_name():
    network = HierarchicalVQVAE(blank_threshold=0.01)
    assert same(TrainedModel.from_bundle().autoencoder, start_from(network, "faithful"))
    with pytest.raises(CheckpointError, match="holds a GenerativeVQVAE, and a HierarchicalVQVAE is to be trained"):
        start_from(HierarchicalVQVAE(), "generative")
    with pytest.raises(CheckpointError, match=r'give --network_def::decoder_widths "\[48, 96, 192, 192\]", or other'):
        start_from(GenerativeVQVAE(decoder_widths=(24, 48, 96, 192)), "generative")
    with pytest.raises(CheckpointError, match=r'give --network_def::decoder_widths "\[48, 96, 192, 192\]", or other'):
        start_from(GenerativeVQVAE(num_codes=1024, code_dim=8), "generative")


@pytest.mark.parametrize(
    ("fresh", "level", "message"),
    [
        (
            lambda: tiny_autoencoder(channels=16),
            None,
            r'channels 8 there and 16 here: give --network_def::channels "8"',
        ),
        (lambda: tiny_autoencoder(strides=(4, 2)), None, r"strides \[8, 4\] there and \[4, 2\] here"),
        (lambda: tiny_autoencoder(num_codes=16), None, r"quantizers .*'num_codes': 8.* there"),
        (
            lambda: tiny_priors(num_layers=3)[0],
            0,
            r'--prior_def::num_layers "2" --condition_names "\[\'position_mm\'\]"',
        ),
        (lambda: tiny_priors(condition=POSITIONS, kernel_size=5)[1], 1, r'--prior_def::kernel_size "3", or other'),
    ],
)
def test_weights_of_another_architecture_are_refused_with_the_options_that_fit(folder, fresh, level, message):
    network = fresh()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        start_from(network, folder, level=level)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_start_that_is_not_there_damaged_or_of_another_kind_is_named(folder, tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        start_from(tiny_autoencoder(), tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no model_prior_level2\.pt"):
        start_from(tiny_priors()[1], folder, level=2)
    with pytest.raises(InputError, match=r"there are no weights .*model_prior_level2\.pt"):
        start_from(tiny_priors()[1], folder / "model.pt", level=2)
    with pytest.raises(CheckpointError, match="of another kind by its record"):
        start_from(tiny_autoencoder(), folder / "model_prior_level0.pt")
    (folder / "model.pt").write_bytes((folder / "model.pt").read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="truncated"):
        start_from(tiny_autoencoder(), folder)


def test_a_zip_whose_weights_would_unpack_to_more_than_is_allowed_is_refused_before_that(folder, tmp_path, monkeypatch):
    path = zipped(folder, tmp_path / "bundle.zip")
    monkeypatch.setattr("monai_vqgen.models.loading.LARGEST_ZIP", sum(f.stat().st_size for f in folder.iterdir()) - 1)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(InputError, match=r"the weights in .*bundle\.zip would unpack to more than"):
        TrainedModel.from_bundle(path)
