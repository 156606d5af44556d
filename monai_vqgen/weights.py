"""Weights on disk: plain state dicts, complete at their final name, opened with ``weights_only=True``."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from monai_vqgen.errors import CheckpointError
from monai_vqgen.files import replace_file

__all__ = ["fingerprint", "load_weights", "plain_state", "read_state", "save_weights", "write_state"]

Module = TypeVar("Module", bound=nn.Module)


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict as plain contiguous CPU tensors, without DDP's prefix and without MONAI's MetaTensor."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        module = module.module
    return {name: _plain(tensor) for name, tensor in module.state_dict().items()}


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().as_subclass(torch.Tensor).cpu().clone(memory_format=torch.contiguous_format)


def fingerprint(module: nn.Module) -> str:
    """Return the sha256 (hex) over the sorted names, types, shapes and bytes of a module's state dict.

    The bytes are read on the CPU and in C order, so device and memory format do not matter. Codes and priors know the
    autoencoder that they belong to by its fingerprint.

    Examples:
        >>> fingerprint(nn.Identity())[:8]
        'e3b0c442'
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{plain.dtype}|{tuple(plain.shape)}|".encode())
        digest.update(plain.reshape(-1).view(dtype=torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return digest.hexdigest()


def save_weights(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a module's plain state dict; an earlier file at ``path`` stays until the new one is complete."""
    write_state(plain_state(module), path)


def load_weights(module: Module, path: str | os.PathLike[str]) -> Module:
    """Load a plain state dict into a module and return it in evaluation mode.

    Raises:
        CheckpointError: the file is missing, damaged, or belongs to another architecture.
    """
    state = read_state(path)
    try:
        module.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        first_lines = " ".join(str(error).split())[:500]
        raise CheckpointError(
            f"{path} does not fit the network it is loaded into: use the architecture that it was trained with. "
            f"{first_lines}"
        ) from error
    return module.eval()


def write_state(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write nested states of tensors and numbers, complete or not at all."""
    # Serialized in memory first: torch's writer ends the process when the disk fills up under it.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with replace_file(path) as file:
        file.write(buffer.getbuffer())


def read_state(path: str | os.PathLike[str]) -> Any:
    """Read what `write_state` wrote, on the CPU and without running code from the file.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}: train first, or give the path of a .pt file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile, ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as a state dict: truncated, damaged or not a .pt file") from error
