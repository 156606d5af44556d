"""What every quantizer keeps to, and what codebooks share: nearest codes and the gradient past them.

Shape suffixes: b batch, s spatial axes (2 or 3), d code dimension, k codebook size, n vectors.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_vqgen.errors import InputError
from monai_vqgen.networks.architecture import Recorded

ESTIMATORS = ("straight_through", "rotation")
_EPSILON = 1e-6  # keeps the rotation defined for vectors of length zero
_CPU_CHUNK_ELEMENTS = 1 << 17  # distances held at once: 512 KiB of float32, which stays in a core's second-level cache
_DEVICE_CHUNK_ELEMENTS = 1 << 24  # 64 MiB, enough to fill a GPU with one product
_LANES = 32  # columns left for argmin after amin; measured best of 16, 32 and 64 for 512 codes


class Quantized(NamedTuple):
    """What quantizing a latent map gives.

    Attributes:
        embeddings_bds: the chosen codes' vectors; gradients pass on to the latents (straight-through or rotated).
        codes_bs: the chosen codes, int64.
        loss: scalar to add to the training loss, weights included; zero for quantizers that need none.

    Examples:
        >>> from monai_vqgen.networks import FiniteScalarQuantizer
        >>> embeddings_bds, codes_bs, loss = FiniteScalarQuantizer([3, 3])(torch.rand(1, 2, 4, 4))
        >>> embeddings_bds.shape, codes_bs.shape
        (torch.Size([1, 2, 4, 4]), torch.Size([1, 4, 4]))
    """

    embeddings_bds: Tensor
    codes_bs: Tensor
    loss: Tensor


class Quantizer(Recorded, nn.Module, ABC):
    """Turns latent vectors into codes and back; the base of every quantizer.

    ``forward`` and ``lookup`` never change a buffer, in either mode. Only `prepare` and `learn` do, and only the
    autoencoder's training pass calls them. A quantizer that learns without gradients overrides `update`.

    The name of a new one goes into the `__init__` of `networks`, which lists all that saved weights may name, and onto
    the page `docs/api/networks.md`. A config then takes it in ``network_def::quantizers``, a list of one a level, such
    as ``{"_target_": "monai_vqgen.networks.FiniteScalarQuantizer", "levels": [8, 6, 5]}``.

    Quantizers stay in float32 when the network around them is cast by ``half()``, ``bfloat16()`` or ``double()``: which
    code is nearest is decided by differences that half precision does not hold. The autoencoder casts what they give.

    Attributes:
        num_codes: how many codes there are (K).
        dim: length of a latent vector (D).

    Examples:
        >>> class Sign(Quantizer):
        ...     num_codes, dim = 2, 1
        ...
        ...     def forward(self, latents_bds):
        ...         codes_bs = (latents_bds[:, 0] > 0).long()
        ...         return Quantized(self.lookup(codes_bs), codes_bs, latents_bds.new_zeros(()))
        ...
        ...     def lookup(self, codes_bs):
        ...         return (2.0 * codes_bs - 1)[:, None]
        >>> Sign()(torch.tensor([[[-3.0, 0.5]]])).codes_bs
        tensor([[0, 1]])
    """

    num_codes: int
    dim: int
    _deferring = False
    _deferred: list[tuple[Tensor, Tensor]]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move parameters and buffers where a cast or a move of the network takes them, their types kept."""

        def keep_type(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

        return super()._apply(keep_type, recurse)

    @abstractmethod
    def forward(self, latents_bds: Tensor) -> Quantized:
        """Quantize ``latents_bds`` (float, any spatial size, an empty batch included)."""

    @abstractmethod
    def lookup(self, codes_bs: Tensor) -> Tensor:
        """Return the vectors ``(b, d, *s)`` of ``codes_bs`` (integers in ``[0, num_codes)``)."""

    def prepare(self, latents_bds: Tensor) -> None:
        """Called with a training batch's latents before they are quantized; may initialize from them."""

    def learn(self, latents_bds: Tensor, codes_bs: Tensor) -> None:
        """Called after a training batch was quantized: `update` at once, or when `deferred_learning` ends."""
        if self._deferring:
            self._defer(latents_bds, codes_bs)
        else:
            self.update(latents_bds, codes_bs)

    def update(self, latents_bds: Tensor, codes_bs: Tensor) -> None:
        """Change whatever is learned without gradients, from latents and their codes ``(b, *s)``."""

    @contextlib.contextmanager
    def deferred_learning(self) -> Iterator[None]:
        """Inside the block batches are only collected; at its end one `update` learns from all of them.

        Where the block raises, nothing is learned. Batches are joined in their order, so several parts of a batch
        change the quantizer as the whole batch would.

        Examples:
            >>> from monai_vqgen.networks import EMACodebook
            >>> codebook = EMACodebook(4, 2, kmeans=False)
            >>> with codebook.deferred_learning():
            ...     for latents in torch.rand(6, 2, 5).split(2):
            ...         codebook.learn(latents, codebook(latents).codes_bs)
            >>> int(codebook.num_updates)
            1
        """
        self._deferring, self._deferred = True, []
        try:
            yield
        finally:
            self._deferring = False
            deferred, self._deferred = self._deferred, []
        if deferred:
            latents, codes = zip(*deferred, strict=True)
            self.update(torch.cat(latents), torch.cat(codes))

    @torch.compiler.disable
    def _defer(self, latents_bds: Tensor, codes_bs: Tensor) -> None:
        self._deferred.append((latents_bds.detach(), codes_bs))


def learned(quantizer: Quantizer, latents_bds: Tensor) -> Quantized:
    """Quantize a training batch's latents, and let the quantizer learn from them."""
    quantizer.prepare(latents_bds)
    quantized: Quantized = quantizer(latents_bds)
    quantizer.learn(latents_bds, quantized.codes_bs)
    return quantized


class BlankCells(Quantizer):
    """A quantizer's codes and one more, the last, for blank cells; its vector is a parameter."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.num_codes, self.dim = quantizer.num_codes + 1, quantizer.dim
        self.blank_d = nn.Parameter(torch.randn(quantizer.dim))

    def forward(self, latents_bds: Tensor) -> Quantized:
        """Quantize latents of which no cell is blank."""
        return cast("Quantized", self.quantizer(latents_bds))

    def lookup(self, codes_bs: Tensor) -> Tensor:
        """Return the vectors ``(b, d, *s)`` of codes."""
        known = self.num_codes - 1
        return self._merged(self.quantizer.lookup(codes_bs.clamp(max=known - 1)), codes_bs < known)

    def marked(self, latents_bds: Tensor, filled_bs: Tensor) -> Quantized:
        """Quantize with blank cells marked; changes nothing. The loss counts blank cells like all others."""
        found = self(latents_bds)
        codes_bs = torch.where(filled_bs, found.codes_bs, self.num_codes - 1)
        return Quantized(self._merged(found.embeddings_bds, filled_bs), codes_bs, found.loss)

    def learned(self, latents_bds: Tensor, filled_bs: Tensor) -> Quantized:
        """The same for a training batch, from whose filled cells alone the quantizer learns."""
        found = learned(self.quantizer, latents_bds.movedim(1, -1)[filled_bs])  # embeddings (n, d), codes (n,)
        codes_bs = torch.full_like(filled_bs, self.num_codes - 1, dtype=torch.int64)
        codes_bs[filled_bs] = found.codes_bs
        shape = (*filled_bs.shape, self.dim)
        embeddings_bsd = found.embeddings_bds.new_zeros(shape).masked_scatter(
            filled_bs[..., None], found.embeddings_bds
        )
        return Quantized(self._merged(embeddings_bsd.movedim(-1, 1), filled_bs), codes_bs, found.loss)

    def _merged(self, embeddings_bds: Tensor, filled_bs: Tensor) -> Tensor:
        blank = self.blank_d.view(1, -1, *[1] * (filled_bs.ndim - 1))
        return torch.where(filled_bs[:, None], embeddings_bds, blank)


def in_float64(tensor: Tensor) -> Tensor:
    """The values in float64, on the CPU where their device has none (Apple's GPUs)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def to_rows(latents_bds: Tensor) -> Tensor:
    """Flatten ``(b, d, *s)`` to float32 rows ``(n, d)``, raster order within an image."""
    return latents_bds.movedim(1, -1).reshape(-1, latents_bds.shape[1]).float()


def rows_to_grid(rows_nd: Tensor, like_bds: Tensor) -> Tensor:
    """Undo :func:`to_rows`: give the rows the batch and spatial shape of ``like_bds``."""
    batch, _, *spatial = like_bds.shape
    return torch.movedim(rows_nd.reshape(batch, *spatial, rows_nd.shape[1]), -1, 1)


class Codebook(Quantizer):
    """A quantizer to the nearest of some vectors, ``embeddings_kd``, which subclasses make and learn.

    Its loss is ``commitment`` times the mean squared distance of latents to their codes.
    """

    embeddings_kd: Tensor

    def __init__(self, num_codes: int, dim: int, *, commitment: float, gradient_estimator: str) -> None:
        super().__init__()
        if num_codes < 2 or dim < 1:
            raise InputError(f"num_codes={num_codes}, dim={dim}: at least 2 codes of at least 1 dimension are needed")
        if gradient_estimator not in ESTIMATORS:
            known = ", ".join(ESTIMATORS)
            raise InputError(f"gradient_estimator={gradient_estimator!r} is not known: choose one of {known}")
        self.num_codes, self.dim = num_codes, dim
        self.commitment, self.gradient_estimator = commitment, gradient_estimator

    def forward(self, latents_bds: Tensor) -> Quantized:
        """Quantize latents ``(b, d, *s)``; pure in both modes."""
        with torch.autocast(latents_bds.device.type, enabled=False):
            rows_nd = to_rows(latents_bds)
            codes_n = nearest_codes(rows_nd, self.embeddings_kd.detach())
            chosen_nd = F.embedding(codes_n, self.embeddings_kd)
            loss = self._loss(rows_nd, chosen_nd) if rows_nd.shape[0] else rows_nd.sum()
            embeddings_nd = pass_gradient(rows_nd, chosen_nd, self.gradient_estimator)
        codes_bs = codes_n.reshape(latents_bds.shape[0], *latents_bds.shape[2:])
        return Quantized(rows_to_grid(embeddings_nd, latents_bds), codes_bs, loss)

    def _loss(self, rows_nd: Tensor, chosen_nd: Tensor) -> Tensor:
        return self.commitment * F.mse_loss(rows_nd, chosen_nd.detach())

    def lookup(self, codes_bs: Tensor) -> Tensor:
        """Return the embeddings ``(b, d, *s)`` of codes."""
        return F.embedding(codes_bs, self.embeddings_kd).movedim(-1, 1)


@torch.no_grad()
def nearest_codes(rows_nd: Tensor, embeddings_kd: Tensor) -> Tensor:
    """Return the index of the nearest embedding (Euclidean) of each row, ``(n,)`` int64."""
    half_norms_k = embeddings_kd.square().sum(1).mul_(0.5)
    transposed_dk = embeddings_kd.t()
    if torch.jit.is_tracing() or torch.compiler.is_compiling():  # an exported graph takes any number of rows at once
        return torch.addmm(half_norms_k, rows_nd, transposed_dk, alpha=-1).argmin(1)
    elements = _CPU_CHUNK_ELEMENTS if rows_nd.device.type == "cpu" else _DEVICE_CHUNK_ELEMENTS
    chunk = max(1, elements // embeddings_kd.shape[0])
    codes_n = torch.empty(rows_nd.shape[0], dtype=torch.int64, device=rows_nd.device)
    for start in range(0, rows_nd.shape[0], chunk):
        rows = rows_nd[start : start + chunk]
        codes_n[start : start + chunk] = _argmin(torch.addmm(half_norms_k, rows, transposed_dk, alpha=-1))
    return codes_n


def _argmin(distances_nk: Tensor) -> Tensor:
    """Return the column of each row's least entry.

    On a CPU torch's ``amin`` is vectorized and its ``argmin`` is not, so the columns are first reduced by ``amin`` to
    `_LANES`; the two short searches that remain find the lane, and the place within it.
    """
    rows, columns = distances_nk.shape
    if columns % _LANES or distances_nk.device.type != "cpu":
        return distances_nk.argmin(1)
    lanes = distances_nk.view(rows, columns // _LANES, _LANES)
    lane_n = lanes.amin(1).argmin(1)
    place_n = lanes[torch.arange(rows), :, lane_n].argmin(1)
    return place_n * _LANES + lane_n


def pass_gradient(latents_nd: Tensor, chosen_nd: Tensor, estimator: str) -> Tensor:
    """Return the values of ``chosen_nd`` with a gradient to ``latents_nd``.

    ``straight_through`` copies the gradient (van den Oord et al. 2017, section 3.2). ``rotation`` sends it through
    the rotation and scaling that carry the latent onto its code, held constant (Fifty et al. 2024, equation 4).
    """
    chosen_nd = chosen_nd.detach()
    if not (torch.is_grad_enabled() and latents_nd.requires_grad):
        return chosen_nd
    if estimator == "straight_through":
        return cast("Tensor", _StraightThrough.apply(latents_nd, chosen_nd))
    return _rotate_onto(latents_nd, chosen_nd)


class _StraightThrough(torch.autograd.Function):
    """The second argument forwards, the identity to the first backwards: no arithmetic, so no rounding."""

    @staticmethod
    def forward(ctx: Any, latents_nd: Tensor, chosen_nd: Tensor) -> Tensor:
        return chosen_nd.view_as(chosen_nd)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _rotate_onto(latents_nd: Tensor, chosen_nd: Tensor) -> Tensor:
    length = latents_nd.detach().norm(dim=1, keepdim=True).clamp_min(_EPSILON)
    target = chosen_nd.norm(dim=1, keepdim=True).clamp_min(_EPSILON)
    source_unit = latents_nd.detach() / length
    target_unit = chosen_nd / target
    between = F.normalize(source_unit + target_unit, dim=1)
    rotated = (
        latents_nd
        - 2 * between * (latents_nd * between).sum(1, keepdim=True)
        + 2 * target_unit * (latents_nd * source_unit).sum(1, keepdim=True)
    )
    scaled = rotated * (target / length)
    return scaled + (chosen_nd - scaled).detach()  # the value is the code's own, free of rounding
