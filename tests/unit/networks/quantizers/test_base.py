"""What every quantizer promises, deferred learning, and the search and gradients that codebooks share."""

from __future__ import annotations

import contextlib
import copy
import json

import numpy as np
import pytest
import torch

from monai_vqgen.networks import (
    EMACodebook,
    FiniteScalarQuantizer,
    GenerativeVQVAE,
    GradientCodebook,
    HierarchicalVQVAE,
    LookupFreeQuantizer,
    Quantized,
    Quantizer,
    ResidualQuantizer,
)
from monai_vqgen.networks.architecture import architecture, build
from monai_vqgen.networks.quantizers.base import BlankCells, in_float64, nearest_codes, pass_gradient


def every_quantizer() -> list[Quantizer]:
    return [
        EMACodebook(7, 3),
        EMACodebook(7, 3, gradient_estimator="rotation"),
        GradientCodebook(7, 3),
        FiniteScalarQuantizer((4, 3, 2)),
        LookupFreeQuantizer(3),
        ResidualQuantizer(4, 2, dim=3),
    ]


@pytest.mark.parametrize("quantizer", every_quantizer(), ids=lambda q: type(q).__name__)
@pytest.mark.parametrize("spatial", [(5, 4), (3, 2, 4), (0, 4)])
class TestEveryQuantizer:
    def test_lookup_of_codes_is_the_embedding(self, quantizer: Quantizer, spatial: tuple[int, ...]) -> None:
        latents = torch.randn(2, 3, *spatial, generator=torch.Generator().manual_seed(0))
        quantized = quantizer(latents)
        assert quantized.codes_bs.shape == (2, *spatial)
        assert quantized.codes_bs.dtype == torch.int64
        torch.testing.assert_close(quantizer.lookup(quantized.codes_bs), quantized.embeddings_bds)

    def test_forward_changes_no_state_in_train_mode(self, quantizer: Quantizer, spatial: tuple[int, ...]) -> None:
        quantizer.train()
        before = {name: value.clone() for name, value in quantizer.state_dict().items()}
        quantizer(torch.randn(2, 3, *spatial))
        for name, value in quantizer.state_dict().items():
            assert torch.equal(value, before[name]), name

    def test_gradient_reaches_the_latents(self, quantizer: Quantizer, spatial: tuple[int, ...]) -> None:
        latents = torch.randn(2, 3, *spatial, requires_grad=True)
        quantizer(latents).embeddings_bds.sum().backward()
        assert latents.grad is not None
        assert latents.grad.shape == latents.shape
        assert (latents.grad != 0).any() or latents.numel() == 0

    def test_autocast_leaves_codes_as_they_are(self, quantizer: Quantizer, spatial: tuple[int, ...]) -> None:
        latents = torch.randn(2, 3, *spatial)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = quantizer(latents)
        assert inside.embeddings_bds.dtype == torch.float32
        assert torch.equal(inside.codes_bs, quantizer(latents).codes_bs)

    def test_a_cast_network_leaves_the_quantizer_in_float32(
        self, quantizer: Quantizer, spatial: tuple[int, ...]
    ) -> None:
        latents = torch.randn(2, 3, *spatial)
        around = torch.nn.Sequential(copy.deepcopy(quantizer)).half()
        quantized = around(latents.half())
        assert torch.equal(quantized.codes_bs, quantizer(latents.half().float()).codes_bs)
        assert quantized.embeddings_bds.dtype == torch.float32
        for name, value in around[0].state_dict().items():
            assert torch.equal(value, quantizer.state_dict()[name]), name

    def test_learning_leaves_every_code_finite_and_its_embedding_its_own(
        self, quantizer: Quantizer, spatial: tuple[int, ...]
    ) -> None:
        quantizer, latents = copy.deepcopy(quantizer), torch.randn(2, 3, *spatial)
        quantizer.prepare(latents)
        with quantizer.deferred_learning():
            quantizer.learn(latents, quantizer(latents).codes_bs)
        vectors = quantizer.lookup(torch.arange(quantizer.num_codes)[None])
        assert vectors.shape == (1, 3, quantizer.num_codes)
        assert torch.isfinite(vectors).all()

    def test_a_description_in_json_builds_it_again(self, quantizer: Quantizer, spatial: tuple[int, ...]) -> None:
        again = build(json.loads(json.dumps(architecture(quantizer))))
        again.load_state_dict(quantizer.state_dict())
        latents = torch.randn(2, 3, *spatial)
        assert torch.equal(again(latents).codes_bs, quantizer(latents).codes_bs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("quantizer", every_quantizer(), ids=lambda q: type(q).__name__)
@pytest.mark.parametrize("generative", [False, True])
def test_networks_of_any_quantizer_work_in_another_type(
    generative: bool, quantizer: Quantizer, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    sizes = {"widths": (8, 8, 8)} if generative else {"channels": 8, "residual_channels": 4}
    kind = GenerativeVQVAE if generative else HierarchicalVQVAE
    network = kind(strides=(4,), quantizers=[copy.deepcopy(quantizer)], **sizes).eval()
    images = torch.rand(2, 1, 16, 16)
    expected = network(images)
    cast = copy.deepcopy(network).to(dtype)
    assert cast(images.to(dtype)).dtype == dtype
    codes = network.encode(images)
    decoded = cast.decode(codes)
    assert decoded.dtype == dtype
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(decoded.float(), expected, rtol=0, atol=0.05 * scale)
    agree = (cast.encode(images.to(dtype))[0] == codes[0]).float().mean()
    assert agree > 0.8
    assert cast.train_pass(images.to(dtype)).levels[0].loss.dtype == torch.float32


@pytest.mark.parametrize("num_codes", [7, 96, 97])  # with and without the search in lanes
def test_nearest_codes_agree_with_numpy(num_codes: int) -> None:
    rng = np.random.default_rng(1)
    rows, embeddings = rng.normal(size=(3000, 6)), rng.normal(size=(num_codes, 6))
    expected = ((rows[:, None] - embeddings[None]) ** 2).sum(-1).argmin(1)
    found = nearest_codes(torch.from_numpy(rows).float(), torch.from_numpy(embeddings).float())
    assert np.array_equal(found.numpy(), expected)


def test_straight_through_copies_the_gradient_and_gives_the_code_exactly() -> None:
    latents, chosen = torch.randn(5, 3, requires_grad=True), 1e4 * torch.randn(5, 3)
    passed = pass_gradient(latents, chosen, "straight_through")
    weights = torch.randn(5, 3)
    (passed * weights).sum().backward()
    assert torch.equal(passed, chosen)
    assert latents.grad is not None
    assert torch.equal(latents.grad, weights)


def test_rotation_trick_turns_the_gradient_with_the_code() -> None:
    latents = torch.tensor([[1.0, 0.0]], requires_grad=True)
    passed = pass_gradient(latents, torch.tensor([[0.0, 2.0]]), "rotation")  # a quarter turn, twice as long
    passed.backward(torch.tensor([[0.0, 1.0]]))  # along the code
    assert latents.grad is not None
    torch.testing.assert_close(latents.grad, torch.tensor([[2.0, 0.0]]))  # along the latent
    torch.testing.assert_close(passed.detach(), torch.tensor([[0.0, 2.0]]))


class Recorder(Quantizer):
    """One code; keeps what it learns from."""

    num_codes, dim = 1, 1

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, latents_bds: torch.Tensor) -> Quantized:
        codes_bs = torch.zeros(latents_bds[:, 0].shape, dtype=torch.int64)
        return Quantized(torch.zeros_like(latents_bds), codes_bs, latents_bds.new_zeros(()))

    def lookup(self, codes_bs: torch.Tensor) -> torch.Tensor:
        return torch.zeros(codes_bs.shape)[:, None]

    def update(self, latents_bds: torch.Tensor, codes_bs: torch.Tensor) -> None:
        self.seen.append((latents_bds, codes_bs))


@pytest.mark.parametrize("spatial", [(5, 4), (3, 2, 4)])
def test_deferred_learning_is_one_update_from_all_parts_in_their_order(spatial: tuple[int, ...]) -> None:
    quantizer = Recorder()
    latents, codes = torch.randn(5, 1, *spatial), torch.arange(5).reshape(5, *[1] * len(spatial)).expand(5, *spatial)
    with quantizer.deferred_learning():
        for part in (slice(0, 2), slice(2, 5)):
            quantizer.learn(latents[part], codes[part])
        assert quantizer.seen == []
    assert len(quantizer.seen) == 1
    assert torch.equal(quantizer.seen[0][0], latents)
    assert torch.equal(quantizer.seen[0][1], codes)
    quantizer.learn(latents, codes)  # at once again
    assert len(quantizer.seen) == 2


def test_deferred_learning_learns_nothing_from_a_block_that_raises_or_has_no_batch() -> None:
    quantizer = Recorder()
    with contextlib.suppress(KeyError), quantizer.deferred_learning():
        quantizer.learn(torch.zeros(1, 1, 2), torch.zeros(1, 2))
        raise KeyError
    with quantizer.deferred_learning():
        pass
    assert quantizer.seen == []


def test_a_codebook_is_the_same_bit_for_bit_deferred_and_from_the_whole_batch() -> None:
    torch.manual_seed(0)
    whole = EMACodebook(8, 3, kmeans=False, restart_below=0.995)  # unused codes restart at once
    parts = copy.deepcopy(whole)
    for step in range(3):
        latents = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        codes = whole(latents).codes_bs
        whole.learn(latents, codes)
        with parts.deferred_learning():
            for part in (slice(0, 2), slice(2, 5), slice(5, 6)):
                parts.learn(latents[part], codes[part])
        for name, value in whole.state_dict().items():
            assert torch.equal(parts.state_dict()[name], value), name


class OnAppleGPU:
    """As much of a tensor as `in_float64` asks for: no float64 on its device."""

    device = torch.device("mps")

    def double(self) -> torch.Tensor:
        raise TypeError("the MPS framework doesn't support float64")

    def cpu(self) -> torch.Tensor:
        return torch.tensor([1.5])


def test_float64_is_computed_where_there_is_float64() -> None:
    assert in_float64(OnAppleGPU()).dtype == in_float64(torch.ones(1)).dtype == torch.float64  # type: ignore[arg-type]


FILLED = torch.tensor([[[True, False, True], [False, False, True]]])


def with_blank(**options: object) -> BlankCells:
    torch.manual_seed(0)
    return BlankCells(EMACodebook(6, 4, kmeans=False, **options))


@pytest.mark.parametrize("learning", [False, True])
def test_blank_cells_have_the_last_code_and_its_vector_and_the_others_those_of_the_quantizer(learning: bool) -> None:
    blank = with_blank()
    latents = torch.randn(1, 4, 2, 3)
    alone = blank.quantizer(latents)
    found = blank.learned(latents, FILLED) if learning else blank.marked(latents, FILLED)
    assert blank.num_codes == 7
    assert found.codes_bs.tolist() == torch.where(FILLED, alone.codes_bs, 6).tolist()
    expected = torch.where(FILLED[:, None], alone.embeddings_bds, blank.blank_d.view(1, 4, 1, 1))
    torch.testing.assert_close(found.embeddings_bds, expected)
    if not learning:  # which moves the vectors
        torch.testing.assert_close(blank.lookup(found.codes_bs), expected)


def test_what_lies_in_blank_cells_changes_neither_codebook_nor_loss() -> None:
    latents, other = torch.randn(2, 1, 4, 2, 3)
    other = torch.where(FILLED[:, None], latents, other)
    first, second = with_blank(decay=0.5), with_blank(decay=0.5)
    losses = [blank.learned(x, FILLED).loss for blank, x in ((first, latents), (second, other))]
    assert losses[0] == losses[1]
    assert torch.equal(first.quantizer.embeddings_kd, second.quantizer.embeddings_kd)
    second.learned(torch.randn(1, 4, 2, 3), FILLED)
    assert not torch.equal(first.quantizer.embeddings_kd, second.quantizer.embeddings_kd)
