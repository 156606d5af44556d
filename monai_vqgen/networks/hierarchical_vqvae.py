"""The hierarchical VQ-VAE: an image as a few grids of codes, coarse to fine.

Shape suffixes: b batch, c channels, d code dimension, s spatial axes (2 or 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_vqgen.errors import CodesMismatchError, InputError
from monai_vqgen.networks.architecture import Recorded
from monai_vqgen.networks.blocks import Downsampler, Upsampler, ceil_to, hide_finer, one_a_level
from monai_vqgen.networks.quantizers.base import BlankCells, Quantized, Quantizer, learned
from monai_vqgen.networks.quantizers.codebooks import EMACodebook


class HierarchyPass(NamedTuple):
    """What a training pass gives.

    Attributes:
        reconstruction_bcs: same shape as the images.
        levels: quantized latents of each level, coarsest first.

    Examples:
        >>> passed = HierarchicalVQVAE(channels=8, residual_channels=4).train_pass(torch.rand(2, 1, 32, 32))
        >>> loss = passed.reconstruction_bcs.mean() + sum(level.loss for level in passed.levels)
    """

    reconstruction_bcs: Tensor
    levels: tuple[Quantized, ...]


class HierarchicalVQVAE(Recorded, nn.Module):
    """VQ-VAE of any number of levels; one level is the VQ-VAE, two are the VQ-VAE-2.

    ::

        image ─down─> features[1] ─down─> features[0]             level 1 is the finest, level 0 the coarsest
                          │                   │
                          │                quantize ──> codes[0]
                          │                   │
                       quantize <──context── up
                          ├──> codes[1]
        image <──up── embeddings[1] + context

    van den Oord et al. 2017; Razavi et al. 2019, section 3.1 and algorithm 1. Each level's latents see the decoded
    coarser levels, and the decoder of each level sees them too. ``finer_dropout`` hides the finer levels of a random
    part of the training batch from the decoder, so that the coarsest must describe the image by itself: it keeps its
    codes in use, and makes decoding from the coarsest levels alone meaningful.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the reconstruction; None for those of the image.
        strides: image pixels per code along an axis, coarsest level first; powers of two, each a multiple of the next.
        channels: hidden channels.
        residual_channels: hidden channels of a residual unit.
        num_residual_blocks: residual units in each stack.
        num_codes: codes of each level's `EMACodebook`, one number or one a level, coarsest first.
        code_dim: dimension of their vectors, likewise.
        quantizers: one a level, coarsest first, in place of the last two; ``None`` takes these.
        finer_dropout: probability, a sample, of hiding the finer levels in training; in [0, 1).
        blank_threshold: intensity up to which a pixel is background; ``None`` treats all cells alike.
        blank_margin: cells around content that are not blank either, one number or one a level; ``None`` is one, and
            none on the finest level.

    A cell is blank where no pixel above ``blank_threshold`` lies in it or within ``blank_margin`` cells of it. The
    encoder writes one code there, the last of the level (`BlankCells`), so that priors spend almost nothing on the
    background.

    Images are ``(b, c, *s)`` of any size; one that the coarsest stride does not divide is padded with its edge and
    the reconstruction cropped back. Codes do not tell the size of such an image: `decode` takes it as ``image_size``,
    and without it gives all that the grids cover. Intensities are expected in [0, 1]; outputs are not clamped.
    Images are of the network's own type, so cast both for ``half()`` or ``bfloat16()``.

    The defaults are the sizes of the weights "faithful" that come with the package, which have blank cells besides
    (``blank_threshold=0.01``); `TrainedModel.from_bundle` loads any weights and builds the network of their
    record.

    Raises:
        InputError: for strides or a number of quantizers that cannot work, or an image of other dimensions.
        CodesMismatchError: for codes outside the codebook or grids that do not fit one another.

    Examples:
        >>> network = HierarchicalVQVAE(channels=16, residual_channels=8)
        >>> codes = network.encode(torch.zeros(1, 1, 64, 64))
        >>> [tuple(c.shape) for c in codes]
        [(1, 8, 8), (1, 16, 16)]
        >>> three = HierarchicalVQVAE(3, strides=(8, 4, 2), channels=8, residual_channels=4, num_codes=[16, 32, 64])
        >>> three.decode(three.encode(torch.zeros(1, 1, 9, 8, 8)), image_size=(9, 8, 8)).shape
        torch.Size([1, 1, 9, 8, 8])
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        *,
        out_channels: int | None = None,
        strides: Sequence[int] = (8, 4),
        channels: int = 64,
        residual_channels: int = 32,
        num_residual_blocks: int = 2,
        num_codes: int | Sequence[int] = 512,
        code_dim: int | Sequence[int] = 16,
        quantizers: Sequence[Quantizer] | None = None,
        finer_dropout: float = 0.1,
        blank_threshold: float | None = None,
        blank_margin: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self._start(spatial_dims, in_channels, strides, finer_dropout=finer_dropout)
        out_channels = self._told("out_channels", in_channels if out_channels is None else out_channels)
        self._start_quantizers(quantizers, num_codes=num_codes, code_dim=code_dim)
        self._start_blank(blank_threshold, blank_margin)
        # Coarsest first: the ratio of a level to the next finer one, and of the finest to the image.
        ratios = [coarse // fine for coarse, fine in pairwise([*strides, 1])]
        for level, (ratio, quantizer) in enumerate(zip(ratios, self._quantizers, strict=True)):
            finest = level == len(strides) - 1
            context = channels if level else 0
            width_in, width_out = (in_channels, out_channels) if finest else (channels, channels)
            sizes = {"channels": channels, "stride": ratio}
            sizes |= {"residual_channels": residual_channels, "num_blocks": num_residual_blocks}
            self.downsamplers.append(Downsampler(spatial_dims, width_in, **sizes))
            self.to_latents.append(Conv[Conv.CONV, spatial_dims](channels + context, quantizer.dim, 1))
            width = quantizer.dim + context
            self.upsamplers.append(Upsampler(spatial_dims, width, out_channels=width_out, **sizes))

    def _start(self, spatial_dims: int, in_channels: int, strides: Sequence[int], *, finer_dropout: float) -> None:
        """Check and keep what all levels share, with lists that a constructor fills level by level."""
        if spatial_dims not in (2, 3):
            raise InputError(f"spatial_dims={spatial_dims} must be 2 or 3")
        if not strides:
            raise InputError("strides is empty: give the stride of each level, coarsest first, such as (8, 4)")
        for coarse, fine in pairwise([*strides, 1]):
            if fine < 1 or coarse % fine or (coarse == fine and fine != 1):
                falling = "must fall from the coarsest level to the finest, each a multiple of the next"
                raise InputError(f"strides={tuple(strides)} {falling}")
        if not 0 <= finer_dropout < 1:
            raise InputError(f"finer_dropout={finer_dropout} must be at least 0 and below 1")
        self.spatial_dims, self.in_channels = spatial_dims, in_channels
        self.strides, self.finer_dropout = tuple(strides), finer_dropout
        self.quantizers = nn.ModuleList()
        self.downsamplers, self.to_latents, self.upsamplers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()

    def _start_quantizers(
        self, given: Sequence[Quantizer] | None, *, num_codes: int | Sequence[int], code_dim: int | Sequence[int]
    ) -> None:
        """Take the quantizers that were given, or an `EMACodebook` a level."""
        if given is None:
            sizes = one_a_level("num_codes", num_codes, self.num_levels)
            dims = one_a_level("code_dim", code_dim, self.num_levels)
            given = [EMACodebook(size, dim) for size, dim in zip(sizes, dims, strict=True)]
        if len(given) != self.num_levels:
            raise InputError(f"{len(given)} quantizers for {self.num_levels} strides: give one quantizer a level")
        self.quantizers.extend(given)

    def _start_blank(self, threshold: float | None, margin: int | Sequence[int] | None) -> None:
        """Give each quantizer a code for blank cells, unless no threshold says what background is."""
        default = [1] * (self.num_levels - 1) + [0]
        margins = default if margin is None else one_a_level("blank_margin", margin, self.num_levels)
        if any(cells < 0 or cells != int(cells) for cells in margins):
            raise InputError(f"blank_margin={margin} must be whole numbers of cells, 0 or more")
        if threshold is not None:
            if not isinstance(threshold, int | float) or not math.isfinite(threshold):
                raise InputError(
                    f"blank_threshold={threshold!r} must be a finite intensity, or None for no blank cells"
                )
            self.quantizers = nn.ModuleList(BlankCells(quantizer) for quantizer in self._quantizers)
        self.blank_threshold, self.blank_margin = threshold, tuple(map(int, margins))

    @property
    def num_levels(self) -> int:
        """Number of grids an image is written as."""
        return len(self.strides)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each level, coarsest first."""
        return tuple(quantizer.num_codes for quantizer in self._quantizers)

    @property
    def _quantizers(self) -> list[Quantizer]:
        return cast("list[Quantizer]", list(self.quantizers))

    @property
    def _dtype(self) -> torch.dtype:
        """The type the network was cast to; its quantizers stay in float32."""
        return next(self.to_latents.parameters()).dtype

    def codebooks(self) -> tuple[Tensor, ...]:
        """Return each level's vectors ``(k, d)`` in the order of its codes, coarsest first; copies."""
        device = next(self.parameters()).device
        every = [torch.arange(size, device=device)[None] for size in self.codebook_sizes]
        return tuple(q.lookup(codes)[0].t().detach().clone() for q, codes in zip(self._quantizers, every, strict=True))

    def grids(self, image_size: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Return the grid shape of each level for an image of ``image_size`` pixels, coarsest first."""
        if len(image_size) != self.spatial_dims:
            raise InputError(f"image_size={tuple(image_size)} must have {self.spatial_dims} entries")
        padded = [ceil_to(size, self.strides[0]) for size in image_size]
        return tuple(tuple(size // stride for size in padded) for stride in self.strides)

    def forward(self, images_bcs: Tensor) -> Tensor:
        """Return the reconstruction, shaped like ``images_bcs``; changes nothing in either mode."""
        return self._pass(images_bcs, learning=False).reconstruction_bcs

    def train_pass(self, images_bcs: Tensor) -> HierarchyPass:
        """Reconstruct a training batch and let the quantizers learn from it; the one method that changes buffers."""
        return self._pass(images_bcs, learning=True)

    def encode(self, images_bcs: Tensor) -> tuple[Tensor, ...]:
        """Write images as codes: one integer grid ``(b, *s)`` a level, coarsest first."""
        return tuple(level.codes_bs for level in self.levels(images_bcs))

    def levels(self, images_bcs: Tensor) -> tuple[Quantized, ...]:
        """Quantize images without decoding them to the end; coarsest first. Changes nothing."""
        return self._quantize(self._pad(images_bcs), learning=False)[0]

    def embed(self, codes: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the embeddings ``(b, d, *s)`` of each grid of codes, coarsest first."""
        self._check_codes(codes)
        dtype = self._dtype
        return tuple(q.lookup(grid).to(dtype) for q, grid in zip(self._quantizers, codes, strict=False))

    def decode(self, codes: Sequence[Tensor], image_size: Sequence[int] | None = None) -> Tensor:
        """Return the images ``(b, c, *s)`` of codes, coarsest grid first.

        With fewer grids than levels the finer ones are taken as absent: what the coarsest levels alone hold.

        Args:
            codes: integers ``(b, *grid)`` a level.
            image_size: pixels of the images that were encoded, whose padding is cropped; None keeps all that the
                grids cover, the coarsest grid's size times its stride.

        Raises:
            CodesMismatchError: codes outside the codebook, or grids that fit neither one another nor `image_size`.
        """
        embeddings = list(self.embed(codes))
        for level in range(len(embeddings), self.num_levels):
            grid = [size * self.strides[0] // self.strides[level] for size in codes[0].shape[1:]]
            embeddings.append(embeddings[0].new_zeros(codes[0].shape[0], self._quantizers[level].dim, *grid))
        images_bcs = self._decode_embeddings(embeddings)
        if image_size is None:
            return images_bcs
        if self.grids(image_size)[0] != tuple(codes[0].shape[1:]):
            raise CodesMismatchError(
                f"images of {tuple(image_size)} pixels have a coarsest grid of {self.grids(image_size)[0]}, and codes "
                f"of {tuple(codes[0].shape[1:])} were given: give the size of the images that were encoded"
            )
        return _cropped(images_bcs, image_size)

    def _decode_embeddings(self, embeddings: Sequence[Tensor]) -> Tensor:
        decoded: Tensor = self.upsamplers[0](embeddings[0])
        for embeddings_bds, upsampler in zip(embeddings[1:], self.upsamplers[1:], strict=True):
            decoded = upsampler(torch.cat([embeddings_bds, decoded], 1))
        return decoded

    def _pass(self, images_bcs: Tensor, *, learning: bool) -> HierarchyPass:
        padded_bcs = self._pad(images_bcs)
        levels, context = self._quantize(padded_bcs, learning=learning)
        embeddings = [level.embeddings_bds for level in levels]
        hiding = learning and self.finer_dropout > 0
        if hiding:
            embeddings = hide_finer(embeddings, self.finer_dropout)
        if context is not None and (not hiding or self.num_levels == 2):  # what is hidden changes only the finest level
            reconstruction_bcs = self.upsamplers[-1](torch.cat([embeddings[-1], context], 1))
        else:
            reconstruction_bcs = self._decode_embeddings(embeddings)
        return HierarchyPass(_cropped(reconstruction_bcs, images_bcs.shape[2:]), levels)

    def _quantize(self, images_bcs: Tensor, *, learning: bool) -> tuple[tuple[Quantized, ...], Tensor | None]:
        """Quantize every level; also return the context that the coarser levels give the finest."""
        features = [images_bcs]
        for downsampler in reversed(self.downsamplers):
            features.insert(0, downsampler(features[0]))
        levels: list[Quantized] = []
        context: Tensor | None = None
        for level in range(self.num_levels):
            if level:
                coarser_bds = levels[-1].embeddings_bds
                merged = coarser_bds if context is None else torch.cat([coarser_bds, context], 1)
                context = self.upsamplers[level - 1](merged)
            seen = features[level] if context is None else torch.cat([features[level], context], 1)
            found = self._quantize_level(level, self.to_latents[level](seen), images_bcs, learning=learning)
            levels.append(found._replace(embeddings_bds=found.embeddings_bds.to(self._dtype)))
        return tuple(levels), context

    def _quantize_level(self, level: int, latents_bds: Tensor, images_bcs: Tensor, *, learning: bool) -> Quantized:
        quantizer = self._quantizers[level]
        if self.blank_threshold is None or not isinstance(quantizer, BlankCells):
            return learned(quantizer, latents_bds) if learning else cast("Quantized", quantizer(latents_bds))
        filled_bs = self._filled(images_bcs, self.blank_threshold, level)
        return quantizer.learned(latents_bds, filled_bs) if learning else quantizer.marked(latents_bds, filled_bs)

    def _filled(self, images_bcs: Tensor, threshold: float, level: int) -> Tensor:
        """Say which cells ``(b, *s)`` of a level are not blank."""
        pool = F.max_pool2d if self.spatial_dims == 2 else F.max_pool3d
        content_b1s = (images_bcs > threshold).any(1, keepdim=True).to(images_bcs.dtype)
        cells_b1s = pool(content_b1s, self.strides[level])
        margin = self.blank_margin[level]
        return pool(cells_b1s, 2 * margin + 1, stride=1, padding=margin)[:, 0] > 0

    def _pad(self, images_bcs: Tensor) -> Tensor:
        if images_bcs.ndim != self.spatial_dims + 2:
            raise InputError(
                f"images of shape {tuple(images_bcs.shape)} for a network of {self.spatial_dims} spatial dimensions: "
                f"expected (batch, channels, {', '.join('HWD'[: self.spatial_dims])})"
            )
        if images_bcs.shape[1] != self.in_channels:
            raise InputError(
                f"images of {images_bcs.shape[1]} channels for a network of {self.in_channels}: set "
                "network_def::in_channels, or convert the images"
            )
        if 0 in images_bcs.shape[2:]:
            raise InputError(f"images of shape {tuple(images_bcs.shape)} have no pixels: every side needs at least one")
        missing = [ceil_to(size, self.strides[0]) - size for size in images_bcs.shape[2:]]
        if not any(missing):
            return images_bcs
        return F.pad(images_bcs, [width for size in reversed(missing) for width in (0, size)], mode="replicate")

    def _check_codes(self, codes: Sequence[Tensor]) -> None:
        if not 1 <= len(codes) <= self.num_levels:
            raise CodesMismatchError(
                f"{len(codes)} grids of codes were given: this network has {self.num_levels} levels, coarsest first"
            )
        for level, grid in enumerate(codes):
            scale = self.strides[0] // self.strides[level]
            expected = tuple(size * scale for size in codes[0].shape[1:])
            if tuple(grid.shape[1:]) != expected or grid.shape[0] != codes[0].shape[0]:
                raise CodesMismatchError(
                    f"level {level} has codes of shape {tuple(grid.shape)}: with level 0 of shape "
                    f"{tuple(codes[0].shape)} it must be {(codes[0].shape[0], *expected)}"
                )
            size = self.codebook_sizes[level]
            if torch.jit.is_tracing() or torch.compiler.is_compiling():
                continue  # an exported graph cannot look at values to raise an error
            if grid.numel() and (int(grid.min()) < 0 or int(grid.max()) >= size):
                raise CodesMismatchError(f"level {level} has codes outside 0..{size - 1}: made by another autoencoder?")


def _cropped(images_bcs: Tensor, size: Sequence[int]) -> Tensor:
    window: tuple[Any, ...] = (..., *[slice(0, pixels) for pixels in size])
    return images_bcs[window]
