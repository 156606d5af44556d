"""What every prior promises, its start from the autoencoder's codebooks, and an incremental pass for any of them.

Legend of suffixes: b batch, c channels, d code dimension, k number of codes, s spatial axes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from monai_vqgen.errors import CodesMismatchError, InputError
from monai_vqgen.networks.architecture import Recorded
from monai_vqgen.networks.priors.layers import ContextNetwork

OWN_PART = 0.1  # deviation of a starting embedding's random part, beside the codebook's of 1: tells equal codes apart
OUTPUT_SCALE = 0.125  # deviation of a starting output weight over that of an embedding: logits start small


class CodeWeights(NamedTuple):
    """The layers of a prior that hold one row of weights a code."""

    embedding: Any  # of the prior's own codes
    coarser: tuple[Any, ...]  # embeddings of the coarser levels' codes, coarsest first
    logits: Any  # the last linear or pointwise layer; has a bias


class IncrementalPass(ABC):
    """A prior's logits, one raster position after the other.

    Call `logits()` for the next position's distribution, then `push(codes_b)` with the codes chosen there. A position
    whose code is known already can be pushed without asking for its logits. Both run without gradients.

    Examples:
        >>> import torch
        >>> from monai_vqgen.networks import GatedPixelCNN
        >>> prior = GatedPixelCNN(8, channels=4, num_layers=2, attention_every=0).eval()
        >>> steps = prior.incremental((2, 2), batch_size=3)
        >>> codes = []
        >>> for _ in range(4):
        ...     codes.append(steps.logits().argmax(1))
        ...     steps.push(codes[-1])
        >>> torch.stack(codes, dim=1).shape
        torch.Size([3, 4])
    """

    @abstractmethod
    def logits(self) -> Tensor:
        """Logits `(b, k)` of the next position; valid until the next `push`."""

    @abstractmethod
    def push(self, codes_b: Tensor) -> None:
        """Fix the codes at this position and move on."""


class Prior(Recorded, nn.Module, ABC):
    """An autoregressive distribution over grids of codes.

    Attributes:
        spatial_dims: number of axes of the grid, 2 or 3.
        num_codes: size of the codebook, K.
        coarser_codes: sizes of the codebooks of all coarser levels, coarsest first; empty at the coarsest level.
        condition_dim: length of the condition vector; 0 for none.

    Examples:
        A prior of one's own needs a `forward`; sampling, scoring and training then work with it.

        >>> class Frequencies(Prior):
        ...     def __init__(self, num_codes):
        ...         super().__init__(num_codes, 2, coarser_codes=(), condition_dim=0)
        ...         self.logits_k = nn.Parameter(torch.zeros(num_codes))
        ...
        ...     def forward(self, codes_bs, coarser=(), condition=None):
        ...         b, *grid = codes_bs.shape
        ...         return self.logits_k.view(1, -1, 1, 1).expand(b, -1, *grid)
        >>> Frequencies(8).incremental((4, 4), batch_size=3).logits().shape
        torch.Size([3, 8])
    """

    def __init__(self, num_codes: int, spatial_dims: int, *, coarser_codes: Sequence[int], condition_dim: int) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise InputError(f"spatial_dims is {spatial_dims}; allowed are 2 and 3")
        if num_codes < 1:
            raise InputError(f"num_codes is {num_codes}; give the codebook's size, at least 1")
        if condition_dim < 0:
            raise InputError(f"condition_dim is {condition_dim}; give 0 (no condition) or the vector's length")
        self.num_codes, self.spatial_dims = num_codes, spatial_dims
        self.coarser_codes, self.condition_dim = tuple(coarser_codes), condition_dim

    def _context_network(self, channels: int) -> ContextNetwork | None:
        """The network of what the prior knows beside its own codes; None where that is nothing."""
        if not (self.coarser_codes or self.condition_dim):
            return None
        return ContextNetwork(
            self.spatial_dims, channels, coarser_codes=self.coarser_codes, condition_dim=self.condition_dim
        )

    @abstractmethod
    def forward(self, codes_bs: Tensor, coarser: Sequence[Tensor] = (), condition: Tensor | None = None) -> Tensor:
        """Teacher-forced logits `(b, k, *grid)`: those at a position depend on codes before it only.

        Args:
            codes_bs: integers `(b, *grid)` in [0, num_codes).
            coarser: integer grids of all coarser levels, coarsest first, each `(b, *its grid)`.
            condition: float `(b, condition_dim)`, or None when condition_dim is 0.
        """

    def incremental(
        self, grid: Sequence[int], *, batch_size: int, coarser: Sequence[Tensor] = (), condition: Tensor | None = None
    ) -> IncrementalPass:
        """The same logits one position at a time. This fallback runs the whole grid at every position."""
        return PlainIncremental(self, grid, batch_size=batch_size, coarser=coarser, condition=condition)

    def code_weights(self) -> CodeWeights | None:
        """The layers that `start_from_codebooks` sets; None, the default, for a prior that has no such layers."""
        return None

    @torch.no_grad()
    def start_from_codebooks(
        self, codebooks_kd: Sequence[Tensor], *, counts_k: Tensor | None = None, seed: int = 0
    ) -> None:
        """Set embeddings, and the weights of the logits, to random projections of the autoencoder's codebooks.

        Codes with near vectors then start with near embeddings and near logits, so what is learned of one holds for
        its neighbors at once. Without it each of some hundred codes is learned by itself, which on few scans takes
        most of the training. A prior whose `code_weights` are None (`DecoderOnlyPrior`) stays as it is.

        Args:
            codebooks_kd: vectors `(k, d)` of the codes of all coarser levels, coarsest first, then of the prior's own.
            counts_k: how often the training data have each of the prior's own codes; with it the logits start at
                these codes' log-frequencies.
            seed: of the projections and of the random part.

        Raises:
            CodesMismatchError: the codebooks' sizes are not the prior's.

        Examples:
            >>> from monai_vqgen.networks import GatedPixelCNN
            >>> prior = GatedPixelCNN(8, channels=16, num_layers=2, attention_every=0)
            >>> prior.start_from_codebooks([torch.randn(8, 4)])
        """
        sizes, given = [*self.coarser_codes, self.num_codes], [len(codebook_kd) for codebook_kd in codebooks_kd]
        if given != sizes:
            raise CodesMismatchError(
                f"codebooks of sizes {given} for a prior of sizes {sizes}: give those of all coarser levels and of "
                "the prior's own, coarsest first"
            )
        weights = self.code_weights()
        if weights is None:
            return
        generator, own_kd = torch.Generator().manual_seed(seed), codebooks_kd[-1]
        embeddings, codebooks = (weights.embedding, *weights.coarser), (own_kd, *codebooks_kd[:-1])
        for layer, codebook_kd in zip(embeddings, codebooks, strict=True):
            layer.weight.copy_(_projected(codebook_kd, layer.weight.shape[1], generator))
        weight = weights.logits.weight
        start_kc = OUTPUT_SCALE * _projected(own_kd, weight.shape[1], generator)
        weight.copy_(start_kc.reshape(weight.shape))
        if counts_k is not None:
            log_k = (counts_k.cpu().double() + 1).log()
            weights.logits.bias.copy_((log_k - log_k.mean()).float())


def _projected(codebook_kd: Tensor, channels: int, generator: torch.Generator) -> Tensor:
    """Standardized vectors projected to `(k, channels)` at unit deviation, and a random part of each code's own."""
    vectors_kd = codebook_kd.detach().float().cpu()
    vectors_kd = (vectors_kd - vectors_kd.mean(0)) / vectors_kd.std().clamp_min(1e-6)
    codes, dim = vectors_kd.shape
    projection_dc = torch.randn(dim, channels, generator=generator) / math.sqrt(dim)
    return vectors_kd @ projection_dc + OWN_PART * torch.randn(codes, channels, generator=generator)


class PlainIncremental(IncrementalPass):
    """Runs the prior's whole forward at every position: slow, and by construction exactly what `forward` says.

    Args:
        prior: any prior.
        grid: sizes of the spatial axes.
        batch_size: number of grids.
        coarser: grids of the coarser levels, coarsest first.
        condition: float `(batch_size, f)` or None.

    Examples:
        >>> from monai_vqgen.networks import MaskedPixelCNN
        >>> PlainIncremental(MaskedPixelCNN(8, channels=4, num_blocks=1), (2, 2), batch_size=1).logits().shape
        torch.Size([1, 8])
    """

    def __init__(
        self,
        prior: nn.Module,
        grid: Sequence[int],
        *,
        batch_size: int,
        coarser: Sequence[Tensor] = (),
        condition: Tensor | None = None,
    ) -> None:
        device = next(prior.parameters()).device
        self._prior, self._coarser, self._condition = prior, tuple(coarser), condition
        self._codes_bs = torch.zeros(batch_size, *grid, dtype=torch.long, device=device)
        self._codes_bn = self._codes_bs.view(batch_size, math.prod(grid))
        self._next = 0

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """Logits `(b, k)` of the next position."""
        logits_bks = self._prior(self._codes_bs, self._coarser, self._condition)
        return logits_bks.flatten(2)[:, :, self._next]

    @torch.inference_mode()
    def push(self, codes_b: Tensor) -> None:
        """Fix the codes at this position and move on."""
        self._codes_bn[:, self._next] = codes_b
        self._next += 1


def check_prior_inputs(prior: Prior, codes_bs: Tensor, *, coarser: Sequence[Tensor], condition: Tensor | None) -> None:
    """Raise InputError unless the inputs of a prior fit it and each other. Shapes and types only, never values."""
    b = codes_bs.shape[0] if codes_bs.ndim else 0
    if codes_bs.ndim != prior.spatial_dims + 1 or codes_bs.is_floating_point():
        raise InputError(
            f"codes have shape {tuple(codes_bs.shape)} and type {codes_bs.dtype}; this prior takes integers "
            f"of shape (batch, {', '.join(['size'] * prior.spatial_dims)})"
        )
    if len(coarser) != len(prior.coarser_codes):
        raise InputError(
            f"{len(coarser)} grids of coarser levels given; this prior was built for {len(prior.coarser_codes)} "
            f"(coarser_codes={list(prior.coarser_codes)}). Give one grid for each, coarsest first"
        )
    for level, grid_bs in enumerate(coarser):
        fits = grid_bs.ndim == codes_bs.ndim and grid_bs.shape[0] == b and not grid_bs.is_floating_point()
        if not fits or any(m > n for m, n in zip(grid_bs.shape[1:], codes_bs.shape[1:], strict=True)):
            raise InputError(
                f"coarser grid {level} has shape {tuple(grid_bs.shape)} and type {grid_bs.dtype}; with codes of shape "
                f"{tuple(codes_bs.shape)} it must be integers of the same batch and no larger along any axis"
            )
    if prior.condition_dim == 0 and condition is not None:
        raise InputError("a condition is given, but this prior was built without one (condition_dim=0); leave it out")
    if prior.condition_dim and (condition is None or tuple(condition.shape) != (b, prior.condition_dim)):
        given = "none" if condition is None else f"one of shape {tuple(condition.shape)}"
        raise InputError(
            f"this prior needs a condition of shape ({b}, {prior.condition_dim}), and {given} is given; "
            "make it with the ConditionEncoder the prior was trained with"
        )
