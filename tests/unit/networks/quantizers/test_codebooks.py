"""Codebooks against numpy and their papers, the promises that peers break, and two processes that keep one."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from monai_vqgen.errors import InputError
from monai_vqgen.networks import EMACodebook, GradientCodebook
from monai_vqgen.networks.quantizers.codebooks import canonical_order, kmeans


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"warm_up": True}, [9 / 11, 9 / 12, 0.7]),
        ({"warm_up": False}, [0.7] * 3),
        ({"warm_up": True, "restart_below": 0.0, "decay": 0.7}, [0.3] * 30),  # nothing would bring codes back
    ],
)
def test_ema_update_agrees_with_numpy(options: dict, weights: list[float]) -> None:
    codebook = EMACodebook(5, 2, kmeans=False, **{"decay": 0.3, "restart_below": 1e-6, **options})
    rng = np.random.default_rng(2)
    counts, sums = np.ones(5), codebook.embeddings_kd.numpy().astype(np.float64)
    for weight in weights:
        latents = torch.from_numpy(rng.normal(size=(2, 2, 3, 3))).float()
        rows = latents.permute(0, 2, 3, 1).reshape(-1, 2).double().numpy()
        codes = ((rows[:, None] - codebook.embeddings_kd.double().numpy()) ** 2).sum(-1).argmin(1)
        onehot = np.eye(5)[codes]
        counts = (1 - weight) * counts + weight * onehot.sum(0)
        sums = (1 - weight) * sums + weight * onehot.T @ rows
        codebook.learn(latents, codebook(latents).codes_bs)
        np.testing.assert_allclose(codebook.counts_k.numpy(), counts, rtol=1e-4, atol=1e-6)
        smoothed = (counts + 1e-5) / (counts.sum() + 5e-5) * counts.sum()
        np.testing.assert_allclose(codebook.embeddings_kd.numpy(), sums / smoothed[:, None], rtol=2e-3, atol=1e-5)


def test_codes_that_the_first_latents_had_restart_soon_where_a_young_encoder_moves() -> None:
    used = {}
    for warm_up in (True, False):
        codebook = EMACodebook(32, 4, warm_up=warm_up)
        for step in range(20):
            latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(step)) + (10 if step else 0)
            codebook.prepare(latents)
            codes = codebook(latents).codes_bs
            codebook.learn(latents, codes)
        used[warm_up] = codes.unique().numel()
    assert used[True] > 24
    assert used[False] < 8


@pytest.mark.parametrize("initial_count", [0.0, 1.0])
def test_a_batch_without_content_changes_nothing(initial_count: float) -> None:
    codebook = EMACodebook(5, 2, kmeans=False, initial_count=initial_count)
    before = {name: value.clone() for name, value in codebook.state_dict().items()}
    codebook.learn(torch.empty(0, 2, 4, 4), torch.empty(0, 4, 4, dtype=torch.int64))
    for name, value in codebook.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_commitment_is_the_weighted_mean_squared_distance() -> None:
    codebook = EMACodebook(5, 2, commitment=0.5, kmeans=False)
    latents = torch.randn(1, 2, 4, 4)
    quantized = codebook(latents)
    expected = 0.5 * ((latents - codebook.lookup(quantized.codes_bs)) ** 2).mean()
    torch.testing.assert_close(quantized.loss, expected)


def mixture(vectors: int, centers: int, dim: int, seed: int) -> torch.Tensor:
    """Latents that support ``centers`` codes: a mixture of as many tight clusters."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(centers, dim, generator=torch.Generator().manual_seed(99))
    picks = torch.randint(centers, (vectors,), generator=generator)
    return (means[picks] + 0.02 * torch.randn(vectors, dim, generator=generator)).t().reshape(1, dim, vectors // 32, 32)


@pytest.mark.parametrize("by_kmeans", [True, False])
def test_cold_start_keeps_nine_tenths_of_512_codes_in_use(by_kmeans: bool) -> None:
    codebook = EMACodebook(512, 16, kmeans=by_kmeans, restart_below=0.1)
    for step in range(300):
        latents = mixture(2048, 600, 16, seed=step)
        codebook.prepare(latents)
        codebook.learn(latents, codebook(latents).codes_bs)
    used = codebook(mixture(32768, 600, 16, seed=1000)).codes_bs.unique().numel()
    assert used >= 0.9 * 512


def test_unused_codes_do_not_run_away_from_a_cold_start() -> None:
    codebook = EMACodebook(512, 16, kmeans=False, restart_below=0.0)
    latents = mixture(2048, 4, 16, seed=0)
    longest = codebook.embeddings_kd.norm(dim=1).max()
    codebook.learn(latents, codebook(latents).codes_bs)
    assert codebook.embeddings_kd.norm(dim=1).max() < 1.1 * longest


def test_counts_from_zero_drive_unused_codes_away_as_published() -> None:
    codebook = EMACodebook(512, 16, kmeans=False, restart_below=0.0, initial_count=0.0)
    latents = mixture(2048, 4, 16, seed=0)
    used = codebook(latents).codes_bs.unique().numel()
    codebook.learn(latents, codebook(latents).codes_bs)
    assert int((codebook.embeddings_kd.norm(dim=1) > 1e3).sum()) == 512 - used


def test_restart_resets_code_count_and_sum_together() -> None:
    codebook = EMACodebook(4, 2, kmeans=False, restart_below=0.5)
    codebook.counts_k[2] = 0.01
    codebook.embeddings_kd[2] = 1e3
    codebook.sums_kd[2] = 10.0
    latents = torch.randn(1, 2, 4, 4)
    codebook.learn(latents, codebook(latents).codes_bs)
    assert codebook.counts_k[2] == 1
    assert torch.equal(codebook.embeddings_kd[2], codebook.sums_kd[2])
    rows = latents.permute(0, 2, 3, 1).reshape(-1, 2)
    assert (rows == codebook.embeddings_kd[2]).all(1).any()
    codebook.learn(latents, codebook(latents).codes_bs)  # the next step must not undo it
    assert codebook.embeddings_kd[2].norm() < 10


def test_non_finite_latents_never_enter_the_codebook() -> None:
    codebook = EMACodebook(8, 2)
    latents = torch.randn(1, 2, 8, 8)
    latents[0, 0, 0, 0] = float("nan")
    latents[0, 1, 2, 2] = float("inf")
    codebook.prepare(latents)
    codebook.learn(latents, codebook(latents).codes_bs)
    for name, value in codebook.state_dict().items():
        assert torch.isfinite(value.double()).all(), name


def test_a_resumed_codebook_is_not_initialized_again() -> None:
    trained, resumed = EMACodebook(8, 2), EMACodebook(8, 2)
    trained.prepare(torch.randn(1, 2, 8, 8))
    resumed.load_state_dict(trained.state_dict())
    resumed.prepare(100 + torch.randn(1, 2, 8, 8))
    assert torch.equal(resumed.embeddings_kd, trained.embeddings_kd)


def test_kmeans_finds_separated_clusters_whatever_the_order_of_rows() -> None:
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    rows = (centers[:, None] + 0.1 * torch.randn(4, 50, 2, generator=torch.Generator().manual_seed(3))).reshape(-1, 2)
    shuffled = rows[torch.randperm(200, generator=torch.Generator().manual_seed(4))]
    found = []
    for given in (rows, shuffled):
        generator = torch.Generator().manual_seed(0)
        found.append(kmeans(canonical_order(given, generator), 4, generator=generator))
    torch.testing.assert_close(found[0], found[1])
    assert torch.cdist(centers, found[0]).min(1).values.max() < 0.1


def test_a_codebook_learns_alike_inside_and_outside_autocast() -> None:
    outside, inside = EMACodebook(16, 4), EMACodebook(16, 4)
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(6))
    inside.load_state_dict(outside.state_dict())
    for codebook, enabled in ((outside, False), (inside, True)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            codebook.prepare(latents)
            codebook.learn(latents, codebook(latents).codes_bs)
    assert torch.equal(outside.embeddings_kd, inside.embeddings_kd)


def test_kmeans_start_with_counts_at_zero_keeps_the_centers() -> None:
    codebook = EMACodebook(8, 2, initial_count=0.0)
    codebook.prepare(torch.randn(1, 2, 8, 8))
    torch.testing.assert_close(codebook.sums_kd, codebook.embeddings_kd)


def test_fewer_rows_than_codes_still_initialize_every_code() -> None:
    codebook = EMACodebook(64, 2)
    codebook.prepare(torch.randn(1, 2, 2, 2))
    assert codebook.embeddings_kd.unique(dim=0).shape[0] == 64


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: EMACodebook(1, 4), "num_codes=1"),
        (lambda: EMACodebook(8, 4, decay=1.0), "decay"),
        (lambda: EMACodebook(8, 4, restart_below=2.0), "restart_below"),
        (lambda: EMACodebook(8, 4, initial_count=-1.0), "initial_count"),
        (lambda: EMACodebook(8, 4, gradient_estimator="gumbel"), "straight_through"),
        (lambda: GradientCodebook(8, 0), "dim=0"),
        (lambda: GradientCodebook(1, 4), "num_codes=1"),
        (lambda: GradientCodebook(8, 4, gradient_estimator="gumbel"), "rotation"),
    ],
)
def test_a_value_out_of_range_is_named(build, match: str) -> None:
    with pytest.raises(InputError, match=match):
        build()


@pytest.mark.parametrize("spatial", [(4, 4), (2, 3, 4)])
def test_loss_is_equation_3_of_the_paper(spatial: tuple[int, ...]) -> None:
    codebook = GradientCodebook(5, 2, commitment=0.5)
    latents = torch.randn(2, 2, *spatial, requires_grad=True)
    quantized = codebook(latents)
    distance = ((latents - codebook.lookup(quantized.codes_bs)) ** 2).mean()
    torch.testing.assert_close(quantized.loss, 1.5 * distance)
    (gradient,) = torch.autograd.grad(quantized.loss, latents)  # the codebook term stops at the latents
    (whole,) = torch.autograd.grad(distance, latents)
    torch.testing.assert_close(gradient, 0.5 * whole)


def test_gradient_codebook_moves_only_chosen_codes() -> None:
    codebook = GradientCodebook(6, 2)
    quantized = codebook(torch.ones(1, 2, 3, 3))
    quantized.loss.backward()
    assert codebook.embeddings_kd.grad is not None
    moved = codebook.embeddings_kd.grad.abs().sum(1) > 0
    assert set(torch.nonzero(moved).flatten().tolist()) == set(quantized.codes_bs.unique().tolist())


STEPS, MOVE, CODES, DIM = 45, 10, 8, 3
ROWS = (40, 13)  # of each rank


def learn(rank: int, port: int, folder: str) -> None:
    """One rank: its own latents, uneven in number; writes its buffers, and which codes restarted at each step."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        torch.manual_seed(0)
        codebook = EMACodebook(CODES, DIM, restart_below=0.95, decay=0.9)
        generator = torch.Generator().manual_seed(100 + rank)
        restarts = 0
        for step in range(STEPS):
            # Clusters that move once: codes of the old ones fall out of use, until their counts are low enough.
            centers_nd = torch.randn(3, DIM, generator=torch.Generator().manual_seed(int(step >= MOVE))) * 10
            picks = torch.randint(0, 3, (ROWS[rank],), generator=generator)
            latents_bds = (centers_nd[picks] + torch.randn(ROWS[rank], DIM, generator=generator)).T[None]
            codebook.prepare(latents_bds)
            codes_bs = codebook(latents_bds).codes_bs
            batch_counts_k = torch.bincount(codes_bs.flatten(), minlength=CODES).float()
            dist.all_reduce(batch_counts_k)
            decayed_k = codebook.counts_k.lerp(batch_counts_k, codebook._weight())
            codebook.learn(latents_bds, codes_bs)
            restarted_k = (decayed_k < 0.95) & (codebook.counts_k == 1)
            assert torch.equal(codebook.sums_kd[restarted_k], codebook.embeddings_kd[restarted_k])
            restarts += int(restarted_k.sum())
        torch.save({"buffers": codebook.state_dict(), "restarts": restarts}, Path(folder) / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_codebooks_stay_equal_through_restarts_when_the_shares_are_uneven(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(learn, args=(port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["restarts"] == second["restarts"] > 0
    for name, tensor in first["buffers"].items():
        assert torch.equal(tensor, second["buffers"][name]), name
