"""The sampler against brute force: every grid of a tiny hierarchy can be enumerated."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from near_ties import assert_same_draws
from scipy import stats

from monai_vqgen.errors import InputError
from monai_vqgen.inferers import AncestralSampler, GumbelNoise
from monai_vqgen.networks import GatedPixelCNN, MaskedPixelCNN


def gated(num_codes=7, spatial_dims=2, *, sharp=4.0, seed=0, **arguments):
    torch.manual_seed(seed)
    arguments = {"channels": 8, "num_layers": 4, "attention_every": 2, **arguments}
    prior = GatedPixelCNN(num_codes, spatial_dims, **arguments)
    with torch.no_grad():  # sharper than at initialization, so that the past matters
        prior.head[-1].weight.mul_(sharp)
    return prior


SIZES = (5, 7, 6)
GRIDS = {2: [(3, 4), (6, 7), (9, 8)], 3: [(1, 2, 2), (2, 3, 4), (3, 4, 4)]}
RANGE = [(dims, levels) for dims in (2, 3) for levels in (1, 2, 3)]


def hierarchy(spatial_dims=2, levels=2):
    """One prior a level; the coarsest has attention."""
    return [
        gated(size, spatial_dims, coarser_codes=SIZES[:level], attention_every=0 if level else 2, seed=level)
        for level, size in enumerate(SIZES[:levels])
    ]


def grids_of(spatial_dims=2, levels=2):
    return GRIDS[spatial_dims][:levels]


@pytest.mark.parametrize(("spatial_dims", "levels"), RANGE)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 4}, {"temperature": 1.3, "top_p": 0.8}])
def test_cached_and_plain_sampling_draw_the_same_codes(spatial_dims, levels, options):
    priors, grids = hierarchy(spatial_dims, levels), grids_of(spatial_dims, levels)
    drawn = [
        AncestralSampler(priors, cached=cached, **options).sample(grids, num_samples=3, seed=11)
        for cached in (True, False)
    ]
    assert [tuple(codes.shape) for codes in drawn[0]] == [(3, *grid) for grid in grids]
    assert_same_draws(*drawn)
    assert all(len(torch.unique(plain)) > 1 for plain in drawn[1])


@pytest.mark.parametrize(("spatial_dims", "levels"), RANGE)
def test_a_sample_does_not_depend_on_batch_size_or_on_who_draws_it(spatial_dims, levels):
    priors, grids = hierarchy(spatial_dims, levels), grids_of(spatial_dims, levels)
    whole = AncestralSampler(priors, batch_size=5).sample(grids, num_samples=5, seed=2)
    small = AncestralSampler(priors, batch_size=2).sample(grids, num_samples=5, seed=2)
    shared = [
        AncestralSampler(priors).sample(grids, num_samples=n, seed=2, first_sample=f) for f, n in ((0, 3), (3, 2))
    ]
    assert_same_draws(small, whole)
    assert_same_draws([torch.cat(parts) for parts in zip(*shared, strict=True)], whole)
    other = AncestralSampler(priors).sample(grids, num_samples=5, seed=3)
    assert not torch.equal(whole[-1], other[-1])


def test_over_a_large_draw_near_ties_are_few_and_only_they_could_differ():
    """Cached logits are off by less than 1e-5: codes may differ only where the two best are about as close."""
    prior = gated(16, sharp=3.0).eval()
    grid, count = (12, 12), 32
    (codes,) = AncestralSampler([prior], batch_size=count).sample([grid], num_samples=count, seed=5)
    with torch.no_grad():
        logits_bkn = prior(codes).flatten(2)
    noise_bnk = GumbelNoise(5, level=0, num_codes=16).rows(range(count), first=0, count=144)
    best = (logits_bkn.movedim(1, 2) + noise_bnk).topk(2, dim=2)
    differs = best.indices[..., 0] != codes.flatten(1)
    near_tie = best.values[..., 0] - best.values[..., 1] < 1e-5
    assert near_tie.float().mean() < 1e-3
    assert not torch.any(differs & ~near_tie)


def all_grids(num_codes, grid):
    size = int(np.prod(grid))
    return torch.tensor(list(itertools.product(range(num_codes), repeat=size))).view(-1, *grid)


@pytest.mark.parametrize("prior", [gated(3), MaskedPixelCNN(3, channels=8, num_blocks=2)], ids=["gated", "masked"])
def test_the_probabilities_of_all_grids_sum_to_one(prior):
    (log_prob,) = AncestralSampler([prior], batch_size=50).log_prob([all_grids(3, (2, 2))])
    assert log_prob.shape == (81,)
    assert log_prob.double().exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "grids", [[(1, 2), (2, 3)], [(1, 1), (1, 2), (2, 2)], [(1, 1, 1), (1, 1, 2), (1, 2, 2)]], ids=str
)
def test_the_probabilities_of_a_whole_hierarchy_sum_to_one(grids):
    dims = len(grids[0])
    priors = [gated(2, dims, coarser_codes=[2] * level, seed=level) for level in range(len(grids))]
    every = [all_grids(2, grid) for grid in grids]
    picks = torch.cartesian_prod(*(torch.arange(len(level)) for level in every)).unbind(1)
    codes = [level[pick] for level, pick in zip(every, picks, strict=True)]
    log_probs = AncestralSampler(priors, batch_size=128).log_prob(codes)
    assert sum(log_probs).double().exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("spatial_dims", "levels"), RANGE)
def test_log_prob_maps_hold_each_codes_nats_and_add_up_to_log_prob(spatial_dims, levels):
    priors, grids = hierarchy(spatial_dims, levels), grids_of(spatial_dims, levels)
    codes = [torch.randint(size, (3, *grid)) for size, grid in zip(SIZES, grids, strict=False)]
    sampler = AncestralSampler(priors, batch_size=2)
    maps, sums = sampler.log_prob_maps(codes), sampler.log_prob(codes)
    for level, prior in enumerate(priors):
        assert maps[level].dtype == torch.float32
        with torch.no_grad():
            logits = prior.eval()(codes[level], codes[:level])
        expected = -torch.nn.functional.cross_entropy(logits, codes[level], reduction="none")
        torch.testing.assert_close(maps[level], expected)
        torch.testing.assert_close(maps[level].flatten(1).sum(1), sums[level])


def test_log_prob_is_the_chain_rule_over_positions_with_its_condition():
    prior = gated(4, condition_dim=2).eval()
    codes, condition = torch.randint(4, (3, 2, 3)), torch.randn(3, 2)
    (log_prob,) = AncestralSampler([prior], batch_size=2).log_prob([codes], condition)
    expected = torch.zeros(3)
    for y, x in itertools.product(range(2), range(3)):
        with torch.no_grad():
            logits = prior(codes, (), condition)[:, :, y, x]
        expected += logits.log_softmax(1)[torch.arange(3), codes[:, y, x]]
    torch.testing.assert_close(log_prob, expected)


def test_samples_follow_the_enumerated_distribution():
    prior, grids = gated(3), all_grids(3, (2, 2))
    sampler = AncestralSampler([prior], batch_size=1000)
    (drawn,) = sampler.sample([(2, 2)], num_samples=3000, seed=1)
    probability = sampler.log_prob([grids])[0].double().exp().numpy()
    index = (drawn.flatten(1) * torch.tensor([27, 9, 3, 1])).sum(1)
    observed = np.bincount(index.numpy(), minlength=81)
    common = probability * 3000 > 5
    observed = np.append(observed[common], observed[~common].sum())
    expected = np.append(probability[common], probability[~common].sum()) / probability.sum() * 3000
    assert stats.chisquare(observed, expected).pvalue > 0.001


def test_completion_follows_the_enumerated_conditional_distribution_of_what_comes_before():
    """Known codes first, then two unknown: their distribution given the known ones is exact."""
    prior, count = gated(3), 2000
    sampler = AncestralSampler([prior], batch_size=1000)
    known = torch.tensor([[2, 0], [0, 0]]).expand(count, 2, 2)
    mask = torch.tensor([[False, False], [True, True]])
    (drawn,) = sampler.complete([known], [mask], seed=4)
    assert torch.all(drawn[:, 0] == known[:, 0])
    grids = all_grids(3, (2, 2))
    joint = sampler.log_prob([grids])[0].double().exp().numpy()
    fits = ((grids[:, 0, 0] == 2) & (grids[:, 0, 1] == 0)).numpy()
    expected = joint[fits] / joint[fits].sum() * count
    observed = np.bincount((drawn[:, 1, 0] * 3 + drawn[:, 1, 1]).numpy(), minlength=9)
    assert stats.chisquare(observed, expected).pvalue > 0.001


@pytest.mark.parametrize(("spatial_dims", "levels"), RANGE)
def test_completion_leaves_known_codes_alone_at_every_level_and_agrees_with_the_plain_path(spatial_dims, levels):
    priors = hierarchy(spatial_dims, levels)
    codes = AncestralSampler(priors).sample(grids_of(spatial_dims, levels), num_samples=3, seed=0)
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(c.shape, generator=generator) < 0.4 for c in codes]
    before = [c.clone() for c in codes]
    results = [AncestralSampler(priors, cached=cached).complete(codes, masks, seed=9) for cached in (True, False)]
    assert_same_draws(*results)
    for level in range(levels):
        assert torch.equal(codes[level], before[level])
        assert torch.equal(results[0][level][~masks[level]], codes[level][~masks[level]])
        assert not torch.equal(results[0][level], codes[level])


def test_completing_everything_is_sampling_and_completing_nothing_is_nothing():
    priors, grids = hierarchy(levels=3), grids_of(levels=3)
    sampler = AncestralSampler(priors)
    codes = sampler.sample(grids, num_samples=2, seed=6)
    anything = [torch.full_like(c, -9) for c in codes]
    everything = sampler.complete(anything, [torch.ones(g, dtype=torch.bool) for g in grids], seed=6)
    nothing = sampler.complete(codes, [torch.zeros(g, dtype=torch.bool) for g in grids], seed=8)
    for level in range(3):
        assert torch.equal(everything[level], codes[level])
        assert torch.equal(nothing[level], codes[level])


def test_a_prior_that_memorized_one_grid_reproduces_it():
    prior = gated(6, dropout=0.0, sharp=1.0)
    target = torch.randint(6, (1, 4, 4), generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for _ in range(120):
        loss = torch.nn.functional.cross_entropy(prior(target), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sampler = AncestralSampler([prior])
    (drawn,) = sampler.sample([(4, 4)], num_samples=4)
    assert torch.equal(drawn, target.expand(4, -1, -1))
    assert sampler.log_prob([target])[0].item() > -0.5


def test_dropout_plays_no_part_and_the_mode_is_left_as_it_was():
    prior = gated(dropout=0.9)
    expected = AncestralSampler([prior.eval()]).sample([(4, 4)], num_samples=2)[0]
    prior.train()
    prior.layers[0].eval()
    sampler = AncestralSampler([prior])
    assert torch.equal(sampler.sample([(4, 4)], num_samples=2)[0], expected)
    assert torch.equal(sampler.log_prob([expected])[0], sampler.log_prob([expected])[0])
    assert prior.training
    assert prior.layers[1].training
    assert not prior.layers[0].training


def test_a_condition_belongs_to_its_sample_whatever_the_batch():
    prior = gated(condition_dim=2)
    condition = torch.tensor([[3.0, -3.0], [-3.0, 3.0], [0.0, 5.0]])
    (drawn,) = AncestralSampler([prior], batch_size=2).sample([(4, 4)], num_samples=3, condition=condition)
    alone = [
        AncestralSampler([prior]).sample([(4, 4)], num_samples=1, first_sample=i, condition=condition[i : i + 1])[0]
        for i in range(3)
    ]
    assert_same_draws([torch.cat(alone)], [drawn])


def test_progress_reaches_its_total():
    calls = []
    AncestralSampler(hierarchy(), batch_size=2).sample(grids_of(), num_samples=3, progress=lambda *c: calls.append(c))
    assert calls[-1] == (3 * (12 + 42), 3 * (12 + 42))
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.sample(grids_of(), num_samples=0), "num_samples is 0"),
        (lambda s: s.sample(grids_of()[:1], num_samples=1), "1 grids given for 2 priors"),
        (lambda s: s.sample([(3, 4), (6,)], num_samples=1), "grid of level 1"),
        (lambda s: s.sample([(0, 4), (6, 7)], num_samples=1), "grid of level 0"),
        (lambda s: s.sample(grids_of()[::-1], num_samples=1), "coarsest first"),
        (lambda s: s.sample(grids_of(), num_samples=1, seed=-1), "seed is -1"),
        (lambda s: s.sample(grids_of(), num_samples=1, first_sample=-1), "first_sample is -1"),
        (lambda s: s.sample(grids_of(), num_samples=1, condition=torch.zeros(1, 2)), "no prior was trained with one"),
        (lambda s: s.log_prob([torch.zeros(1, 3, 4).long()]), "1 levels of codes"),
        (lambda s: s.log_prob([torch.zeros(1, 3, 4).long(), torch.full((1, 6, 7), 7)]), "level 1 reach from 7 to 7"),
        (lambda s: s.log_prob([torch.zeros(1, 3, 4).long(), torch.zeros(2, 6, 7).long()]), r"\[1, 2\] samples"),
        (lambda s: s.complete([torch.zeros(1, 3, 4).long()] * 2, [torch.ones(3, 4).bool()]), "1 masks"),
        (lambda s: s.complete([torch.zeros(1, 3, 4).long()], [torch.ones(3, 4)]), "mask of level 0"),
    ],
)
def test_what_cannot_work_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call(AncestralSampler(hierarchy()))


def test_priors_that_do_not_belong_together_are_refused():
    with pytest.raises(InputError, match="no priors"):
        AncestralSampler([])
    with pytest.raises(InputError, match=r"level 0 is for coarser codebooks of sizes \[5\]"):
        AncestralSampler(hierarchy()[::-1])
    with pytest.raises(InputError, match="batch_size is 0"):
        AncestralSampler(hierarchy(), batch_size=0)
    with pytest.raises(InputError, match="need a condition of"):
        AncestralSampler([gated(condition_dim=3)]).sample([(2, 2)], num_samples=1)
    with pytest.raises(InputError, match=r"give \(2, 3\) or \(1, 3\)"):
        AncestralSampler([gated(condition_dim=3)]).sample([(2, 2)], num_samples=2, condition=torch.zeros(2, 4))


def test_each_level_can_have_its_own_temperature():
    priors, grids = hierarchy(), [(2, 2), (4, 4)]

    def draw(temperature):
        return AncestralSampler(priors, temperature=temperature).sample(grids, num_samples=8, seed=1)

    warm, mixed = draw(1.0), draw([1.0, 1e-3])
    assert torch.equal(warm[0], mixed[0])
    assert not torch.equal(warm[1], mixed[1])
    likeliest = AncestralSampler(priors, top_k=1).complete(
        warm, [torch.zeros(2, 2, dtype=torch.bool), torch.ones(4, 4, dtype=torch.bool)]
    )
    assert torch.equal(mixed[1], likeliest[1])
    with pytest.raises(InputError, match="temperature has 3 values for 2 levels"):
        draw([1.0, 0.9, 0.8])


@pytest.mark.parametrize(("setting", "open_value", "tight"), [("top_k", None, 1), ("top_p", None, 1e-6)])
def test_each_level_can_be_truncated_by_itself(setting, open_value, tight):
    priors, grids = hierarchy(levels=3), grids_of(levels=3)

    def draw(*values, seed):
        sampler = AncestralSampler(priors, **{setting: list(values)})
        return sampler.sample(grids, num_samples=4, seed=seed)

    free, cut = (draw(open_value, open_value, value, seed=1) for value in (open_value, tight))
    assert torch.equal(free[0], cut[0])
    assert torch.equal(free[1], cut[1])
    assert not torch.equal(free[2], cut[2])
    first, second = (draw(tight, tight, tight, seed=seed) for seed in (1, 2))  # only the likeliest code is left
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    with pytest.raises(InputError, match=f"{setting} has 2 values for 3 levels"):
        draw(tight, tight, seed=1)
