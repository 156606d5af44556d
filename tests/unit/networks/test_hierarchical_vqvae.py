"""The hierarchy: shapes, purity, what each level sees, and errors that say what to do."""

from __future__ import annotations

import json

import pytest
import torch

from monai_vqgen.bundles import bundle_root
from monai_vqgen.errors import CodesMismatchError, InputError
from monai_vqgen.networks import EMACodebook, FiniteScalarQuantizer, HierarchicalVQVAE
from monai_vqgen.networks.architecture import architecture
from monai_vqgen.weights import fingerprint


def small(spatial_dims: int = 2, strides: tuple[int, ...] = (8, 4), **options: float) -> HierarchicalVQVAE:
    torch.manual_seed(0)
    quantizers = [EMACodebook(16, 4) for _ in strides]
    return HierarchicalVQVAE(
        spatial_dims, channels=8, residual_channels=4, strides=strides, quantizers=quantizers, **options
    )


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("strides", [(4,), (8, 4), (8, 4, 2)])
@pytest.mark.parametrize("side", [16, 19, 3])
def test_output_is_shaped_like_the_input(spatial_dims: int, strides: tuple[int, ...], side: int) -> None:
    network = small(spatial_dims, strides)
    images = torch.rand(2, 1, side, *[16] * (spatial_dims - 1))
    assert network(images).shape == images.shape
    codes = network.encode(images)
    assert tuple(tuple(grid.shape[1:]) for grid in codes) == network.grids(images.shape[2:])


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("strides", [(4,), (8, 4), (8, 4, 2)])
def test_decoding_the_codes_is_the_reconstruction(spatial_dims: int, strides: tuple[int, ...]) -> None:
    network = small(spatial_dims, strides).eval()
    images = torch.rand(1, 1, *[16] * spatial_dims)
    torch.testing.assert_close(network.decode(network.encode(images)), network(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(21, 13), (9, 16, 5)])
@pytest.mark.parametrize("strides", [(4,), (8, 4), (8, 4, 2)])
def test_a_size_that_does_not_divide_round_trips_through_padding(
    size: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    network = small(len(size), strides).eval()
    images = torch.rand(1, 1, *size)
    codes = network.encode(images)
    covered = network.decode(codes)
    assert covered.shape == (1, 1, *(-(-n // strides[0]) * strides[0] for n in size))
    decoded = network.decode(codes, image_size=size)
    assert torch.equal(decoded, covered[(..., *[slice(0, n) for n in size])])
    torch.testing.assert_close(decoded, network(images), rtol=0, atol=1e-6)
    coarse = network.decode(codes[:1], size)
    assert coarse.shape == images.shape


def test_only_the_training_pass_changes_a_buffer() -> None:
    network = small().train()
    images = torch.rand(2, 1, 16, 16)
    network.train_pass(images)
    before = fingerprint(network)
    network(images)
    codes = network.encode(images)
    network.decode(codes)
    network.embed(codes)
    assert fingerprint(network) == before
    network.train_pass(images)
    assert fingerprint(network) != before


def test_the_image_depends_on_the_codes_of_every_level() -> None:
    network = small(strides=(8, 4, 2)).eval()
    codes = network.encode(torch.rand(1, 1, 16, 16))
    original = network.decode(codes)
    for level in range(3):
        changed = [(grid + 1) % 16 if i == level else grid for i, grid in enumerate(codes)]
        assert not torch.allclose(network.decode(changed), original)


@pytest.mark.parametrize("strides", [(4,), (8, 4), (8, 4, 2)])
def test_sizes_of_codebooks_are_one_number_or_one_a_level(strides: tuple[int, ...]) -> None:
    sizes, dims = [8, 16, 32][: len(strides)], [2, 3, 4][: len(strides)]
    options = {"channels": 8, "residual_channels": 4, "strides": strides}
    alike = HierarchicalVQVAE(num_codes=16, code_dim=4, **options)
    assert [tuple(book.shape) for book in alike.codebooks()] == [(16, 4)] * len(strides)
    apart = HierarchicalVQVAE(num_codes=sizes, code_dim=dims, **options)
    assert [tuple(book.shape) for book in apart.codebooks()] == list(zip(sizes, dims, strict=True))
    with pytest.raises(InputError, match="one a level"):
        HierarchicalVQVAE(num_codes=[*sizes, 64], **options)


def test_the_default_sizes_are_those_of_the_shipped_weights() -> None:
    shipped = json.loads((bundle_root() / "models" / "model.json").read_text())["architecture"]
    default = architecture(HierarchicalVQVAE(blank_threshold=0.01))
    assert {**default, **shipped} == default


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("strides", [(8, 4), (8, 4, 2)])
def test_coarse_levels_alone_decode_as_training_with_hidden_levels_does(
    spatial_dims: int, strides: tuple[int, ...]
) -> None:
    network = small(spatial_dims, strides, finer_dropout=0.999999)
    images = torch.rand(8, 1, *[16] * spatial_dims)
    network.train_pass(images)
    for quantizer in network.quantizers:
        quantizer.decay = 1.0  # the codebooks stand still
    hidden = network.train_pass(images)
    codes = [level.codes_bs for level in hidden.levels]
    shown = [network.decode(codes[:count]) for count in range(1, len(strides))]  # from each finer level on, hidden
    alike_nb = [torch.isclose(image, hidden.reconstruction_bcs, 1e-4, 1e-4).flatten(1).all(1) for image in shown]
    assert torch.stack(alike_nb).sum(0).tolist() == [1] * 8
    assert all(alike_b.any() for alike_b in alike_nb)


def test_hidden_levels_leave_gradients_to_the_coarsest_alone() -> None:
    network = small(finer_dropout=0.999999)
    network.train_pass(torch.rand(2, 1, 16, 16)).reconstruction_bcs.sum().backward()
    finest, coarsest = network.to_latents[1].weight.grad, network.to_latents[0].weight.grad
    assert coarsest is not None
    assert coarsest.abs().sum() > 0
    assert finest is None or finest.abs().sum() == 0


def test_every_parameter_trains() -> None:
    network = small(finer_dropout=0.0)
    passed = network.train_pass(torch.rand(2, 1, 16, 16))
    (passed.reconstruction_bcs.square().mean() + sum(level.loss for level in passed.levels)).backward()
    idle = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert idle == []


def test_fingerprint_follows_values_names_and_types_but_not_memory_format() -> None:
    network = small()
    same = small()
    assert fingerprint(network) == fingerprint(same.to(memory_format=torch.channels_last))
    with torch.no_grad():
        same.quantizers[0].embeddings_kd[0, 0] += 1e-3
    assert fingerprint(network) != fingerprint(same)
    assert fingerprint(network) != fingerprint(small().double())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"spatial_dims": 1}, "spatial_dims=1"),
        ({"strides": ()}, "strides is empty"),
        ({"strides": (4, 8)}, "fall from the coarsest"),
        ({"strides": (12, 4)}, "power of two"),
        ({"quantizers": [FiniteScalarQuantizer()]}, "one quantizer a level"),
        ({"finer_dropout": 1.0}, "finer_dropout"),
    ],
)
def test_an_architecture_that_cannot_work_is_refused(options: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        HierarchicalVQVAE(channels=8, **options)


def test_images_and_codes_that_do_not_fit_are_refused() -> None:
    network = small()
    with pytest.raises(InputError, match="2 spatial dimensions"):
        network(torch.rand(1, 1, 8, 8, 8))
    with pytest.raises(InputError, match="no pixels"):
        network(torch.rand(1, 1, 0, 8))
    with pytest.raises(CodesMismatchError, match="2 levels"):
        network.decode([torch.zeros(1, 2, 2, dtype=torch.long)] * 3)
    with pytest.raises(CodesMismatchError, match="level 1 has codes of shape"):
        network.decode([torch.zeros(1, 2, 2, dtype=torch.long)] * 2)
    with pytest.raises(CodesMismatchError, match="outside 0"):
        network.decode([torch.full((1, 2, 2), 16)])
    with pytest.raises(CodesMismatchError, match=r"coarsest grid of \(3, 2\)"):
        network.decode([torch.zeros(1, 2, 2, dtype=torch.long)], image_size=(17, 16))
    with pytest.raises(InputError, match="must have 2 entries"):
        network.decode([torch.zeros(1, 2, 2, dtype=torch.long)], image_size=(16, 16, 16))


@pytest.mark.parametrize("quantizers", [[EMACodebook(16, 4), EMACodebook(8, 3)], [FiniteScalarQuantizer((4, 3))] * 2])
def test_codebooks_hold_the_vectors_in_the_order_of_the_codes(quantizers: list) -> None:
    network = HierarchicalVQVAE(channels=8, residual_channels=4, quantizers=quantizers)
    books = network.codebooks()
    codes = network.encode(torch.rand(1, 1, 16, 16))
    for book, grid, embedded in zip(books, codes, network.embed(codes), strict=True):
        torch.testing.assert_close(book[grid].movedim(-1, 1), embedded)


def test_cells_without_content_have_one_code_with_a_margin_of_each_level() -> None:
    torch.manual_seed(0)
    network = HierarchicalVQVAE(channels=8, residual_channels=4, num_codes=16, blank_threshold=0.1, blank_margin=(1, 0))
    images = torch.zeros(1, 1, 64, 64)
    images[:, :, 24:32, 24:32] = 0.5
    coarse, fine = network.encode(images)
    assert network.codebook_sizes == (17, 17)
    filled = [torch.zeros(1, 8, 8, dtype=torch.bool), torch.zeros(1, 16, 16, dtype=torch.bool)]
    filled[0][:, 2:5, 2:5] = True  # the cell itself and one around it
    filled[1][:, 6:8, 6:8] = True
    assert torch.equal(coarse != 16, filled[0])
    assert torch.equal(fine != 16, filled[1])


def test_without_a_threshold_weights_keep_the_names_and_codes_of_before_blank_cells() -> None:
    network = HierarchicalVQVAE(channels=8, residual_channels=4, num_codes=16)
    assert network.codebook_sizes == (16, 16)
    names = {name for name in network.state_dict() if name.startswith("quantizers")}
    buffers = ("embeddings_kd", "counts_k", "sums_kd", "num_updates", "initialized")
    assert names == {f"quantizers.{level}.{name}" for level in (0, 1) for name in buffers}
    assert all(int(grid.max()) < 16 for grid in network.encode(torch.zeros(1, 1, 32, 32)))


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), "0.01"])
def test_a_threshold_that_no_intensity_has_is_refused(threshold: object) -> None:
    with pytest.raises(InputError, match=r"blank_threshold=.* must be a finite intensity"):
        HierarchicalVQVAE(blank_threshold=threshold)


def test_odd_sizes_and_volumes_have_blank_cells_on_both_levels_and_decode_to_what_a_pass_gives() -> None:
    torch.manual_seed(0)
    options = {"channels": 8, "residual_channels": 4, "num_codes": 16, "blank_threshold": 0.1, "blank_margin": (1, 0)}
    for size, content in (((37, 45), (slice(0, 4), slice(41, 45))), ((9, 13, 17), (slice(0, 4),) * 3)):
        network = HierarchicalVQVAE(len(size), **options).eval()
        images = torch.zeros(1, 1, *size)
        images[(..., *content)] = 0.5
        codes = network.encode(images)
        # A cell in a corner has one neighbor along each axis; the edge of the first image lies in two fine columns.
        assert [int((grid != 16).sum()) for grid in codes] == ([4, 2] if len(size) == 2 else [8, 1])
        torch.testing.assert_close(network.decode(codes, size), network(images))


@pytest.mark.parametrize("margin", [-1, 0.5, (1, -1), (1, 1, 1)])
def test_a_margin_that_no_level_can_have_is_refused(margin: object) -> None:
    with pytest.raises(InputError, match="blank_margin"):
        HierarchicalVQVAE(blank_threshold=0.01, blank_margin=margin)
