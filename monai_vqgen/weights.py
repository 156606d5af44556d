"""Weights on disk: plain state dicts, complete at their final name, opened with ``weights_only=True``.

    torch's zip file | comment: "sha256:" and 64 hexadecimal digits, of every byte before the digits

so a file carries its own checksum and any program that reads `.pt` files reads it. A file without the comment, as
torch writes it, is checked by the 32-bit checksums that a zip file has of each of its members. A `.safetensors` file
carries the fingerprint of its tensors in its header.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from monai_vqgen.errors import CheckpointError
from monai_vqgen.files import replace_file, write_bytes

__all__ = ["SAFETENSORS", "fingerprint", "load_weights", "plain_state", "read_state", "save_weights", "write_state"]

Module = TypeVar("Module", bound=nn.Module)

SAFETENSORS = ".safetensors"
_FINGERPRINT = "fingerprint"  # in the header of such a file
_SEAL, _DIGITS = b"sha256:", 64
_END_OF_ZIP, _END_BYTES = b"PK\x05\x06", 22  # the record that ends a zip file; its last two bytes: a comment's length
_DEEPEST = 64  # of nested states; torch's own are four deep


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict as plain contiguous CPU tensors, without DDP's prefix and without MONAI's MetaTensor."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        module = module.module
    plain = {name: tensor.detach().as_subclass(torch.Tensor).cpu() for name, tensor in module.state_dict().items()}
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in plain.items()}


def fingerprint(module: nn.Module) -> str:
    """Return the sha256 (hex) over the sorted names, types, shapes and bytes of a module's state dict.

    The bytes are read on the CPU and in C order, so device and memory format do not matter. Codes and priors know the
    autoencoder that they belong to by its fingerprint.

    Examples:
        >>> fingerprint(nn.Identity())[:8]
        'e3b0c442'
    """
    return _digest(module.state_dict())


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{plain.dtype}|{tuple(plain.shape)}|".encode())
        digest.update(plain.reshape(-1).view(dtype=torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return digest.hexdigest()


def save_weights(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a module's plain state dict; an earlier file at ``path`` stays until the new one is complete.

    Raises:
        CheckpointError: a tensor has values that are not finite; nothing is written, the earlier file stays.
    """
    state = plain_state(module)
    if Path(path).suffix != SAFETENSORS:
        write_state(state, path)
        return
    import safetensors.torch

    _refuse_not_finite(state, path)
    content = safetensors.torch.save(state, metadata={"format": "pt", _FINGERPRINT: _digest(state)})
    write_bytes(path, content)


def load_weights(module: Module, path: str | os.PathLike[str]) -> Module:
    """Load a plain state dict into a module and return it in evaluation mode.

    Raises:
        CheckpointError: the file is missing, damaged, belongs to another architecture, or holds values that are not
            finite.
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


def write_state(content: Mapping[str, Any], path: str | os.PathLike[str], *, keep_previous: bool = False) -> None:
    """Write nested states of tensors and numbers, complete or not at all, with a checksum.

    Args:
        content: what `read_state` gives back.
        path: the final name.
        keep_previous: keep an earlier file at ``path`` as `monai_vqgen.files.previous_path`.

    Raises:
        CheckpointError: a tensor has values that are not finite; nothing is written, the earlier file stays.
    """
    _refuse_not_finite(content, path)
    # Serialized in memory first: torch's writer ends the process when the disk fills up under it.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(-2, os.SEEK_END)
    buffer.write((len(_SEAL) + _DIGITS).to_bytes(2, "little") + _SEAL)
    digits = hashlib.sha256(buffer.getbuffer()).hexdigest().encode()
    with replace_file(path, keep_previous=keep_previous) as file:
        file.write(buffer.getbuffer())
        file.write(digits)


def _refuse_not_finite(content: Any, path: str | os.PathLike[str]) -> None:
    if name := _not_finite(content):
        raise CheckpointError(
            f"{name} has values that are not finite, so {path} is not written and an earlier file stays as it was: "
            "lower --learning_rate or switch --amp off"
        )


def read_state(path: str | os.PathLike[str]) -> Any:
    """Read what `write_state` or `save_weights` wrote, on the CPU and without running code from the file.

    Raises:
        CheckpointError: the file is missing or damaged, or a tensor has values that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint at {path}: give --bundle_root, the folder with models/ in it, or --model, the "
            "path of a .pt file; or train first"
        )
    try:
        content = _safetensors(path) if path.suffix == SAFETENSORS else _pickled(path)
    except Exception as error:  # a file from anywhere can raise anything in torch's reader
        raise CheckpointError(
            f"{path} cannot be read as a state dict ({_told(error)}): truncated, damaged or not a "
            f"{path.suffix or '.pt'} file; copy it again, or train again"
        ) from error
    if name := _not_finite(content):
        raise CheckpointError(
            f"{path} holds values that are not finite, in {name}: take an earlier file, or train again"
        )
    return content


def _pickled(path: Path) -> Any:
    written = path.read_bytes()
    if not _is_intact(written):
        raise zipfile.BadZipFile("wrong checksum")
    _check_unpacked(written)
    content = torch.load(io.BytesIO(written), map_location="cpu", weights_only=True)
    for name, tensor in _tensors(content):
        _check_plain(name, tensor)
    return content


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(path, framework="pt", device="cpu") as file:
        known = (file.metadata() or {}).get(_FINGERPRINT)
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if known not in (None, _digest(state)):
        raise ValueError("wrong checksum")
    return state


def _is_intact(written: bytes) -> bool:
    """Whether a file's own checksum is right: the one of this module, else those of a zip file without a comment."""
    body, digits = memoryview(written)[:-_DIGITS], written[-_DIGITS:]
    if body[-len(_SEAL) :] == _SEAL:
        return hashlib.sha256(body).hexdigest().encode() == digits
    if written[-_END_BYTES:].startswith(_END_OF_ZIP) and written.endswith(b"\0\0"):
        with zipfile.ZipFile(io.BytesIO(written)) as archive:
            return archive.testzip() is None
    return False


def _check_unpacked(written: bytes) -> None:
    """Raise ValueError where a file unpacks to more than it has: torch writes its members as they are."""
    with zipfile.ZipFile(io.BytesIO(written)) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its members are compressed")
    if sum(member.file_size for member in members) > len(written):
        raise ValueError("its members overlap")


def _check_plain(name: str, tensor: Tensor) -> None:
    """Raise ValueError for what only announces its values: a meta tensor, a sparse one, one that is expanded."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_nested:
        raise ValueError(f"{name} is no plain tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"{name} has fewer values than its shape {tuple(tensor.shape)} announces")


def _told(error: Exception) -> str:
    """The kind of an error; what it says too where this module raised it."""
    return str(error) if type(error) is ValueError else type(error).__name__


def _not_finite(content: Any) -> str | None:
    """The name of the first tensor with a value that is not finite, None where there is none."""
    for name, tensor in _tensors(content):
        if tensor.is_floating_point() or tensor.is_complex():
            known = tensor.float() if tensor.element_size() == 1 else tensor  # float8 knows no isfinite
            if not bool(torch.isfinite(known).all()):
                return name
    return None


def _tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors in nested states, by the keys that lead to them; a part that is shared comes once.

    Raises:
        ValueError: nested deeper than any state is.
    """
    waiting: list[tuple[int, str, Any]] = [(0, "", content)]
    seen: set[int] = set()
    while waiting:
        depth, name, value = waiting.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            if depth > _DEEPEST:
                raise ValueError(f"it is nested more than {_DEEPEST} deep")
            seen.add(id(value))
            entries = value.items() if isinstance(value, Mapping) else enumerate(value)
            inner = [(depth + 1, f"{name}.{key}" if name else str(key), entry) for key, entry in entries]
            waiting += reversed(inner)
