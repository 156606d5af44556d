"""A fingerprint of weights, by which codes and priors know the autoencoder that they belong to."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

__all__ = ["fingerprint"]


def fingerprint(network: nn.Module) -> str:
    """Return the sha256 (hex) over the sorted names, types, shapes and bytes of a network's state dict.

    The bytes are read on the CPU and in C order, so device and memory format do not matter.

    Example:
        >>> fingerprint(nn.Identity())[:8]
        'e3b0c442'
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{plain.dtype}|{tuple(plain.shape)}|".encode())
        digest.update(plain.reshape(-1).view(dtype=torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return digest.hexdigest()
