"""A prior that starts from what the autoencoder knows of its codes: which are alike.

Legend of suffixes: k codebook size, d code dimension, c channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_vqgen.errors import CodesMismatchError
from monai_vqgen.networks.priors.base import Prior

__all__ = ["start_from_codebooks"]

OWN_PART = 0.1
"""Deviation of the random part of a starting embedding, beside the codebook's of one: tells equal codes apart."""
OUTPUT_SCALE = 0.125
"""Deviation of a starting output weight over that of an embedding: logits start small."""


@torch.no_grad()
def start_from_codebooks(
    prior: Prior, codebooks_kd: Sequence[Tensor], *, counts_k: Tensor | None = None, seed: int = 0
) -> Prior:
    """Set a prior's embeddings, and the weights of its logits, to random projections of the autoencoder's codebooks.

    Codes with near vectors then start with near embeddings and near logits, so what is learned of one holds for its
    neighbors at once. Without it each of some hundred codes is learned by itself, which on few scans takes most of
    the training. A prior without a code embedding of its own (`DecoderOnlyPrior`) is left as it is.

    Args:
        prior: changed in place.
        codebooks_kd: vectors `(k, d)` of the codes of all coarser levels, coarsest first, then of the prior's own.
        counts_k: how often the training data have each of the prior's own codes; with it the logits start at these
            codes' log-frequencies.
        seed: of the projections and of the random part.

    Returns:
        The prior.

    Raises:
        CodesMismatchError: the codebooks' sizes are not the prior's.

    Examples:
        >>> from monai_vqgen.networks import GatedPixelCNN
        >>> prior = GatedPixelCNN(8, channels=16, num_layers=2, attention_every=0)
        >>> _ = start_from_codebooks(prior, [torch.randn(8, 4)])
    """
    sizes = [*prior.coarser_codes, prior.num_codes]
    if [len(codebook_kd) for codebook_kd in codebooks_kd] != sizes:
        raise CodesMismatchError(
            f"codebooks of sizes {[len(c) for c in codebooks_kd]} for a prior of sizes {sizes}: give those of all "
            "coarser levels and of the prior's own, coarsest first"
        )
    embedding = getattr(prior, "embedding", None)
    if embedding is None:
        return prior
    generator = torch.Generator().manual_seed(seed)
    _fill(embedding.weight, codebooks_kd[-1], generator)
    context: Any = getattr(prior, "context", None)
    coarser = [] if context is None else list(getattr(context, "embeddings", []))
    for table, codebook_kd in zip(coarser, codebooks_kd[:-1], strict=True):
        _fill(table.weight, codebook_kd, generator)
    head: Any = prior.head
    logits: nn.Module = head[-1] if isinstance(head, nn.Sequential) else head
    weight: Tensor = logits.weight  # type: ignore[assignment]
    start_kc = torch.empty(weight.shape[:2])
    _fill(start_kc, codebooks_kd[-1], generator)
    weight.copy_((OUTPUT_SCALE * start_kc).reshape(*weight.shape[:2], *[1] * (weight.ndim - 2)))
    if counts_k is not None and logits.bias is not None:
        log_k = (counts_k.double() + 1).log()
        logits.bias.copy_(log_k - log_k.mean())  # type: ignore[operator]
    return prior


def _fill(weight_kc: Tensor, codebook_kd: Tensor, generator: torch.Generator) -> None:
    """Project standardized vectors to the width of a weight, at unit deviation, and add a random part."""
    vectors_kd = codebook_kd.detach().float().cpu()
    vectors_kd = (vectors_kd - vectors_kd.mean(0)) / vectors_kd.std().clamp_min(1e-6)
    (codes, channels), dim = weight_kc.shape, vectors_kd.shape[1]
    projection_dc = torch.randn(dim, channels, generator=generator) / math.sqrt(dim)
    own_kc = OWN_PART * torch.randn(codes, channels, generator=generator)
    weight_kc.copy_(vectors_kd @ projection_dc + own_kc)
