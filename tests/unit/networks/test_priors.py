"""What every prior promises: causality, full context, equality of the cached and the plain path."""

from __future__ import annotations

import math

import pytest
import torch

from monai_vqgen.errors import CodesMismatchError, InputError
from monai_vqgen.networks import (
    DecoderOnlyPrior,
    GatedPixelCNN,
    MaskedPixelCNN,
    PlainIncremental,
    start_from_codebooks,
)

GATED = {"channels": 16, "num_layers": 4}
CONTEXTS = {
    "alone": {},
    "condition": {"condition_dim": 2},
    "coarser": {"coarser_codes": [5]},
    "all": {"coarser_codes": [4, 5], "condition_dim": 2},
}


def make(kind: str, spatial_dims: int, **context):
    torch.manual_seed(0)
    if kind == "gated":
        prior = GatedPixelCNN(7, spatial_dims, attention_every=0, first_kernel_size=5, **GATED, **context)
    elif kind == "attention":
        prior = GatedPixelCNN(7, spatial_dims, attention_every=2, num_output_blocks=2, **GATED, **context)
    elif kind == "wide":
        prior = GatedPixelCNN(7, spatial_dims, attention_every=3, kernel_size=5, num_heads=2, **GATED, **context)
    elif kind == "masked":
        prior = MaskedPixelCNN(7, spatial_dims, channels=8, num_blocks=4, **context)
    else:
        prior = DecoderOnlyPrior(7, spatial_dims, max_positions=64, channels=8, num_layers=2, num_heads=2, **context)
    return prior.eval()


def inputs(prior, grid, *, batch=2):
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(prior.num_codes, (batch, *grid), generator=generator)
    # Sizes that do not divide: a coarse position covers ceil(fine / coarse) fine ones.
    steps = range(len(prior.coarser_codes), 0, -1)
    coarser = [
        torch.randint(k, (batch, *(math.ceil(n / 2**step) for n in grid)), generator=generator)
        for k, step in zip(prior.coarser_codes, steps, strict=True)
    ]
    condition = torch.randn(batch, prior.condition_dim, generator=generator) if prior.condition_dim else None
    return codes, coarser, condition


def dependence(prior, grid):
    """`[i, j]`: how strongly the logits at raster position i change with the embedding of the code at position j."""
    codes, coarser, condition = inputs(prior, grid, batch=1)
    embedding = prior.transformer.token_embeddings if isinstance(prior, DecoderOnlyPrior) else prior.embedding
    seen = []
    handle = embedding.register_forward_hook(lambda *args: seen.append(args[2].detach().requires_grad_()) or seen[-1])
    logits = prior.double()(codes, coarser, None if condition is None else condition.double()).flatten(2)
    handle.remove()
    rows = []
    for i in range(logits.shape[2]):
        (gradient,) = torch.autograd.grad(logits[0, :, i].square().sum(), seen[0], retain_graph=True)
        rows.append(gradient.abs().sum(-1).flatten())
    matrix = torch.stack(rows)
    if isinstance(prior, DecoderOnlyPrior):  # its sequence starts with the begin token and lacks the last code
        matrix = torch.cat([matrix[:, 1:], torch.zeros(len(rows), 1)], dim=1)
    return matrix


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(("spatial_dims", "grid"), [(2, (5, 6)), (3, (3, 3, 4))])
@pytest.mark.parametrize("kind", ["gated", "attention", "masked", "decoder_only"])
def test_logits_never_depend_on_this_or_later_codes(kind, spatial_dims, grid, context):
    matrix = dependence(make(kind, spatial_dims, **CONTEXTS[context]), grid)
    assert torch.all(matrix.triu() == 0)


@pytest.mark.parametrize(("spatial_dims", "grid"), [(2, (8, 8)), (3, (3, 4, 4))])
@pytest.mark.parametrize("kind", ["attention", "decoder_only"])
def test_the_last_logits_depend_on_every_earlier_code(kind, spatial_dims, grid):
    matrix = dependence(make(kind, spatial_dims), grid)
    earlier = torch.ones_like(matrix).tril(-1).bool()
    assert torch.all(matrix[-1, :-1] > 0)
    if kind == "decoder_only" or spatial_dims == 3:
        assert torch.all(matrix[earlier] > 0)


@pytest.mark.parametrize(("spatial_dims", "grid"), [(2, (5, 6)), (3, (3, 4, 4))])
def test_without_attention_the_stacks_still_see_every_earlier_code(spatial_dims, grid):
    matrix = dependence(make("gated", spatial_dims), grid)
    assert torch.all(matrix[torch.ones_like(matrix).tril(-1).bool()] > 0)


def test_a_plain_masked_pixelcnn_has_the_blind_spot_that_the_gated_one_has_not():
    grid = (4, 9)
    torch.manual_seed(0)
    masked = MaskedPixelCNN(7, channels=8, num_blocks=9, first_kernel_size=3).eval()
    gated = GatedPixelCNN(7, attention_every=0, first_kernel_size=3, channels=8, num_layers=9).eval()
    last_row, right_end_of_row_0 = 3 * 9 + 3, 8
    assert dependence(masked, grid)[last_row, right_end_of_row_0] == 0
    assert dependence(gated, grid)[last_row, right_end_of_row_0] > 0


@pytest.mark.parametrize("context", ["condition", "coarser", "all"])
@pytest.mark.parametrize("kind", ["gated", "attention", "masked", "decoder_only"])
def test_every_context_reaches_the_logits(kind, context):
    prior = make(kind, 2, **CONTEXTS[context])
    codes, coarser, condition = inputs(prior, (5, 6))
    logits = prior(codes, coarser, condition)
    if condition is not None:
        assert not torch.allclose(prior(codes, coarser, condition + 1), logits)
    for level, grid in enumerate(coarser):
        changed = [*coarser]
        changed[level] = (grid + 1) % prior.coarser_codes[level]
        assert not torch.allclose(prior(codes, changed, condition), logits)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(("spatial_dims", "grid"), [(2, (5, 7)), (2, (1, 4)), (3, (3, 4, 5))])
@pytest.mark.parametrize("kind", ["gated", "attention", "wide", "masked", "decoder_only"])
def test_the_incremental_logits_are_those_of_the_forward(kind, spatial_dims, grid, context):
    prior = make(kind, spatial_dims, **CONTEXTS[context])
    codes, coarser, condition = inputs(prior, grid, batch=3)
    with torch.no_grad():
        expected = prior(codes, coarser, condition).flatten(2)
    steps = prior.incremental(grid, batch_size=3, coarser=coarser, condition=condition)
    for i, codes_b in enumerate(codes.flatten(1).t()):
        if i % 3 != 1:  # a code that is known already is pushed without asking for logits
            torch.testing.assert_close(steps.logits(), expected[:, :, i], atol=1e-5, rtol=0)
            torch.testing.assert_close(steps.logits(), expected[:, :, i], atol=1e-5, rtol=0)
        steps.push(codes_b)


def test_the_fallback_gives_the_forward_of_any_prior():
    prior = make("masked", 2)
    codes, _, _ = inputs(prior, (2, 3))
    steps = PlainIncremental(prior, (2, 3), batch_size=2)
    for i, codes_b in enumerate(codes.flatten(1).t()):
        torch.testing.assert_close(steps.logits(), prior(codes).flatten(2)[:, :, i])
        steps.push(codes_b)


def test_the_gate_at_full_size_keeps_its_precision():
    """Fifteen layers of the default width, saturated gates: still within 1e-5 of the full forward."""
    torch.manual_seed(0)
    prior = GatedPixelCNN(64, channels=64, num_layers=15).eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(1.5)
    codes = torch.randint(64, (2, 6, 6))
    with torch.no_grad():
        expected = prior(codes).flatten(2)
    steps = prior.incremental((6, 6), batch_size=2)
    for i, codes_b in enumerate(codes.flatten(1).t()):
        torch.testing.assert_close(steps.logits(), expected[:, :, i], atol=1e-5, rtol=1e-5)
        steps.push(codes_b)


def test_the_reference_systems_can_be_built():
    system_a = GatedPixelCNN(
        512, channels=128, num_layers=20, attention_every=5, num_heads=2, first_kernel_size=7, num_output_blocks=10
    )
    system_b = MaskedPixelCNN(256)
    assert len(system_a.attentions) == 4
    shapes = [tuple(block.masked.conv.weight.shape) for block in system_b.blocks]
    assert shapes == [(64, 128, 2, 3)] * 7
    assert not any("BatchNorm" in type(m).__name__ for p in (system_a, system_b) for m in p.modules())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"spatial_dims": 4}, "spatial_dims"),
        ({"num_codes": 0}, "num_codes"),
        ({"kernel_size": 4}, "kernel_size"),
        ({"first_kernel_size": 1}, "first_kernel_size"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_heads": 3}, "num_heads"),
        ({"attention_every": -1}, "attention_every"),
        ({"condition_dim": -1}, "condition_dim"),
    ],
)
def test_arguments_that_cannot_work_are_named(arguments, named):
    with pytest.raises(InputError, match=named):
        GatedPixelCNN(**{"num_codes": 8, **arguments})


@pytest.mark.parametrize("kind", ["gated", "masked", "decoder_only"])
def test_inputs_that_do_not_fit_are_refused(kind):
    prior = make(kind, 2, coarser_codes=[5], condition_dim=2)
    codes, coarser, condition = inputs(prior, (4, 4))
    for wrong, message in [
        ((codes.float(), coarser, condition), "integers"),
        ((codes[0], coarser, condition), "codes have shape"),
        ((codes, [], condition), "0 grids of coarser levels"),
        ((codes, [codes.repeat(1, 2, 2)], condition), "no larger"),
        ((codes, [coarser[0][:1]], condition), "same batch"),
        ((codes, coarser, None), "needs a condition"),
        ((codes, coarser, condition[:, :1]), "needs a condition"),
    ]:
        with pytest.raises(InputError, match=message):
            prior(*wrong)
    with pytest.raises(InputError, match="built without one"):
        make(kind, 2)(codes, (), condition)


def test_a_grid_longer_than_the_transformer_is_refused_with_the_mend():
    with pytest.raises(InputError, match="max_positions=81"):
        make("decoder_only", 2)(torch.zeros(1, 9, 9, dtype=torch.long))


@pytest.mark.parametrize("kind", ["gated", "attention", "masked", "transformer"])
@pytest.mark.parametrize("context", CONTEXTS, ids=str)
def test_every_trainable_parameter_gets_a_gradient(kind, context):
    prior = make(kind, 2, **CONTEXTS[context]).train()  # distributed training refuses idle parameters
    codes, coarser, condition = inputs(prior, (4, 4))
    prior(codes, coarser, condition).square().sum().backward()
    idle = [name for name, value in prior.named_parameters() if value.requires_grad and value.grad is None]
    assert idle == []


@pytest.mark.parametrize("build", [GatedPixelCNN, MaskedPixelCNN])
def test_codes_that_are_alike_start_alike(build):
    torch.manual_seed(0)
    prior = build(64, channels=32, coarser_codes=[16])
    codebooks = [torch.randn(16, 4), torch.randn(64, 4)]
    counts = torch.arange(64) ** 2
    start_from_codebooks(prior, codebooks, counts_k=counts)
    head = prior.head if isinstance(prior, MaskedPixelCNN) else prior.head[-1]
    tables = [
        (prior.context.embeddings[0].weight, codebooks[0]),
        (prior.embedding.weight, codebooks[1]),
        (head.weight.flatten(1), codebooks[1]),
    ]
    for weight, codebook in tables:
        ours, theirs = torch.pdist(weight.detach()), torch.pdist(codebook)
        assert torch.corrcoef(torch.stack([ours, theirs]))[0, 1] > 0.8  # a projection keeps distances, nearly
    differences = head.bias.detach().double() - (counts.double() + 1).log()
    assert differences.std() < 1e-5  # log-frequencies but for a constant, which softmax does not see


def test_codebooks_of_other_sizes_are_refused():
    prior = GatedPixelCNN(8, channels=8, num_layers=1, attention_every=0, coarser_codes=[4])
    with pytest.raises(CodesMismatchError, match="sizes"):
        start_from_codebooks(prior, [torch.randn(8, 4)])
