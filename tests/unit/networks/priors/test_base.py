"""What every prior promises: causality, full context, equality of the cached and the plain path."""

from __future__ import annotations

import pytest
import torch

from monai_vqgen.errors import CodesMismatchError, InputError
from monai_vqgen.networks import GatedPixelCNN, MaskedPixelCNN, PlainIncremental

CONTEXTS = {
    "alone": {},
    "condition": {"condition_dim": 2},
    "coarser": {"coarser_codes": [5]},
    "all": {"coarser_codes": [4, 5], "condition_dim": 2},
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(("spatial_dims", "grid"), [(2, (5, 6)), (3, (3, 3, 4))])
@pytest.mark.parametrize("kind", ["gated", "attention", "masked", "decoder_only"])
def test_logits_never_depend_on_this_or_later_codes(make, dependence, kind, spatial_dims, grid, context):
    matrix = dependence(make(kind, spatial_dims, **CONTEXTS[context]), grid)
    assert torch.all(matrix.triu() == 0)


@pytest.mark.parametrize(("spatial_dims", "grid"), [(2, (8, 8)), (3, (3, 4, 4))])
@pytest.mark.parametrize("kind", ["attention", "decoder_only"])
def test_the_last_logits_depend_on_every_earlier_code(make, dependence, kind, spatial_dims, grid):
    matrix = dependence(make(kind, spatial_dims), grid)
    earlier = torch.ones_like(matrix).tril(-1).bool()
    assert torch.all(matrix[-1, :-1] > 0)
    if kind == "decoder_only" or spatial_dims == 3:
        assert torch.all(matrix[earlier] > 0)


@pytest.mark.parametrize("context", ["condition", "coarser", "all"])
@pytest.mark.parametrize("kind", ["gated", "attention", "masked", "decoder_only"])
def test_every_context_reaches_the_logits(make, inputs, kind, context):
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
def test_the_incremental_logits_are_those_of_the_forward(make, inputs, kind, spatial_dims, grid, context):
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


def test_the_fallback_gives_the_forward_of_any_prior(make, inputs):
    prior = make("masked", 2)
    codes, _, _ = inputs(prior, (2, 3))
    steps = PlainIncremental(prior, (2, 3), batch_size=2)
    for i, codes_b in enumerate(codes.flatten(1).t()):
        torch.testing.assert_close(steps.logits(), prior(codes).flatten(2)[:, :, i])
        steps.push(codes_b)


@pytest.mark.parametrize("kind", ["gated", "masked", "decoder_only"])
def test_inputs_that_do_not_fit_are_refused(make, inputs, kind):
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


@pytest.mark.parametrize("kind", ["gated", "attention", "masked", "decoder_only"])
@pytest.mark.parametrize("context", CONTEXTS, ids=str)
def test_every_trainable_parameter_gets_a_gradient(make, inputs, kind, context):
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
    prior.start_from_codebooks(codebooks, counts_k=counts)
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
        prior.start_from_codebooks([torch.randn(8, 4)])


def test_a_prior_without_code_weights_stays_at_its_random_start(make):
    prior = make("decoder_only", 2)
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    prior.start_from_codebooks([torch.randn(7, 4)])
    for name, value in prior.state_dict().items():
        assert torch.equal(value, before[name]), name
