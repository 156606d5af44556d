"""Codes on disk: every level's grids of every slice, and the fingerprint of the weights that made them.

    CODES/codes.safetensors    "<split>/level<i>": integers (n, *grid), memory-mapped, no pickle
                               "codebook/level<i>": float32 (k, d), the codes' vectors
    CODES/codes.json           fingerprint, codebook sizes, grids, the slices' records, size and sha256 of the above

Shape suffixes: n slices, s spatial axes (2 or 3), k codebook size, d code dimension, f condition features.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pooch
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from monai_vqgen.data.slices.datalists import SliceGeometry
from monai_vqgen.errors import CodesMismatchError, InputError
from monai_vqgen.files import read_json, replace_path, write_json
from monai_vqgen.transforms.geometry import PLANES

__all__ = ["CodeStore", "CodesDataset", "code_type", "save_codes"]

_TENSORS, _DESCRIPTION = "codes.safetensors", "codes.json"
_FORMAT_VERSION = 1
_LARGEST_CODEBOOK = 2**20


def save_codes(
    output_dir: str | os.PathLike[str],
    grids: Mapping[str, Sequence[Tensor]],
    records: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    codebook_sizes: Sequence[int],
    fingerprint: str,
    image_size: Sequence[int] = (),
    geometry: SliceGeometry | None = None,
    codebooks_kd: Sequence[Tensor] = (),
) -> None:
    """Write a code store.

    Args:
        output_dir: folder to write to.
        grids: codes of each split, one tensor (n, *s) per level, coarsest first.
        records: subject, position and the like of each slice of each split, in the same order.
        codebook_sizes: number of codes of each level, coarsest first.
        fingerprint: `networks.fingerprint` of the autoencoder.
        image_size: size of the slices in pixels.
        geometry: plane and pixel size of the slices, where known.
        codebooks_kd: the codes' vectors, one tensor (k, d) per level, coarsest first; empty where unknown.

    Raises:
        CodesMismatchError: levels, grids, records or code values do not fit one another.
    """
    shapes = [tuple(codes_ns.shape[1:]) for codes_ns in next(iter(grids.values()), [])]
    if not _covers(shapes, image_size):
        raise CodesMismatchError(f"image_size={tuple(image_size)} is of no images with grids {shapes}: leave it out")
    tensors = _checked_tensors(grids, {split: len(rows) for split, rows in records.items()}, codebook_sizes)
    tensors.update(_checked_codebooks(codebooks_kd, codebook_sizes))
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with replace_path(folder / _TENSORS) as partial:
        save_file(tensors, partial)
        written = {"name": _TENSORS, "bytes": partial.stat().st_size, "sha256": pooch.file_hash(str(partial))}
    geometry = geometry or SliceGeometry()
    description = {
        "format_version": _FORMAT_VERSION,
        "fingerprint": fingerprint,
        "codebook_sizes": list(codebook_sizes),
        "grids": [list(shape) for shape in shapes],
        "image_size": list(image_size),
        "plane": geometry.plane,
        "pixel_mm": geometry.pixel_mm,
        "file": written,
        "splits": {split: [dict(record) for record in records[split]] for split in grids},
    }
    write_json(folder / _DESCRIPTION, description, sealed=True)


def _checked_tensors(
    grids: Mapping[str, Sequence[Tensor]], counts: Mapping[str, int], codebook_sizes: Sequence[int]
) -> dict[str, Tensor]:
    """The grids by their names in the file."""
    tensors = {}
    for split, levels in grids.items():
        if len(levels) != len(codebook_sizes) or any(len(codes_ns) != counts[split] for codes_ns in levels):
            raise CodesMismatchError(
                f"split {split!r}: expected {len(codebook_sizes)} levels of {counts[split]} grids (records)"
            )
        for level, (codes_ns, size) in enumerate(zip(levels, codebook_sizes, strict=True)):
            if codes_ns.numel() and (int(codes_ns.min()) < 0 or int(codes_ns.max()) >= size):
                raise CodesMismatchError(f"split {split!r}, level {level}: codes outside 0 to {size - 1}")
            tensors[f"{split}/level{level}"] = codes_ns.cpu().to(code_type(size)).contiguous()
    return tensors


def _checked_codebooks(codebooks_kd: Sequence[Tensor], codebook_sizes: Sequence[int]) -> dict[str, Tensor]:
    """The codebooks by their names in the file."""
    if codebooks_kd and [len(codebook_kd) for codebook_kd in codebooks_kd] != list(codebook_sizes):
        raise CodesMismatchError(
            f"codebooks of {[len(c) for c in codebooks_kd]} codes; expected {list(codebook_sizes)}"
        )
    return {f"codebook/level{level}": book_kd.float().cpu().contiguous() for level, book_kd in enumerate(codebooks_kd)}


def _whole(numbers: Iterable[Any]) -> tuple[int, ...]:
    """Whole numbers above 0, as a file states them."""
    found = tuple(numbers)
    if not all(type(number) is int and number > 0 for number in found):
        raise ValueError(f"whole numbers: {found}")
    return found


def _covers(grids: Sequence[Sequence[int]], image_size: Sequence[int]) -> bool:
    """Whether cells of one size, the last of an axis padded, make these grids of images of a size, where known.

    Examples:
        >>> _covers([(2, 3), (4, 6)], (13, 24)), _covers([(2, 3)], (4, 4)), _covers([(2, 3)], ())
        (True, False, True)
    """
    if not image_size or not grids:
        return True
    if len(image_size) != len(grids[0]) or min(grids[0]) < 1:
        return False
    axes = list(zip(image_size, grids[0], strict=True))
    cell = max(-(-size // count) for size, count in axes)  # no smaller one has so few cells along each axis
    return all(-(-size // cell) == count for size, count in axes)


def code_type(size: int) -> torch.dtype:
    """The smallest of int16 and int32 that holds the codes of a codebook of this size."""
    return torch.int16 if size <= torch.iinfo(torch.int16).max + 1 else torch.int32


class CodeStore:
    """The codes of a data set, opened for reading; grids are memory-mapped.

    Args:
        folder: as written by the stage ``extract_codes``.

    Attributes:
        fingerprint: of the autoencoder that made the codes.
        codebook_sizes: number of codes of each level, coarsest first.
        grids: shape of each level's grid, coarsest first.
        image_size: size of the slices in pixels, empty where unknown.
        geometry: plane and pixel size of the slices, None where unknown.
        splits: names of the splits.
        checksum: sha256 of the file of codes.

    Raises:
        InputError: there is no code store, or it is damaged: wrong checksum, codes, types, grids or counts.

    Examples:
        >>> store = CodeStore("out/codes")  # doctest: +SKIP
        >>> store.codes("training", 0).shape  # doctest: +SKIP
        torch.Size([270, 16, 16])
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        description = self._read_description()
        try:
            self.fingerprint: str = description["fingerprint"]
            self.codebook_sizes: tuple[int, ...] = _whole(description["codebook_sizes"])
            self.grids: tuple[tuple[int, ...], ...] = tuple(map(_whole, description["grids"]))
            self.image_size: tuple[int, ...] = _whole(description.get("image_size", ()))
            self.geometry = SliceGeometry(description.get("plane"), description.get("pixel_mm"), len(self.grids[0]))
            self._check_said()
            self._records: dict[str, list[dict[str, Any]]] = {
                split: [dict(record) for record in records] for split, records in description["splits"].items()
            }
            self.checksum: str = description["file"]["sha256"]
            self._check_tensors(description["file"])
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise self._damaged(f"{_DESCRIPTION} lacks or misstates {error}") from error

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self._records)

    @property
    def num_levels(self) -> int:
        """Number of levels."""
        return len(self.codebook_sizes)

    def records(self, split: str) -> list[dict[str, Any]]:
        """What is known of each slice of a split: subject, plane, position_mm, age, sex."""
        if split not in self._records:
            raise InputError(f"Split {split!r} is not in {self.folder}: it holds {', '.join(self._records)}")
        return self._records[split]

    def codes(self, split: str, level: int) -> Tensor:
        """All grids (n, *s) of one level, int64."""
        self.check_level(level)
        self.records(split)
        with safe_open(self.folder / _TENSORS, framework="pt") as file:
            return file.get_tensor(f"{split}/level{level}").long()

    def codebook(self, level: int) -> Tensor | None:
        """The vectors (k, d) of one level's codes, float32; None where the store holds none."""
        self.check_level(level)
        with safe_open(self.folder / _TENSORS, framework="pt") as file:
            name = f"codebook/level{level}"
            return file.get_tensor(name) if name in file.keys() else None  # noqa: SIM118 (no mapping)

    def read(self, split: str, index: int) -> tuple[Tensor, ...]:
        """The grids of one slice, coarsest first, int64; reads these bytes only."""
        with safe_open(self.folder / _TENSORS, framework="pt") as file:
            names = [f"{split}/level{level}" for level in range(self.num_levels)]
            return tuple(file.get_slice(name)[index : index + 1][0].long() for name in names)

    def check_level(self, level: int) -> None:
        """Refuse a level that does not exist.

        Raises:
            InputError: names the levels there are.
        """
        if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < self.num_levels:
            raise InputError(
                f"level={level!r} does not exist in {self.folder}: it holds levels 0 (coarsest) to "
                f"{self.num_levels - 1}"
            )

    def check_fingerprint(self, fingerprint: str | None) -> None:
        """Refuse weights that did not make these codes; None stands for weights not known.

        Raises:
            CodesMismatchError: The codes are another autoencoder's.
        """
        if fingerprint is not None and fingerprint != self.fingerprint:
            raise CodesMismatchError(
                f"The codes in {self.folder} were made by the autoencoder {self.fingerprint[:12]}, not by "
                f"{fingerprint[:12]}. Run extract_codes.json again with the autoencoder that you use"
            )

    def check_prior(self, prior: torch.nn.Module, level: int) -> None:
        """Refuse a prior whose codebook sizes are not those of the codes.

        Raises:
            CodesMismatchError: names the sizes on both sides.
        """
        self.check_level(level)
        expected = (self.codebook_sizes[level], self.codebook_sizes[:level])
        given = (int(prior.num_codes), tuple(prior.coarser_codes))  # type: ignore[arg-type]
        if given != expected:
            raise CodesMismatchError(
                f"The prior of level {level} has num_codes={given[0]}, coarser_codes={list(given[1])}; the codes in "
                f"{self.folder} need num_codes={expected[0]}, coarser_codes={list(expected[1])}. Set them in "
                "prior_def"
            )

    def _read_description(self) -> dict[str, Any]:
        path = self.folder / _DESCRIPTION
        if not path.is_file():
            raise InputError(f"{self.folder} holds no codes ({_DESCRIPTION} is missing): run extract_codes.json first")
        try:
            description = read_json(path)
        except ValueError as error:
            raise self._damaged(f"{_DESCRIPTION} cannot be read ({error})") from error
        version = description.get("format_version")
        if version != _FORMAT_VERSION:
            raise InputError(f"{path} has format_version {version!r}, this release reads {_FORMAT_VERSION}")
        return description

    def _check_tensors(self, file: Mapping[str, Any]) -> None:
        path = self.folder / _TENSORS
        if not path.is_file():
            raise self._damaged(f"{_TENSORS} is missing")
        if path.stat().st_size != file["bytes"]:
            raise self._damaged(f"{_TENSORS} has {path.stat().st_size} bytes instead of {file['bytes']}")
        if pooch.file_hash(str(path)) != file["sha256"]:
            raise self._damaged(f"the checksum of {_TENSORS} is wrong")
        try:
            with safe_open(path, framework="pt") as tensors:
                missing = {f"{split}/level{i}" for split in self.splits for i in range(self.num_levels)} - {
                    *tensors.keys()
                }
                if missing:
                    raise self._damaged(f"{_TENSORS} lacks {', '.join(sorted(missing))}")
                for level, size in enumerate(self.codebook_sizes):
                    if (name := f"codebook/level{level}") in tensors.keys():  # noqa: SIM118 (no mapping)
                        self._check_codebook(name, tensors.get_tensor(name), size)
                for split, records in self._records.items():
                    for level, (size, grid) in enumerate(zip(self.codebook_sizes, self.grids, strict=True)):
                        name = f"{split}/level{level}"
                        self._check_codes(name, tensors.get_tensor(name), (len(records), *grid), size)
        except SafetensorError as error:
            raise self._damaged(f"{_TENSORS} is not a safetensors file") from error

    def _check_codebook(self, name: str, codebook_kd: Tensor, size: int) -> None:
        if codebook_kd.ndim != 2 or len(codebook_kd) != size or not bool(torch.isfinite(codebook_kd).all()):
            raise self._damaged(f"{name} has shape {tuple(codebook_kd.shape)} or is not finite; {size} are described")

    def _check_codes(self, name: str, codes_ns: Tensor, shape: tuple[int, ...], size: int) -> None:
        if tuple(codes_ns.shape) != shape or codes_ns.dtype not in (torch.int16, torch.int32, torch.int64):
            raise self._damaged(f"{name} is {codes_ns.dtype} of shape {tuple(codes_ns.shape)}; {shape} is described")
        if codes_ns.numel() and not (int(codes_ns.min()) >= 0 and int(codes_ns.max()) < size):
            raise self._damaged(f"{name} holds codes outside 0 to {size - 1}")

    def _check_said(self) -> None:
        """Raise ValueError for what no weights and no slices have."""
        plane, pixel_mm, _ = self.geometry
        if not _covers(self.grids, self.image_size):
            raise ValueError(f"the size of the images: {self.image_size} with grids {self.grids}")
        if not (isinstance(self.fingerprint, str) and self.fingerprint):
            raise ValueError(f"the fingerprint: {self.fingerprint!r}")
        if max(self.codebook_sizes, default=0) > _LARGEST_CODEBOOK:  # priors have a weight or more for each code
            raise ValueError(f"the codebook sizes: {self.codebook_sizes}")
        if plane is not None and plane not in list(PLANES):
            raise ValueError(f"the plane: {plane!r}")
        if pixel_mm is not None and (isinstance(pixel_mm, bool) or not 0 < pixel_mm < math.inf):
            raise ValueError(f"the pixel size: {pixel_mm!r}")

    def _damaged(self, what: str) -> InputError:
        return InputError(f"the code store in {self.folder} is damaged: {what}; run extract_codes.json again")


class CodesDataset(Dataset[dict[str, Tensor]]):
    """One split of a code store as training items.

    Items are ``{"codes_0": int64 (*s), "codes_1": ..., "condition": float32 (f,)}``; ``condition`` only where an
    encoder is given.

    Args:
        store: the code store.
        split: name of the split.
        encode_condition: makes (n, f) features from the slices' records, as `ConditionEncoder.encode` does, or None.

    Raises:
        InputError: the split is not in the store, or is empty.
    """

    def __init__(
        self,
        store: CodeStore,
        split: str,
        *,
        encode_condition: Callable[[Sequence[Mapping[str, Any]]], Tensor] | None = None,
    ) -> None:
        records = store.records(split)
        if not records:
            raise InputError(f"Split {split!r} of {store.folder} is empty")
        self.store, self.split, self.num_items = store, split, len(records)
        self.condition_nf = encode_condition(records) if encode_condition is not None else None

    def __len__(self) -> int:
        return self.num_items

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = {f"codes_{level}": codes_s for level, codes_s in enumerate(self.store.read(self.split, index))}
        if self.condition_nf is not None:
            item["condition"] = self.condition_nf[index]
        return item
