"""The small protocol that every quantizer keeps.

Shape suffixes: b batch, s spatial axes (2 or 3), d code dimension, k codebook size, n vectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from monai_vqgen.networks.architecture import Recorded

__all__ = ["Quantized", "Quantizer", "rows_to_grid", "to_rows"]


class Quantized(NamedTuple):
    """What quantizing a latent map gives.

    Attributes:
        embeddings_bds: the chosen codes' vectors; gradients pass on to the latents (straight-through or rotated).
        codes_bs: the chosen codes, int64.
        loss: scalar to add to the training loss, weights included; zero for quantizers that need none.
    """

    embeddings_bds: Tensor
    codes_bs: Tensor
    loss: Tensor


class Quantizer(Recorded, nn.Module, ABC):
    """Turns latent vectors into codes and back; the base of every quantizer.

    ``forward`` and ``lookup`` never change a buffer, in either mode. Only :meth:`learn` does, and only the
    autoencoder's training pass calls it.

    Attributes:
        num_codes: how many codes there are (K).
        dim: length of a latent vector (D).
    """

    num_codes: int
    dim: int

    @abstractmethod
    def forward(self, latents_bds: Tensor) -> Quantized:
        """Quantize ``latents_bds`` (float, any spatial size, an empty batch included)."""

    @abstractmethod
    def lookup(self, codes_bs: Tensor) -> Tensor:
        """Return the vectors ``(b, d, *s)`` of ``codes_bs`` (integers in ``[0, num_codes)``)."""

    def prepare(self, latents_bds: Tensor) -> None:
        """Called with a training batch's latents before they are quantized; initializes from data where due."""

    def learn(self, latents_bds: Tensor, codes_bs: Tensor) -> None:
        """Called after a training batch was quantized; updates whatever is learned without gradients."""


def to_rows(latents_bds: Tensor) -> Tensor:
    """Flatten ``(b, d, *s)`` to float32 rows ``(n, d)``, raster order within an image."""
    return latents_bds.movedim(1, -1).reshape(-1, latents_bds.shape[1]).float()


def rows_to_grid(rows_nd: Tensor, like_bds: Tensor) -> Tensor:
    """Undo :func:`to_rows`: give the rows the batch and spatial shape of ``like_bds``."""
    batch, _, *spatial = like_bds.shape
    return torch.movedim(rows_nd.reshape(batch, *spatial, rows_nd.shape[1]), -1, 1)
