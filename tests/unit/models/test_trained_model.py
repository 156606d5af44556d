"""A trained model does what its parts do, at any number of levels, in two and three dimensions."""

from __future__ import annotations

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from factories import POSITIONS, tiny_autoencoder, tiny_model
from monai.data import MetaTensor
from near_ties import assert_same_draws

from monai_vqgen import files
from monai_vqgen.errors import CheckpointError, CodesMismatchError, InputError, OutputExistsError, ScanError
from monai_vqgen.inferers import AncestralSampler, VolumeReconstructionInferer
from monai_vqgen.models import SamplingSettings, TrainedModel
from monai_vqgen.weights import fingerprint

LEVELS = {"one level": (4,), "two levels": (8, 4), "three levels": (8, 4, 2)}


def model_of(dims: int, strides: tuple[int, ...], **options) -> TrainedModel:
    network = tiny_autoencoder(8, strides=strides, spatial_dims=dims)
    return tiny_model([16] * dims, autoencoder=network, spatial_dims=dims, **options)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("strides", LEVELS.values(), ids=LEVELS)
def test_every_method_works_at_any_number_of_levels_and_dimensions(dims, strides):
    model = model_of(dims, strides, condition=POSITIONS)
    samples = model.sample(3, position_mm=65.0, seed=7)
    assert samples.images.shape == (3, 1, *[16] * dims)
    assert [tuple(grid.shape[1:]) for grid in samples.codes] == [(16 // stride,) * dims for stride in strides]
    assert (samples.synthetic, samples.seed, samples.conditions) == (True, 7, [{"position_mm": 65.0}] * 3)
    with torch.no_grad():
        expected = model.autoencoder.decode(samples.codes).clamp(0, 1)
    torch.testing.assert_close(samples.images, expected)
    again = model.encode(samples.images)
    for mine, theirs in zip(again, model.autoencoder.encode(samples.images), strict=True):
        assert torch.equal(mine, theirs)
    nats = model.log_prob(samples.codes, position_mm=65.0)
    features = POSITIONS.encode([{"position_mm": 65.0}] * 3)
    for mine, theirs in zip(nats, AncestralSampler(model.priors).log_prob(samples.codes, features), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_completion_changes_what_is_masked_and_nothing_else(dims):
    model = model_of(dims, (8, 4))
    images = torch.rand(2, 1, *[16] * dims, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros([16] * dims, dtype=torch.bool)
    mask[(slice(9, 12),) * dims] = True
    filled = model.complete(images, mask, seed=3)
    assert torch.equal(filled[..., ~mask], images[..., ~mask])
    assert not torch.equal(filled[..., mask], images[..., mask])
    hidden = images.clone()
    hidden[..., mask] = 5.0  # what lies under the mask has no influence
    assert torch.equal(model.complete(hidden, mask, seed=3)[..., mask], filled[..., mask])
    first = model.complete(images[:1], mask[None], seed=3)
    torch.testing.assert_close(first, filled[:1])


def test_a_sample_depends_on_seed_and_number_and_not_on_the_batch():
    model = tiny_model(condition=POSITIONS)
    whole = model.sample(5, seed=2)
    model.batch_size = 2
    later = model.sample(3, seed=2, first_sample=2)
    assert later.conditions == whole.conditions[2:]
    assert_same_draws(later.codes, [grid[2:] for grid in whole.codes])
    assert not torch.equal(model.sample(5, seed=3).codes[1], whole.codes[1])


@pytest.mark.parametrize("fits", [2, 1])
def test_a_batch_that_does_not_fit_into_memory_is_halved_and_the_model_goes_on_after_one_that_never_does(
    fits, monkeypatch
):
    model, most = model_of(2, (8, 4), condition=POSITIONS), 4
    images, whole = torch.rand(4, 1, 16, 16), model.sample(4, position_mm=65.0, seed=7)
    codes = model.encode(images)

    def scarce(call, count):
        def limited(*arguments, **options):
            if count(arguments, options) > most:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return call(*arguments, **options)

        return limited

    network, prior = model.autoencoder, model.priors[1]
    monkeypatch.setattr(network, "encode", scarce(network.encode, lambda given, _: len(given[0])))
    monkeypatch.setattr(network, "decode", scarce(network.decode, lambda given, _: len(given[0][0])))
    scored = model.log_prob(codes, position_mm=65.0)
    monkeypatch.setattr(prior, "forward", scarce(prior.forward, lambda given, _: len(given[0])))
    monkeypatch.setattr(prior, "incremental", scarce(prior.incremental, lambda _, options: options["batch_size"]))
    most = fits
    calls = [
        lambda: assert_same_draws(model.sample(4, position_mm=65.0, seed=7).codes, whole.codes),
        lambda: [torch.testing.assert_close(a, b) for a, b in zip(model.encode(images), codes, strict=True)],
        lambda: model.decode(codes),
        lambda: torch.testing.assert_close(model.log_prob(codes, position_mm=65.0), scored),
    ]
    for call in calls:
        if fits == 2:
            call()
            continue
        with pytest.raises(InputError, match="smaller batch_size"):
            call()
    assert model.sample(1, position_mm=65.0, seed=7).images.shape == (1, 1, 16, 16)


def test_recorded_settings_hold_unless_others_are_given():
    model = tiny_model(settings=SamplingSettings((0.5, 0.9), (2, None), (None, 0.9)))
    recorded = AncestralSampler(model.priors, temperature=[0.5, 0.9], top_k=[2, None], top_p=[None, 0.9])
    assert torch.equal(model.sample(4, seed=1).codes[1], recorded.sample(model.grids, num_samples=4, seed=1)[1])
    warm = AncestralSampler(model.priors, temperature=2.0, top_k=[2, None], top_p=[None, 0.9])
    drawn = model.sample(4, seed=1, temperature=2.0)
    assert torch.equal(drawn.codes[1], warm.sample(model.grids, num_samples=4, seed=1)[1])
    assert drawn.settings.temperature == (2.0, 2.0)


def test_images_have_their_size_back_where_no_stride_divides_it():
    model = tiny_model((20, 30))
    images = torch.rand(2, 1, 20, 30)
    assert model.decode(model.encode(images)).shape == images.shape
    assert model.sample(2).images.shape == images.shape
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[18:, 28:] = True
    assert model.complete(images, mask).shape == images.shape


def test_affines_place_samples_at_their_positions():
    model = tiny_model((20, 30), condition=POSITIONS, record={"plane": "coronal", "pixel_mm": 2.0})
    samples = model.sample(2, conditions=[{"position_mm": 50.0}, {"position_mm": 60.0}])
    for affine, position in zip(samples.affine.numpy(), (50.0, 60.0), strict=True):
        np.testing.assert_allclose(affine @ [9.5, 14.5, 0, 1], [0, -position, 0, 1], atol=1e-9)
        np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), 2.0)
    (affine,) = model_of(3, (8, 4), record={"plane": None, "pixel_mm": 2.5}).sample(1).affine.numpy()
    np.testing.assert_allclose(affine @ [7.5, 7.5, 7.5, 1], [0, 0, 0, 1])  # the middle of a volume
    np.testing.assert_allclose(affine[:3, :3], 2.5 * np.eye(3))
    assert model_of(3, (8, 4), record={"pixel_mm": None}).sample(1).affine is None


@pytest.fixture(scope="module")
def scan() -> nib.Nifti1Image:
    grid = np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in (20, 24, 9)), indexing="ij")
    voxels = np.where(sum(x**2 for x in grid) < 1, 400 + 100 * grid[0], 0).astype(np.int16)
    return nib.Nifti1Image(voxels, np.array([[0.1, -1.5, 0, 5], [1.6, 0.1, 0, -9], [0, 0.1, 3.0, 2], [0, 0, 0, 1.0]]))


def test_a_scan_comes_back_in_its_own_geometry_whatever_it_is_given_as(scan, tmp_path):
    model = tiny_model(record={"plane": "axial", "pixel_mm": 2.0, "percentiles": (1.0, 98.0)})
    nib.save(scan, tmp_path / "scan.nii.gz")
    voxels = torch.tensor(scan.get_fdata(), dtype=torch.float32)
    image = MetaTensor(voxels[None], affine=torch.tensor(scan.affine))
    inferer = VolumeReconstructionInferer("axial", pixel_mm=2.0, lower=1.0, upper=98.0)
    expected = inferer(image[None], model.autoencoder)[0].as_tensor()
    for given in (tmp_path / "scan.nii.gz", str(tmp_path / "scan.nii.gz"), image, image[0]):
        result = model.reconstruct(given)
        torch.testing.assert_close(result.as_tensor().reshape(expected.shape), expected, atol=1e-3, rtol=1e-5)
        np.testing.assert_allclose(result.affine.numpy(), scan.affine, atol=1e-5)
    assert model.reconstruct(scan.get_fdata()).shape == scan.shape
    assert model.reconstruct(image).shape == image.shape


def test_nothing_changes_a_model():
    model = tiny_model(condition=POSITIONS)
    before = [{name: value.clone() for name, value in module.state_dict().items()} for module in modules(model)]
    images = model.sample(2).images
    model.complete(images, torch.ones(16, 16, dtype=torch.bool))
    model.log_prob(model.encode(images))
    model.reconstruct(np.random.default_rng(0).random((12, 12, 6)))
    for module, state in zip(modules(model), before, strict=True):
        assert not module.training
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def modules(model: TrainedModel) -> list[torch.nn.Module]:
    return [model.autoencoder, *model.priors]


def test_what_is_saved_is_what_is_loaded(tmp_path):
    settings = SamplingSettings((0.7, 0.9), (None, 3), (0.8, None))
    record = {"plane": "coronal", "pixel_mm": 2.5, "percentiles": (1.0, 99.0), "data": "discs", "version": "7"}
    model = tiny_model((20, 30), condition=POSITIONS, settings=settings, record=record)
    again = TrainedModel.from_bundle(model.save(tmp_path / "model"))
    assert again.record == model.record
    assert (again.settings, again.grids) == (settings, model.grids)
    assert again.condition.to_dict() == POSITIONS.to_dict()
    mine, theirs = model.sample(3, seed=5), again.sample(3, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(mine.codes, theirs.codes, strict=True))
    assert torch.equal(mine.images, theirs.images)
    with pytest.raises(OutputExistsError, match="overwrite=True"):
        model.save(tmp_path / "model")


def test_saving_replaces_a_models_files_where_told_to_and_no_others(tmp_path):
    model = tiny_model(with_priors=False)
    users = {f"model_prior_level0{end}" for end in (".log", "_best_of_may.pt")} | {"model_card.json", "model_prior.pt"}
    for name in {*users, "model_prior_level7.pt", "model_prior_level10.json"}:
        (tmp_path / name).write_text("mine")
    with pytest.raises(OutputExistsError, match=r"model_prior_level10\.json, model_prior_level7\.pt: give"):
        model.save(tmp_path)
    model.save(tmp_path, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {*users, "model.pt", "model.json"}


def test_saving_completes_or_removes_what_a_dead_process_has_left(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (tmp_path / f".{files._HOST}-{process.pid}-0.partial.model.pt").mkdir()
    tiny_model(with_priors=False).save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "model.json"}
    assert all("seal" in json.loads(path.read_text()) for path in tiny_model().save(tmp_path / "x").glob("*.json"))


def test_its_text_says_what_it_is_trained_on_what_and_how_many_weights():
    model = tiny_model((20, 30), condition=POSITIONS, record={"data": "discs", "version": "7"})
    count = sum(parameter.numel() for parameter in model.autoencoder.parameters())
    for word in ("axial slices", "20 x 30", "3 mm", "3 x 4, 6 x 8", f"{count:,}", "position_mm 40 to 97", "discs", "7"):
        assert word in repr(model)


def test_a_model_without_priors_reconstructs_and_says_why_it_cannot_sample(tmp_path):
    tiny_model(with_priors=False).save(tmp_path)
    model = TrainedModel.from_bundle(tmp_path)
    assert model.reconstruct(np.random.default_rng(0).random((12, 12, 4))).shape == (12, 12, 4)
    images = torch.rand(1, 1, 16, 16)
    for call in (
        lambda: model.sample(1),
        lambda: model.complete(images, torch.ones(16, 16, dtype=torch.bool)),
        lambda: model.log_prob(model.encode(images)),
    ):
        with pytest.raises(CheckpointError, match=r"no priors.*train_prior\.json"):
            call()


def test_bad_arguments_are_named(tmp_path):
    model, images = tiny_model(condition=POSITIONS), torch.rand(2, 1, 16, 16)
    mask = torch.ones(16, 16, dtype=torch.bool)
    with pytest.raises(InputError, match=r"conditioned on position_mm, not on age"):
        model.sample(1, age=30)
    with pytest.raises(InputError, match=r"position_mm=10"):
        model.sample(1, position_mm=10)
    with pytest.raises(InputError, match=r"temperature has 3 values for 2 levels"):
        model.sample(1, temperature=[1, 1, 1])
    with pytest.raises(InputError, match=r"2 conditions for 3 samples"):
        model.sample(3, conditions=[{}, {}])
    with pytest.raises(InputError, match=r"position_mm has 3 values for 2 images"):
        model.log_prob(model.encode(images), position_mm=[50.0, 60.0, 70.0])
    with pytest.raises(InputError, match=r"mask has shape \(8, 8\)"):
        model.complete(images, mask[:8, :8])
    with pytest.raises(InputError, match="marks no pixel"):
        model.complete(images, ~mask)
    with pytest.raises(InputError, match=r"images of shape \(2, 1, 32, 32\)"):
        model.complete(torch.rand(2, 1, 32, 32), mask)
    with pytest.raises(InputError, match=r"volume has shape \(2, 4, 4, 4\)"):
        model.reconstruct(np.zeros((2, 4, 4, 4)))
    with pytest.raises(ScanError, match=r"nowhere\.nii\.gz does not exist"):
        model.reconstruct(tmp_path / "nowhere.nii.gz")
    with pytest.raises(InputError, match="model is one of volumes, and plane is 'axial'"):
        model_of(3, (8, 4)).reconstruct(np.zeros((16, 16, 16)), plane="axial")
    with pytest.raises(ScanError, match=r"a single slice of shape \(16, 16, 1\), and the model is one of volumes"):
        model_of(3, (8, 4)).reconstruct(np.ones((16, 16, 1)))


def test_a_model_made_of_networks_alone_is_saved_with_the_fingerprint_of_its_weights(tmp_path):
    network = tiny_autoencoder()
    TrainedModel(network).save(tmp_path)
    again = TrainedModel.from_bundle(tmp_path)
    assert again.record.fingerprint == fingerprint(network)


def test_maps_of_log_probability_sum_to_it_and_have_the_grids_shape():
    model = tiny_model(condition=POSITIONS)
    codes = model.sample(3, seed=1).codes
    maps = model.log_prob_maps(codes, position_mm=65.0)
    for nats, level, grid in zip(model.log_prob(codes, position_mm=65.0), maps, model.grids, strict=True):
        assert level.shape == (3, *grid)
        torch.testing.assert_close(level.flatten(1).sum(1), nats)


def test_conditions_of_each_sample_are_checked_as_those_for_all():
    with pytest.raises(InputError, match="take no condition, but position_mm"):
        tiny_model().sample(1, conditions=[{"position_mm": 65}])
    with pytest.raises(InputError, match="not on age"):
        tiny_model(condition=POSITIONS).sample(1, conditions=[{"age": 30}])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 3, 16, 16), r"give \(b, 1, h, w\)"),
        (torch.rand(2, 16, 16), r"give \(b, 1, h, w\)"),
        (torch.rand(0, 1, 16, 16), r"give \(b, 1, h, w\)"),
        (torch.full((1, 1, 16, 16), float("nan")), r"scale them to \[0, 1\]"),
        (torch.rand(1, 1, 16, 16) * 255, r"scale them to \[0, 1\]"),
    ],
)
def test_images_of_another_shape_or_range_are_refused(images, message):
    with pytest.raises(InputError, match=message):
        tiny_model().encode(images)


@pytest.mark.parametrize("codes", [[], torch.zeros(1, 2, 2).long(), [torch.zeros(1, 2, 2)]])
def test_what_are_no_grids_of_codes_is_refused(codes):
    for method in ("decode", "log_prob", "log_prob_maps"):
        with pytest.raises(InputError, match="integer grids"):
            getattr(tiny_model(), method)(codes)


def test_arrays_and_masks_with_a_channel_are_taken():
    model = tiny_model()
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for mine, theirs in zip(model.encode(images.numpy()), model.encode(images), strict=True):
        assert torch.equal(mine, theirs)
    mask = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    mask[..., 9:12, 9:12] = True
    assert torch.equal(model.complete(images, mask, seed=3), model.complete(images, mask[:, 0], seed=3))


def test_a_picture_is_no_volume(tmp_path):
    (tmp_path / "slice.png").touch()
    with pytest.raises(InputError, match=r"slice\.png is a picture, not a volume"):
        tiny_model().reconstruct(tmp_path / "slice.png")


def test_saving_over_another_model_leaves_none_of_its_priors(tmp_path):
    tiny_model(condition=POSITIONS).save(tmp_path)
    assert TrainedModel.from_bundle(tmp_path).priors
    tiny_model(with_priors=False).save(tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.pt"]
    assert not TrainedModel.from_bundle(tmp_path).priors


def test_decoding_takes_the_size_of_images_that_the_stride_does_not_divide():
    model = tiny_model((16, 16))
    images = torch.rand(3, 1, 33, 47)
    codes = model.encode(images)
    covered, decoded = model.decode(codes), model.decode(codes, image_size=(33, 47))
    assert covered.shape == (3, 1, 40, 48)
    assert torch.equal(decoded, covered[:, :, :33, :47])
    assert model.decode(model.encode(torch.rand(1, 1, 15, 13)), image_size=(15, 13)).shape == (1, 1, 15, 13)
    with pytest.raises(CodesMismatchError, match="give the size of the images"):
        model.decode(codes, image_size=(64, 64))
