"""`monai-vqgen compress` and `decompress`: scans and pictures to `.vqg` files, and back to NIfTI and PNG."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from monai_vqgen.bundles import bundle_root
from monai_vqgen.coding.codec import CodeCodec
from monai_vqgen.coding.container import MOST_BYTES, unpack_stream
from monai_vqgen.data.io.nifti import nifti_bytes
from monai_vqgen.data.slices.datalists import SPLITS
from monai_vqgen.errors import DatalistError, InputError, StreamError, VQGenError
from monai_vqgen.files import claim_folder, publish, write_bytes
from monai_vqgen.models.loading import MODEL, RELEASES
from monai_vqgen.models.reconstruction_files import plain_stem
from monai_vqgen.models.record import read_record
from monai_vqgen.models.scans import reconstruction_records
from monai_vqgen.models.streams import compress_images, compress_scan, decompress_images, decompress_scan, stored_scan
from monai_vqgen.models.trained_model import TrainedModel
from monai_vqgen.transforms import LoadSlice
from monai_vqgen.transforms.loading import PICTURE_SUFFIXES

__all__ = ["compress_files", "decompress_files"]

SUFFIX = ".vqg"


def compress_files(
    files: Sequence[str | os.PathLike[str]],
    output_dir: str | os.PathLike[str],
    *,
    model: str | None = None,
    mode: str | None = None,
    plane: str | None = None,
    condition: Mapping[str, Any] | None = None,
    lossless: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Write each scan or picture as a `.vqg` file of its name.

    Args:
        files: NIfTI volumes and slices, folders of them or of DICOM series, and pictures (PNG).
        output_dir: created if missing.
        model: of `TrainedModel.from_bundle`; by default the faithful weights that come with the package.
        mode: "model" or "anywhere"; see `TrainedModel.compress`.
        plane: of the slices of volumes; by default the model's.
        condition: values by name, for all of them.
        lossless: also keep voxels and pixels as they are stored.
        overwrite: replace earlier files of these names.

    Returns:
        The files written.

    Raises:
        ScanError: a file that cannot be used; it is named, and those before it are written.
        OutputExistsError: a file of one of the names is there.
    """
    paths = [path for file in files for path in _inputs(Path(file))]
    trained = TrainedModel.from_bundle(model)
    CodeCodec(trained.autoencoder, trained.priors)  # what is missing is told before any work
    if (channels := trained.autoencoder.in_channels) not in (1, 3):
        raise InputError(f"files of 1 channel, or of 3 colors, are compressed, and this model has {channels} channels")
    options: dict[str, Any] = {"mode": mode, "condition": condition, "lossless": lossless}

    def compressed(path: Path) -> bytes:
        if path.suffix.lower() in PICTURE_SUFFIXES:
            image = LoadSlice(channels=trained.autoencoder.in_channels)(path).as_tensor()
            return compress_images(trained, image[None], **options)
        return compress_scan(trained, path, plane=plane, **options)

    names = _names(paths, lambda path: [plain_stem(path) + SUFFIX])
    return _written(output_dir, names, lambda path: [compressed(path)], overwrite=overwrite)


def decompress_files(
    files: Sequence[str | os.PathLike[str]],
    output_dir: str | os.PathLike[str],
    *,
    model: str | None = None,
    lossy: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Write what `.vqg` files hold: a scan as NIfTI in its own geometry and units, images as PNG.

    PNG has 8 bits, or 16 where the file keeps a gray image exactly that has more values.

    Args:
        files: of `compress_files`.
        output_dir: created if missing.
        model: that compressed them; by default the weights that come with the package and made the first of the files.
        lossy: write reconstructions also of files that keep the scan or picture itself.
        overwrite: replace earlier files of these names.

    Returns:
        The files written.

    Raises:
        StreamError: a stream that is damaged, or of other weights; it is named, and nothing is written of it.
        OutputExistsError: a file of one of the names is there.
    """
    paths = [Path(file) for file in files]
    streams = {path: _stream(path) for path in paths}
    headers = {path: _naming(path, lambda path: unpack_stream(streams[path])[0]) for path in streams}
    trained = TrainedModel.from_bundle(model or _release(headers[paths[0]].autoencoder))

    def contents(path: Path) -> Iterable[bytes]:
        if not lossy and (stored := stored_scan(streams[path])) is not None:
            return [nifti_bytes(stored.voxels_s, stored.affine, slope=stored.slope, offset=stored.offset)]
        if headers[path].geometry:
            volume = decompress_scan(trained, streams[path], lossy=lossy)
            return [nifti_bytes(volume[0].numpy(), volume.affine.numpy())]
        images = decompress_images(trained, streams[path], lossy=lossy)
        return map(_png if images.ndim == 4 else lambda image: nifti_bytes(image[0].numpy(), np.eye(4)), images)

    def named(path: Path) -> list[str]:
        header, stem = headers[path], path.name.removesuffix(SUFFIX)
        flat = not header.geometry and len(header.image_size) == 2
        suffix = ".png" if flat else ".nii.gz"
        alone = bool(header.geometry) or header.images == 1
        return [stem + suffix] if alone else [f"{stem}_{i:04d}{suffix}" for i in range(header.images)]

    return _written(output_dir, _names(paths, named), contents, overwrite=overwrite)


def _inputs(path: Path) -> list[Path]:
    if path.suffix == SUFFIX:
        raise InputError(f"{path} is compressed already: give scans or pictures, or use decompress")
    records: list[Any] = []
    for split in SPLITS:  # a folder of scans has none, and gives them all each time
        with contextlib.suppress(DatalistError):
            records += reconstruction_records(path, split)
    return list(dict.fromkeys(Path(record["image"]) for record in records or reconstruction_records(path)))


def _names(paths: Sequence[Path], named: Callable[[Path], list[str]]) -> dict[Path, list[str]]:
    names = {path: named(path) for path in paths}
    owners: dict[str, Path] = {}
    for path, own in names.items():
        for name in own:
            if owners.setdefault(name, path) != path:
                raise DatalistError(f"{owners[name]} and {path} would both be written as {name}: rename or move one")
    return names


def _written(
    output_dir: str | os.PathLike[str],
    names: Mapping[Path, list[str]],
    contents: Callable[[Path], Iterable[bytes]],
    *,
    overwrite: bool,
) -> list[Path]:
    """Write what each input becomes; nothing of one that fails."""
    place = claim_folder(output_dir, [name for own in names.values() for name in own], overwrite=overwrite)
    for path, own in tqdm(names.items(), unit="file", disable=len(names) < 2):
        for name, content in zip(own, _naming(path, lambda path: list(contents(path))), strict=True):
            write_bytes(place / name, content)
    folder = publish(place)
    return [folder / name for own in names.values() for name in own]


def _naming(path: Path, work: Callable[[Path], Any]) -> Any:
    """Do work on a file; an error of ours that does not name it is one that does."""
    try:
        return work(path)
    except VQGenError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


def _stream(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise StreamError(f"{path} is no file, but a folder, pipe or device: give a {SUFFIX} file")
        if path.stat().st_size > MOST_BYTES:
            raise StreamError(f"{path} is larger than any stream")
        return path.read_bytes()
    except OSError as error:
        raise StreamError(f"{path} cannot be read ({error.strerror}): give a {SUFFIX} file") from error


def _release(key: bytes) -> str | None:
    """The name of the weights that come with the package and have a fingerprint that begins so."""
    for name, folder in RELEASES.items():
        record = read_record(bundle_root() / folder / MODEL)
        if str(record.get("fingerprint", "")).startswith(key.hex()):
            return name
    return None


def _png(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    pixels = (image * 255 + 0.5).floor().byte().numpy()
    if len(pixels) == 1 and not torch.equal(image, torch.from_numpy(pixels) / 255):
        wide = (image.double() * 65535 + 0.5).floor().numpy()
        if np.array_equal(image.numpy(), wide.astype(np.float32) / np.float32(65535)):
            pixels = wide.astype(np.uint16)
    Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)).save(buffer, format="PNG")
    return buffer.getvalue()
