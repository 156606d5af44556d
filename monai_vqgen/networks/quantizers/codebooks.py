"""Codebooks that learn: the default by k-means and exponential moving averages, another by gradient descent.

Shape suffixes: b batch, s spatial axes (2 or 3), d code dimension, k codebook size, n vectors.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from monai_vqgen.errors import InputError
from monai_vqgen.networks.quantizers.base import Codebook, in_float64, nearest_codes, to_rows

_SMOOTHING = 1e-5  # Laplace smoothing of counts, as in the code published with the paper (sonnet)
_LARGEST = 1e15  # of a latent's coordinates: a million latents' sums and squared distances stay finite in float32
_KMEANS_ROWS_PER_CODE = 32  # Lloyd's algorithm gains little from more (faiss warns below 39)


class EMACodebook(Codebook):
    """Vector quantizer whose codebook follows the latents by exponential moving averages.

    ::

        latents ──nearest──> codes ──lookup──> embeddings
           └── counts <- g counts + (1-g) n,  sums <- g sums + (1-g) sum,  embedding = sum / count

    van den Oord et al. 2017, appendix A.1, equations 6 to 8, with five changes: counts start at one (from zero, codes
    that are not chosen at once leave for vectors of length 1e5); the codebook starts as the k-means centers of the
    first training batch; after n updates g is at most (2 + n) / (11 + n), so that the codebook follows the latents of a
    young encoder, and codes that are left behind, or rare, restart within ten steps or so; a code whose count falls
    below ``restart_below`` restarts as a latent of the batch, its count and sum with it; latents that are not finite,
    or have a coordinate beyond 1e15, never enter the averages. A batch without any changes nothing. All statistics
    are float32, also under autocast, and are shared by all processes.

    Args:
        num_codes: codebook size K.
        dim: code dimension D.
        decay: g above.
        commitment: weight of the commitment loss, the mean squared distance of latents to their codes.
        restart_below: EMA count under which a code restarts; 0 switches restarts off.
        kmeans: initialize from the first training batch; if False, embeddings start as standard normals.
        gradient_estimator: ``"straight_through"`` or ``"rotation"``.
        initial_count: EMA count that each code starts with; 0 is the published behavior.
        warm_up: let g rise to ``decay`` over the first updates, where codes restart; False is the published behavior.

    Raises:
        InputError: for a value outside its range.

    Examples:
        >>> codebook = EMACodebook(512, 16)
        >>> codebook(torch.randn(2, 16, 8, 8)).codes_bs.shape
        torch.Size([2, 8, 8])
    """

    embeddings_kd: Tensor
    counts_k: Tensor
    sums_kd: Tensor
    num_updates: Tensor
    initialized: Tensor

    def __init__(
        self,
        num_codes: int = 512,
        dim: int = 16,
        *,
        decay: float = 0.99,
        commitment: float = 0.25,
        restart_below: float = 0.1,
        kmeans: bool = True,
        gradient_estimator: str = "straight_through",
        initial_count: float = 1.0,
        warm_up: bool = True,
    ) -> None:
        super().__init__(num_codes, dim, commitment=commitment, gradient_estimator=gradient_estimator)
        if not 0 <= decay < 1:
            raise InputError(f"decay={decay} must lie in [0, 1)")
        if restart_below >= 1:
            raise InputError(f"restart_below={restart_below} must be under 1, the count that a code starts with")
        if initial_count < 0:
            raise InputError(f"initial_count={initial_count} must not be negative")
        self.decay, self.restart_below, self.kmeans = decay, restart_below, kmeans
        self.initial_count, self.warm_up = float(initial_count), warm_up
        embeddings_kd = torch.randn(num_codes, dim)
        self.register_buffer("embeddings_kd", embeddings_kd)
        self.register_buffer("counts_k", torch.full((num_codes,), self.initial_count))
        self.register_buffer("sums_kd", embeddings_kd * (initial_count or 1.0))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("initialized", torch.tensor(not kmeans))

    def prepare(self, latents_bds: Tensor) -> None:
        """Initialize the codebook by k-means over the first training batch of all processes."""
        if not self.initialized:
            with torch.no_grad(), torch.autocast(latents_bds.device.type, enabled=False):
                self._initialize(to_rows(latents_bds.detach()))

    def _initialize(self, rows_nd: Tensor) -> None:
        sound_n = _sound_mask(rows_nd)
        rows_nd = all_gather_rows(rows_nd if sound_n is None else rows_nd[sound_n])
        if rows_nd.shape[0] == 0:
            return
        generator = torch.Generator().manual_seed(0)
        rows_nd = canonical_order(rows_nd, generator)
        most = self.num_codes * _KMEANS_ROWS_PER_CODE
        if rows_nd.shape[0] > most:
            rows_nd = rows_nd[torch.randperm(rows_nd.shape[0], generator=generator)[:most].sort().values]
        self.embeddings_kd.copy_(kmeans(rows_nd, self.num_codes, generator=generator))
        self.sums_kd.copy_(self.embeddings_kd * (self.initial_count or 1.0))
        self.initialized.fill_(True)

    def update(self, latents_bds: Tensor, codes_bs: Tensor) -> None:
        """Move counts, sums and embeddings towards a training batch; restart codes that fell out of use."""
        with torch.no_grad(), torch.autocast(latents_bds.device.type, enabled=False):
            self._follow(to_rows(latents_bds.detach()), codes_bs.reshape(-1))

    def _follow(self, rows_nd: Tensor, codes_n: Tensor) -> None:
        sound_n = _sound_mask(rows_nd)
        if sound_n is not None:
            rows_nd, codes_n = rows_nd[sound_n], codes_n[sound_n]
        batch_sums_kd = torch.zeros_like(self.sums_kd).index_add_(0, codes_n, rows_nd)
        batch_counts_k = torch.bincount(codes_n, minlength=self.num_codes).to(self.counts_k.dtype)
        all_reduce_sum(batch_sums_kd)
        all_reduce_sum(batch_counts_k)
        if not batch_counts_k.any():
            return
        weight = self._weight()
        self.counts_k.lerp_(batch_counts_k, weight)
        self.sums_kd.lerp_(batch_sums_kd, weight)
        total = self.counts_k.sum()
        smoothed_k = (self.counts_k + _SMOOTHING) / (total + self.num_codes * _SMOOTHING) * total
        torch.div(self.sums_kd, smoothed_k[:, None], out=self.embeddings_kd)
        self._restart(rows_nd)
        self.num_updates.add_(1)

    def _weight(self) -> Tensor:
        """1 - g, 0-dim. Without restarts no code may be forgotten fast: smoothing would pull it to the origin."""
        weight = torch.full_like(self.counts_k[0], 1 - self.decay)
        if self.warm_up and self.restart_below > 0:
            weight = weight.clamp_min((9 / (11 + self.num_updates)).to(weight.dtype))
        return weight

    def _restart(self, rows_nd: Tensor) -> None:
        dead = torch.nonzero(self.counts_k < self.restart_below).flatten()
        if dead.numel() == 0:
            return
        candidates_nd = all_gather_rows(rows_nd)  # all, so that the choice does not depend on who holds which
        if candidates_nd.shape[0] == 0:
            return
        generator = torch.Generator().manual_seed(int(self.num_updates))
        candidates_nd = canonical_order(candidates_nd, generator)
        order = torch.randperm(candidates_nd.shape[0], generator=generator)[: dead.numel()]
        dead, fresh_nd = dead[: order.numel()], candidates_nd[order]
        self.embeddings_kd[dead] = fresh_nd
        self.counts_k[dead] = 1.0
        self.sums_kd[dead] = fresh_nd


class GradientCodebook(Codebook):
    """Vector quantizer whose codebook is a parameter, pulled to the latents by the codebook loss.

    van den Oord et al. 2017, equation 3: ``||sg[z] - e||^2 + commitment ||z - sg[e]||^2``, means over elements.

    Args:
        num_codes: codebook size K.
        dim: code dimension D.
        commitment: weight of the commitment term.
        gradient_estimator: ``"straight_through"`` or ``"rotation"``.

    Raises:
        InputError: for a value outside its range.

    Examples:
        >>> codebook = GradientCodebook(16, 4)
        >>> codebook(torch.zeros(1, 4, 2, 2)).loss.item() > 0
        True
    """

    def __init__(
        self,
        num_codes: int = 512,
        dim: int = 16,
        *,
        commitment: float = 0.25,
        gradient_estimator: str = "straight_through",
    ) -> None:
        super().__init__(num_codes, dim, commitment=commitment, gradient_estimator=gradient_estimator)
        self.embeddings_kd = nn.Parameter(torch.empty(num_codes, dim).uniform_(-1 / num_codes, 1 / num_codes))

    def _loss(self, rows_nd: Tensor, chosen_nd: Tensor) -> Tensor:
        return F.mse_loss(chosen_nd, rows_nd.detach()) + super()._loss(rows_nd, chosen_nd)


def _sound_mask(rows_nd: Tensor) -> Tensor | None:
    """Return which rows are finite and of bearable size, or None where all are: extremes cost less than a mask."""
    if rows_nd.numel() == 0:
        return None
    low, high = rows_nd.aminmax()
    if torch.maximum(-low, high) <= _LARGEST:  # which no NaN is
        return None
    return (rows_nd.abs() <= _LARGEST).all(1)


@torch.no_grad()
def canonical_order(rows_nd: Tensor, generator: torch.Generator) -> Tensor:
    """Return ``rows_nd`` sorted by a seeded random projection.

    The same set of rows gives the same order however it was spread over batches or processes, so what is drawn by
    index afterwards does not depend on the number of processes.
    """
    direction_d = torch.randn(rows_nd.shape[1], generator=generator, dtype=torch.float64)
    wide_nd = in_float64(rows_nd)
    return rows_nd[torch.argsort(wide_nd @ direction_d.to(wide_nd.device)).to(rows_nd.device)]


@torch.no_grad()
def kmeans(rows_nd: Tensor, num_codes: int, *, generator: torch.Generator, iterations: int = 10) -> Tensor:
    """Cluster rows into ``num_codes`` centers ``(k, d)`` by Lloyd's algorithm from k-means++ seeds.

    With fewer rows than centers the rows repeat with a small seeded jitter (1 % of the rows' deviation).

    The CPU generator draws the seeds (Arthur and Vassilvitskii 2007); at least one row, all finite.
    """
    if rows_nd.shape[0] < num_codes:
        return _repeat_with_jitter(rows_nd, num_codes, generator)
    centers_kd = _seed_plus_plus(rows_nd, num_codes, generator)
    for _ in range(iterations):
        codes_n = nearest_codes(rows_nd, centers_kd)
        sums_kd = torch.zeros_like(centers_kd).index_add_(0, codes_n, rows_nd)
        counts_k = torch.bincount(codes_n, minlength=num_codes).to(rows_nd.dtype)
        filled = counts_k > 0
        centers_kd[filled] = sums_kd[filled] / counts_k[filled, None]
    return centers_kd


def _seed_plus_plus(rows_nd: Tensor, num_codes: int, generator: torch.Generator) -> Tensor:
    uniform_k = torch.rand(num_codes, generator=generator, dtype=torch.float64)
    centers_kd = rows_nd.new_empty(num_codes, rows_nd.shape[1])
    squared_n = rows_nd.square().sum(1)
    distance_n = torch.full_like(squared_n, torch.inf)
    index = int(uniform_k[0] * rows_nd.shape[0])
    for k in range(num_codes):
        centers_kd[k] = rows_nd[index]
        to_center_n = (squared_n - 2 * (rows_nd @ rows_nd[index]) + squared_n[index]).clamp_min_(0)
        torch.minimum(distance_n, to_center_n, out=distance_n)
        cumulative_n = in_float64(distance_n).cumsum(0)
        target = uniform_k[(k + 1) % num_codes].to(cumulative_n.device) * cumulative_n[-1]
        index = min(int(torch.searchsorted(cumulative_n, target)), rows_nd.shape[0] - 1)
    return centers_kd


def _repeat_with_jitter(rows_nd: Tensor, num_codes: int, generator: torch.Generator) -> Tensor:
    picks = torch.arange(num_codes, device=rows_nd.device) % rows_nd.shape[0]
    spread_d = rows_nd.std(0, unbiased=False) + 1e-3
    jitter_kd = torch.randn(num_codes, rows_nd.shape[1], generator=generator).to(rows_nd)
    jitter_kd[: rows_nd.shape[0]] = 0
    return rows_nd[picks] + 0.01 * spread_d * jitter_kd


def _is_parallel() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Add ``tensor`` up over all processes, in place."""
    if _is_parallel():
        dist.all_reduce(tensor)
    return tensor


def all_gather_rows(rows_nd: Tensor) -> Tensor:
    """Return the rows of all processes, rank by rank; the number of rows may differ between processes."""
    if not _is_parallel():
        return rows_nd
    parts: list[Tensor] = [rows_nd] * dist.get_world_size()
    dist.all_gather_object(parts, rows_nd.cpu())
    return torch.cat(parts).to(rows_nd.device)
