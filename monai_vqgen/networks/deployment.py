"""Halves of an autoencoder as networks of their own, for deployment: images to codes, codes to images.

Shape suffixes: b batch, c channels, s spatial axes (2 or 3).
"""

from __future__ import annotations

from torch import Tensor, nn

from monai_vqgen.networks.hierarchical_vqvae import HierarchicalVQVAE

__all__ = ["CodeReader", "CodeWriter"]


class CodeWriter(nn.Module):
    """Images `(b, c, *s)` to grids of codes `(b, *s)`, coarsest first: the encoder and its quantizers.

    Args:
        autoencoder: trained; in evaluation mode.

    Examples:
        >>> import torch
        >>> codes = CodeWriter(HierarchicalVQVAE(channels=8, residual_channels=4))(torch.zeros(1, 1, 32, 32))
        >>> [tuple(grid.shape) for grid in codes]
        [(1, 4, 4), (1, 8, 8)]
    """

    def __init__(self, autoencoder: HierarchicalVQVAE) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, images_bcs: Tensor) -> tuple[Tensor, ...]:
        """Write images as codes."""
        return self.autoencoder.encode(images_bcs)


class CodeReader(nn.Module):
    """Grids of codes `(b, *s)`, coarsest first, to images `(b, c, *s)`: the codebooks and the decoder.

    Images have the grids' size times the stride; those of a size that does not divide are to be cropped by the caller.

    Args:
        autoencoder: trained; in evaluation mode.

    Examples:
        >>> import torch
        >>> codes = [torch.zeros(1, size, size, dtype=torch.int64) for size in (4, 8)]
        >>> CodeReader(HierarchicalVQVAE(channels=8, residual_channels=4))(*codes).shape
        torch.Size([1, 1, 32, 32])
    """

    def __init__(self, autoencoder: HierarchicalVQVAE) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, *codes_bs: Tensor) -> Tensor:
        """Read codes as images."""
        return self.autoencoder.decode(codes_bs)
