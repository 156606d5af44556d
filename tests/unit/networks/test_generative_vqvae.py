"""The generative autoencoder keeps the hierarchy's contract, and blank cells cost and teach nothing."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch

from monai_vqgen.errors import CodesMismatchError, InputError
from monai_vqgen.models import TrainedModel, export_model
from monai_vqgen.networks import EMACodebook, FiniteScalarQuantizer, GenerativeVQVAE, GradientCodebook
from monai_vqgen.weights import fingerprint

CODES = 16
LEVELS = [(4,), (8, 4), (8, 4, 2)]


def small(spatial_dims: int = 2, strides: tuple[int, ...] = (4,), **options: object) -> GenerativeVQVAE:
    torch.manual_seed(0)
    widths = [8] * strides[0].bit_length()
    return GenerativeVQVAE(
        spatial_dims, strides=strides, **{"widths": widths, "num_codes": CODES, "code_dim": 4, **options}
    )


def awake(network: GenerativeVQVAE) -> GenerativeVQVAE:
    """Move the residual branches, which start at zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def half_blank(spatial_dims: int = 2, side: int = 32) -> torch.Tensor:
    images = torch.rand(2, 1, *[side] * spatial_dims)
    images[:, :, side // 2 :] = 0
    return images


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("strides", [(1,), *LEVELS])
@pytest.mark.parametrize("side", [16, 19, 3])
def test_output_is_shaped_like_the_input_and_is_what_its_codes_decode_to(
    spatial_dims: int, strides: tuple[int, ...], side: int
) -> None:
    network = awake(small(spatial_dims, strides)).eval()
    images = torch.rand(2, 1, side, *[8] * (spatial_dims - 1))
    codes = network.encode(images)
    assert tuple(tuple(grid.shape[1:]) for grid in codes) == network.grids(images.shape[2:])
    assert network(images).shape == images.shape
    torch.testing.assert_close(network.decode(codes, images.shape[2:]), network(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("strides", LEVELS)
def test_only_the_training_pass_changes_a_buffer(strides: tuple[int, ...]) -> None:
    network = small(strides=strides).train()
    network.train_pass(half_blank())
    before = fingerprint(network)
    network(half_blank())
    network.embed(network.encode(half_blank()))
    assert fingerprint(network) == before
    network.train_pass(half_blank())
    assert fingerprint(network) != before


@pytest.mark.parametrize("margin", [0, 1, 2])
@pytest.mark.parametrize("size", [(21, 13), (9, 16, 7)])
def test_a_cell_is_blank_where_no_pixel_near_it_shines(margin: int, size: tuple[int, ...]) -> None:
    network = small(len(size), blank_threshold=0.25, blank_margin=margin)
    images = torch.zeros(3, 1, *size)
    images[0, 0][(-1,) * len(size)] = 0.26  # repeated by the padding
    images[1, 0][(5,) * len(size)] = 0.26
    images[2] = 0.25
    (codes,) = network.encode(images)
    expected = np.ones(codes.shape, bool)
    for index in itertools.product(*map(range, codes.shape)):
        cells = [slice(max(0, 4 * (i - margin)), 4 * (i + margin + 1)) for i in index[1:]]
        expected[index] = not bool((images[index[0], 0][tuple(cells)] > 0.25).any())
    np.testing.assert_array_equal((codes == CODES).numpy(), expected)
    assert expected[2].all()
    assert not expected[0].all()


@pytest.mark.parametrize("strides", LEVELS)
def test_the_blank_code_is_the_last_and_decodes_from_the_learned_vector(strides: tuple[int, ...]) -> None:
    network = awake(small(strides=strides)).eval()
    assert network.codebook_sizes == (CODES + 1,) * len(strides)
    books = network.codebooks()
    for level, quantizer in enumerate(network.quantizers):
        assert torch.equal(books[level][:CODES], quantizer.quantizer.embeddings_kd)
        assert torch.equal(books[level][CODES], quantizer.blank_d)
    codes = network.encode(half_blank())
    for embedded, grid, book in zip(network.embed(codes), codes, books, strict=True):
        assert (grid == CODES).any()
        assert torch.equal(embedded, book[grid].movedim(-1, 1))
    drawn = network.decode(codes)
    with torch.no_grad():
        network.quantizers[-1].blank_d.add_(1)
    assert not torch.allclose(network.decode(codes), drawn)
    with pytest.raises(CodesMismatchError, match=f"outside 0..{CODES}"):
        network.decode([torch.full((1, 2, 2), CODES + 1)])


@pytest.mark.parametrize(
    "quantizer", [EMACodebook(CODES, 4, kmeans=False), GradientCodebook(CODES, 4), FiniteScalarQuantizer((2, 2, 2, 2))]
)
def test_training_gives_the_codes_that_encoding_gives_and_sends_gradients_both_ways(quantizer: object) -> None:
    network = awake(small(quantizers=[quantizer]))
    twin, images = copy.deepcopy(network), half_blank()
    passed = network.train_pass(images)
    (level,) = passed.levels
    assert torch.equal(level.codes_bs, twin.encode(images)[0])
    torch.testing.assert_close(level.embeddings_bds, twin.levels(images)[0].embeddings_bds)
    passed.reconstruction_bcs.square().mean().backward()
    assert network.to_latents[0].weight.grad.any()
    assert network.quantizers[0].blank_d.grad.any()


def test_quantizers_learn_from_filled_cells_alone() -> None:
    network = small(quantizers=[EMACodebook(CODES, 4, decay=0.0, kmeans=False, restart_below=0)])
    images = half_blank()
    (level,) = network.train_pass(images).levels
    filled = level.codes_bs != CODES
    assert int(filled.sum()) == 2 * 5 * 8  # four of eight rows of cells, and one of margin
    counts = network.quantizers[0].quantizer.counts_k
    assert counts.tolist() == torch.bincount(level.codes_bs[filled], minlength=CODES).tolist()


def test_latents_of_blank_cells_have_no_part_in_the_loss() -> None:
    network = awake(small(blank_margin=0))
    images = half_blank()
    latents = []
    network.to_latents[0].register_forward_hook(lambda _, __, out: latents.append(out) or out.retain_grad())
    passed = network.train_pass(images)
    (passed.reconstruction_bcs.square().mean() + passed.levels[0].loss).backward()
    share_bs = latents[0].grad.abs().sum(1)
    assert not share_bs[:, 4:].any()
    assert share_bs[:, :4].all()


def test_a_batch_without_content_is_learned_from_without_harm() -> None:
    network = small()
    network.train_pass(half_blank())
    books = [book.clone() for book in network.codebooks()]
    passed = network.train_pass(torch.zeros(2, 1, 16, 16))
    (passed.reconstruction_bcs.square().mean() + passed.levels[0].loss).backward()
    assert passed.levels[0].codes_bs.unique().tolist() == [CODES]
    assert all(
        book.isfinite().all() and torch.allclose(book, was)
        for book, was in zip(network.codebooks(), books, strict=True)
    )
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_learning_from_parts_of_a_batch_is_learning_from_the_batch() -> None:
    whole = small(quantizers=[EMACodebook(CODES, 4, kmeans=False)])
    parts = copy.deepcopy(whole)
    images = torch.cat([half_blank(), torch.rand(1, 1, 32, 32)])  # parts of unequal numbers of filled cells
    whole.train_pass(images)
    with parts.quantizers[0].quantizer.deferred_learning():
        for part in images.split(1):
            parts.train_pass(part)
    for name, value in whole.state_dict().items():
        # parts add up in another order, and a vector is a sum over a count that may be small
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-5, atol=5e-5)


def test_without_a_threshold_no_cell_is_blank() -> None:
    network = small(blank_threshold=None)
    assert network.codebook_sizes == (CODES,)
    assert int(network.encode(torch.zeros(1, 1, 16, 16))[0].max()) < CODES


@pytest.mark.parametrize("strides", LEVELS)
def test_every_parameter_trains(strides: tuple[int, ...]) -> None:
    network = awake(small(strides=strides))
    passed = network.train_pass(half_blank())
    (passed.reconstruction_bcs.square().mean() + sum(level.loss for level in passed.levels)).backward()
    idle = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert [name for name in idle if not name.endswith("attn.to_k.bias")] == []  # a softmax ignores what all keys share


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_residual_blocks_and_attention_start_as_the_identity(spatial_dims: int) -> None:
    network = small(spatial_dims)
    features = torch.rand(1, 8, *[4] * spatial_dims)
    kinds = ("AEKLResBlock", "SpatialAttentionBlock")
    blocks = [module for module in network.modules() if type(module).__name__ in kinds]
    assert {type(block).__name__ for block in blocks} == set(kinds)
    for block in blocks:
        shift = block(features) - features  # a constant a channel: the last layer's bias
        torch.testing.assert_close(shift, shift[..., :1].expand_as(shift), rtol=0, atol=1e-6)


def test_exported_graphs_mark_blank_cells(tmp_path) -> None:
    network = awake(small(strides=(8, 4), blank_threshold=0.9))
    files = export_model(TrainedModel(network), tmp_path, image_size=(16, 24), formats=["torchscript"])
    encoder = torch.jit.load(next(str(path) for path in files if path.name == "encoder.ts"))
    images = half_blank()
    for exported, codes in zip(encoder(images), network.encode(images), strict=True):
        assert torch.equal(exported == CODES, codes == CODES)
        assert (codes == CODES).any()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"spatial_dims": 1}, "spatial_dims=1"),
        ({"strides": (4, 8), "widths": (8,) * 3}, "fall from the coarsest"),
        ({"strides": (12,), "widths": (8,) * 4}, "power of two"),
        ({"widths": (8, 8)}, "give 3 multiples of 8"),
        ({"widths": (8, 8, 12)}, "give 3 multiples of 8"),
        ({"num_heads": 3}, "num_heads=3"),
        ({"num_codes": (8, 8)}, "one a level"),
        ({"quantizers": [FiniteScalarQuantizer()] * 2}, "one quantizer a level"),
        ({"blank_margin": -1}, "blank_margin=-1"),
        ({"blank_margin": 0.5}, r"blank_margin=0\.5"),
        ({"finer_dropout": 1.0}, "finer_dropout"),
    ],
)
def test_an_architecture_that_cannot_work_is_refused(options: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        small(**options)
