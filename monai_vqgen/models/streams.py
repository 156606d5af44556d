"""Images and scans as bytes of a trained model's codes, and back: `.vqg` streams (`monai_vqgen.coding.container`).

A scan's geometry, little-endian, in the header of its stream::

    1  plane: 0 axial, 1 coronal, 2 sagittal; 16 more where the affine is float64
    12 voxels along the scan's axes | 8 pixel size in mm, 0 for that of the scan
    12 intensities that are 0 and 1, and of the background, float32
    48 or 96  first three rows of the affine | the rest: one bit a slice along the normal, whether it is in the stream

Values that are kept exactly, those of images in [0, 1] or of a scan's voxels as stored::

    4  CRC-32 of all that follows | 1  axis of the scan along which its voxels are a stack
    8, 8  what voxels are multiplied with, and what is added (`scl_slope`, `scl_inter`)
    values (`monai_vqgen.coding.exact`)

Shape legend: n images or slices, c channels, f condition features, h w rows and columns, s spatial axes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

from monai_vqgen.coding.codec import CodeCodec, DecodedStream, entropy_coder
from monai_vqgen.coding.container import KEY_BYTES, Header, allowed_bytes, check_stream, unpack_stream
from monai_vqgen.coding.exact import pack_exact, unpack_exact
from monai_vqgen.data.io.volume import usable_volume
from monai_vqgen.errors import InputError, ScanError, StreamError
from monai_vqgen.inferers.reconstruction import VolumeFrame
from monai_vqgen.models.samples import encode_conditions
from monai_vqgen.models.scans import BUNDLE_PIXEL_MM, as_volume, intensities, stored_voxels
from monai_vqgen.transforms.foreground import Window
from monai_vqgen.transforms.geometry import PLANES, check_affine, view_plane
from monai_vqgen.transforms.nifti import FREE_BYTES, StoredVoxels
from monai_vqgen.transforms.resampling import resampled_size
from monai_vqgen.transforms.tensors import as_numbers
from monai_vqgen.weights import fingerprint

__all__ = ["compress_images", "compress_scan", "decompress_images", "decompress_scan", "stored_scan"]

_GEOMETRY, _DOUBLE, _EXACT = struct.Struct("<B3Id3f"), 16, struct.Struct("<B2d")
FREE_VOLUME = 1 << 30  # bytes of float32 that a volume may have, however short its stream is


def compress_images(
    model: Any,
    images: Tensor,
    *,
    mode: str | None = None,
    chunk_size: int | None = None,
    condition: Mapping[str, Any] | None = None,
    lossless: bool = False,
    geometry: bytes = b"",
    exact: bytes = b"",
) -> bytes:
    """The stream of images `(n, c, *s)` in [0, 1]; see `TrainedModel.compress`.

    Args:
        model: a `TrainedModel`.
        images: as it encodes them.
        mode: "model" or "anywhere".
        chunk_size: images coded together.
        condition: values by name, one for all images or one each.
        lossless: also keep the images themselves.
        geometry: of a scan; empty for plain images.
        exact: of a scan's voxels.
    """
    codec = CodeCodec(model.autoencoder, model.priors)
    images = as_numbers(images, "images")
    codes = model.encode(images)
    features = encode_conditions(model.condition, len(images), condition or {})
    size = tuple(images.shape[2:])
    if lossless:
        kept = images.float() if images.dtype in (torch.half, torch.bfloat16) else images
        exact = _pack_exact(StoredVoxels(kept.detach().cpu().numpy(), np.eye(4)), axis=0)
    options: dict[str, Any] = {"mode": mode, "chunk_size": chunk_size, "features": features}
    return codec.encode(codes, size, geometry=geometry, exact=exact, **options)


def decompress_images(model: Any, stream: bytes, *, lossy: bool = False) -> Tensor:
    """Images `(n, c, *s)` in [0, 1], on the CPU, of a stream; the slices where it is one of a scan.

    Args:
        model: that made the stream.
        stream: of images or of a scan.
        lossy: reconstructions also where the stream keeps the images themselves.

    Raises:
        StreamError: the stream is damaged, or was made with other weights.
    """
    header, _ = unpack_stream(stream)
    if header.exact and not header.geometry and not lossy:
        check_stream(header, bytes.fromhex(fingerprint(model.autoencoder))[:KEY_BYTES], b"", needs_priors=False)
        shape = (header.images, model.autoencoder.in_channels, *header.image_size)
        values = _unpack_exact(header, shape, len(stream)).voxels_s
        if values.dtype.kind != "f":
            raise StreamError("the stream's exact values are not those of images: copy the file again")
        return torch.from_numpy(values)
    return _decoded(model, CodeCodec(model.autoencoder, model.priors).decode(stream))


def _decoded(model: Any, found: DecodedStream) -> Tensor:
    parts = []
    for first in range(0, found.header.images, model.batch_size):
        codes = [level[first : first + model.batch_size].to(model.device) for level in found.codes]
        with torch.inference_mode():
            parts.append(model.autoencoder.decode(codes, found.header.image_size).clamp(0, 1).cpu())
    return torch.cat(parts)  # outside: a tensor that can be changed and trained on


def compress_scan(
    model: Any,
    scan: Any,
    *,
    plane: str | None = None,
    pixel_mm: float | None = None,
    mode: str | None = None,
    chunk_size: int | None = None,
    condition: Mapping[str, Any] | None = None,
    lossless: bool = False,
) -> bytes:
    """The stream of a volume or of a slice in space, slice by slice, with its geometry and intensity window.

    Args:
        model: a `TrainedModel` of slices.
        scan: as in `TrainedModel.reconstruct`: a NIfTI file, a folder with a DICOM series, a MetaTensor or an array.
        plane: of the slices; by default the one the model was trained on.
        pixel_mm: pixel size to resample to; by default the model's.
        mode: as in `TrainedModel.compress`.
        chunk_size: slices coded together.
        condition: values by name, for all slices.
        lossless: also keep the voxels as they are stored, all of them; of a cut slice, what `LoadSlice` reads.

    Raises:
        InputError: the model is one of volumes, an argument is out of range, or more than 65,536 different values are
            to be kept exactly.
        ScanError: a scan that cannot be read, or without contrast.

    Examples:
        >>> from monai_vqgen import TrainedModel
        >>> stream = compress_scan(TrainedModel.from_bundle(), "scan.nii.gz")  # doctest: +SKIP
        >>> decompress_scan(TrainedModel.from_bundle(), stream).shape  # doctest: +SKIP
        torch.Size([1, 160, 200, 145])
    """
    if model.autoencoder.spatial_dims == 3:
        raise InputError("this model is one of volumes, and a stream of a scan holds its slices: use compress")
    image = as_volume(scan)
    values = image.as_tensor() if image.ndim == 3 else image.as_tensor()[0]
    affine = check_affine(image.affine.cpu().double().numpy(), "the scan")
    pixel_mm = pixel_mm or model.record.pixel_mm or BUNDLE_PIXEL_MM
    size = tuple(model.record.image_size) or None
    inferer = model.reconstruction_inferer(plane=plane, pixel_mm=pixel_mm, image_size=size)
    if (unfolded := 4 * values.numel()) > FREE_VOLUME:
        raise ScanError(f"a volume of {unfolded / 2**30:.1f} GiB: a stream takes {FREE_VOLUME >> 30} GiB; crop it")
    cut = inferer.cut(values.detach().cpu().float().numpy(), affine)
    if not len(cut.images_nhw):
        raise ScanError("the scan is blank: there is nothing to compress")
    images = torch.from_numpy(cut.images_nhw)[:, None]
    options: dict[str, Any] = {"mode": mode, "chunk_size": chunk_size, "condition": condition}
    if lossless:
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        options["exact"] = _pack_exact(stored_voxels(scan, image), axis=2 - int(np.argmax(spacing[::-1])))
    return compress_images(model, images, geometry=_pack_geometry(cut.frame, pixel_mm), **options)


def stored_scan(stream: bytes) -> StoredVoxels | None:
    """The voxels of a scan as they were stored, with slope, offset and affine; None where a stream does not keep them.

    No weights are needed.

    Raises:
        StreamError: the stream is damaged.
    """
    header, _ = unpack_stream(stream)
    if not header.geometry or not header.exact:
        return None
    frame, _ = _unpack_geometry(header.geometry, header.images, header.image_size, len(stream))
    return _unpack_exact(header, frame.shape, len(stream))._replace(affine=frame.affine)


def decompress_scan(model: Any, stream: bytes, *, lossy: bool = False) -> MetaTensor:
    """The scan `(1, X, Y, Z)` of a stream in its own geometry and units; what was blank is background.

    Its `meta` has the plane, and the known conditions of each slice that is not blank; not so that of a scan whose
    voxels are kept exactly, which comes back as it was read.

    Args:
        model: that made the stream.
        stream: of a scan.
        lossy: the reconstruction also where the stream keeps the voxels themselves.

    Raises:
        InputError: the stream holds plain images: use `decompress_images`.
        StreamError: the stream is damaged, or was made with other weights; where it keeps the voxels and they are asked
            for, any weights will do.
    """
    if not lossy and (stored := stored_scan(stream)) is not None:
        volume = usable_volume(stored, Path("the stream"))
        return MetaTensor(intensities(volume)[None], affine=torch.from_numpy(volume.affine))
    found = CodeCodec(model.autoencoder, model.priors).decode(stream)
    header = found.header
    if not header.geometry:
        raise InputError("the stream holds images without a place in space: use decompress")
    frame, pixel_mm = _unpack_geometry(header.geometry, header.images, header.image_size, len(stream))
    inferer = model.reconstruction_inferer(plane=frame.plane, pixel_mm=pixel_mm, image_size=header.image_size)
    volume_s = inferer.restore(_decoded(model, found)[:, 0].numpy(), frame)
    known = found.features is not None and model.condition is not None
    meta = {"conditions": model.condition.decode(found.features) if known else [], "plane": frame.plane}
    return MetaTensor(torch.from_numpy(volume_s)[None], affine=torch.from_numpy(frame.affine), meta=meta)


def _pack_exact(stored: StoredVoxels, *, axis: int) -> bytes:
    """Values, for a coder a stack of images along an axis or, of images in batches and channels, along all but two."""
    stack = np.moveaxis(stored.voxels_s, axis, 0)
    values = pack_exact(stack.reshape(-1, *stack.shape[-2:]), entropy_coder())
    told = _EXACT.pack(axis, stored.slope, stored.offset) + values
    return zlib.crc32(told).to_bytes(4, "little") + told


def _unpack_exact(header: Header, shape: tuple[int, ...], stream_bytes: int) -> StoredVoxels:
    """Values of a shape, without an affine; what a stream of that length may not hold is refused before it is made."""
    wrong = StreamError("the stream's exact values are damaged: copy the file again")
    checksum, told = header.exact[:4], header.exact[4:]
    if len(told) < _EXACT.size or zlib.crc32(told).to_bytes(4, "little") != checksum:
        raise wrong
    axis, slope, offset = _EXACT.unpack_from(told)
    most = float(np.finfo(np.float32).max)
    if axis >= len(shape) or not (0 < abs(slope) <= most and abs(offset) <= most):
        raise wrong
    stacked = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    flat = (prod(stacked[:-2]), *stacked[-2:])
    values = unpack_exact(told[_EXACT.size :], flat, entropy_coder(), most_bytes=allowed_bytes(stream_bytes))
    return StoredVoxels(np.moveaxis(values.reshape(stacked), 0, axis), np.eye(4), slope, offset)


def _pack_geometry(frame: VolumeFrame, pixel_mm: float) -> bytes:
    rows = np.asarray(frame.affine, dtype=np.float64)[:3]
    single = rows.astype("<f4")
    exact = bool((single == rows).all())
    kind = [*PLANES].index(frame.plane) + (0 if exact else _DOUBLE)
    told = _GEOMETRY.pack(kind, *frame.shape, pixel_mm, *frame.window, frame.background)
    return told + (single if exact else rows.astype("<f8")).tobytes() + np.packbits(frame.filled_n).tobytes()


def _unpack_geometry(
    packed: bytes, count: int, image_size: tuple[int, ...], stream_bytes: int
) -> tuple[VolumeFrame, float]:
    """The frame and the pixel size, checked against what the header says, before anything of its size is made."""
    wrong = StreamError("the stream's geometry does not fit its slices: copy the file again")
    if len(packed) < _GEOMETRY.size:
        raise wrong
    kind, *numbers = _GEOMETRY.unpack_from(packed)
    shape, pixel_mm, (low, high, background) = tuple(numbers[:3]), numbers[3], numbers[4:]
    names, form, rest = [*PLANES], "<f8" if kind & _DOUBLE else "<f4", packed[_GEOMETRY.size :]
    width = 12 * np.dtype(form).itemsize
    usable = (
        kind & ~_DOUBLE < len(names) and len(rest) >= width and np.isfinite([pixel_mm, low, high, background]).all()
    )
    if not usable or not pixel_mm > 0 or not 0 < 4 * prod(shape) <= max(FREE_VOLUME, allowed_bytes(stream_bytes)):
        raise wrong
    affine = np.vstack([np.frombuffer(rest[:width], form).reshape(3, 4).astype(np.float64), [0.0, 0.0, 0.0, 1.0]])
    plane = names[kind & ~_DOUBLE]
    try:
        view = view_plane(np.broadcast_to(np.float32(0), shape), affine, plane)
    except ScanError as error:
        raise wrong from error
    *size, slices = view.volume_s.shape
    bits = np.frombuffer(rest[width:], np.uint8)
    spread = np.array(size) * np.array(view.spacing[:2]) / pixel_mm  # checked before anything of that size is made
    if len(bits) != -(-slices // 8) or (spread > np.array(image_size) + 1).any():
        raise wrong
    filled_n = np.unpackbits(bits, count=slices).astype(bool)
    shown = resampled_size(size, view.affine, pixel_mm)
    if filled_n.sum() != count or any(n > m for n, m in zip(shown, image_size, strict=True)):
        raise wrong
    if 8 * max(n * m for n, m in zip(size, shown, strict=True)) > FREE_BYTES:
        raise wrong
    return VolumeFrame(shape, affine, plane, Window(low, high), background, filled_n), pixel_mm
