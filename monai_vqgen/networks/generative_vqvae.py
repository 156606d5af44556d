"""A VQ-VAE made for generation: blocks that draw sharply, and one code for cells in which there is nothing.

Shape suffixes: b batch, c channels, d code dimension, k codebook size, n vectors, s spatial axes (2 or 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from monai.networks.blocks import SpatialAttentionBlock
from monai.networks.layers.factories import Conv
from monai.networks.nets.autoencoderkl import AEKLResBlock
from torch import Tensor, nn

from monai_vqgen.errors import InputError
from monai_vqgen.networks.blocks import halvings
from monai_vqgen.networks.hierarchical_vqvae import HierarchicalVQVAE
from monai_vqgen.networks.quantizers.base import Quantizer

_GROUPS = 8  # of every group normalization
_EPSILON = 1e-5  # its own, torch's default


class GenerativeVQVAE(HierarchicalVQVAE):
    """`HierarchicalVQVAE` with the blocks of VQGAN, for codes that a prior can predict and images that look sharp.

    ::

        down:  [4-wide convolution of stride 2, residual] x log2(stride), (attention, residual), norm, SiLU
        up:    3-wide convolution, residual, (attention, residual), [nearest x2, convolution, residual] x log2(stride),
               norm, SiLU, 3-wide convolution                               (in parentheses: the coarsest level alone)

    Esser et al. 2021, section 3.1 (residual blocks with group normalization, self-attention at the coarsest grid), with
    upsampling by nearest neighbor and convolution (Odena et al. 2016). Residual blocks and attention start as the
    identity.

    A cell is blank where no pixel above ``blank_threshold`` lies in it or within ``blank_margin`` cells of it. The
    encoder writes one code there, the last of the codebook, whose vector is learned with the decoder; the quantizers
    neither see nor learn from such cells. Priors then spend almost nothing on the background.

    The weights "generative" that come with the package have ``decoder_widths`` of (48, 96, 192, 192), and the defaults
    otherwise; `TrainedModel.from_bundle` builds what the record of any weights says.

    Train it with `AutoencoderObjective` and `AdversarialUpdate` (``bundle/configs/train_generative.json``): by squared
    error alone it draws as smoothly as any other.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the reconstruction; None for those of the image.
        strides: image pixels per code along an axis, coarsest level first, as in `HierarchicalVQVAE`.
        widths: channels at full resolution, at half of it, and so on down to the coarsest grid; multiples of 8.
        decoder_widths: those of the decoder, the same number of them; ``None`` takes `widths`. Detail that the codes do
            not hold is drawn by the finer layers, so that it pays to make them wider than the encoder's.
        num_heads: of the attention at the coarsest grid; divides the last of `widths`.
        num_codes: codes of each level's `EMACodebook`, one number or one a level; the blank one comes on top.
        code_dim: dimension of their vectors, likewise.
        quantizers: one a level, coarsest first, in place of the last two.
        finer_dropout: probability, a sample, of hiding the finer levels in training; in [0, 1).
        blank_threshold: intensity up to which a pixel is background; ``None`` treats all cells alike.
        blank_margin: cells around content that are not blank either, one number or one a level.

    Raises:
        InputError: for an architecture that cannot work, as in `HierarchicalVQVAE`, widths or a margin included.

    Examples:
        >>> import torch
        >>> network = GenerativeVQVAE(widths=(8, 8, 16, 16), num_codes=32)
        >>> images = torch.zeros(1, 1, 64, 64)
        >>> images[:, :, :8, :8] = 0.5
        >>> (codes,) = network.encode(images)
        >>> network.codebook_sizes, int((codes == 32).sum())  # 60 of 64 cells are blank
        ((33,), 60)
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        *,
        out_channels: int | None = None,
        strides: Sequence[int] = (8,),
        widths: Sequence[int] = (24, 48, 96, 192),
        decoder_widths: Sequence[int] | None = None,
        num_heads: int = 4,
        num_codes: int | Sequence[int] = 1024,
        code_dim: int | Sequence[int] = 8,
        quantizers: Sequence[Quantizer] | None = None,
        finer_dropout: float = 0.0,
        blank_threshold: float | None = 0.01,
        blank_margin: int | Sequence[int] = 1,
    ) -> None:
        nn.Module.__init__(self)
        self._start(spatial_dims, in_channels, strides, finer_dropout=finer_dropout)
        out_channels = self._told("out_channels", in_channels if out_channels is None else out_channels)
        decoder_widths = widths if decoder_widths is None else decoder_widths
        _check_widths(strides, widths, num_heads)
        _check_widths(strides, decoder_widths, num_heads, name="decoder_widths")
        self._start_quantizers(quantizers, num_codes=num_codes, code_dim=code_dim)
        self._start_blank(blank_threshold, blank_margin)
        for level, (stride, finer) in enumerate(pairwise([*strides, 1])):
            inner, outer = (list(all_[halvings(finer) : halvings(stride) + 1]) for all_ in (widths, decoder_widths))
            finest, context = level == len(strides) - 1, inner[-1] if level else 0
            heads = 0 if level else num_heads
            dim = self._quantizers[level].dim
            width_in, width_out = (in_channels, out_channels) if finest else (inner[0], inner[0])
            down = _downsampler(spatial_dims, width_in, inner, heads)
            self.downsamplers.append(nn.Sequential(_Centered(), *down) if finest else nn.Sequential(*down))
            self.to_latents.append(Conv[Conv.CONV, spatial_dims](inner[-1] + context, dim, 1))
            self.upsamplers.append(nn.Sequential(*_upsampler(spatial_dims, dim + context, outer, width_out, heads)))


class _Centered(nn.Module):
    """Intensities of [0, 1] as [-1, 1]."""

    def forward(self, images_bcs: Tensor) -> Tensor:
        return images_bcs * 2 - 1


def _check_widths(strides: Sequence[int], widths: Sequence[int], num_heads: int, *, name: str = "widths") -> None:
    needed = halvings(strides[0]) + 1
    if len(widths) != needed or any(width < 1 or width % _GROUPS for width in widths):
        raise InputError(
            f"{name}={tuple(widths)} for strides={tuple(strides)}: give {needed} multiples of {_GROUPS}, from full "
            "resolution down to the coarsest grid"
        )
    if num_heads < 1 or widths[-1] % num_heads:
        raise InputError(f"num_heads={num_heads} must be at least 1 and divide the last of {name}, {widths[-1]}")


def _residual(spatial_dims: int, channels: int) -> AEKLResBlock:
    block = AEKLResBlock(spatial_dims, channels, _GROUPS, _EPSILON, channels)
    nn.init.zeros_(block.conv2.get_parameter("conv.weight"))
    return block


def _middle(spatial_dims: int, channels: int, heads: int) -> list[nn.Module]:
    if not heads:
        return []
    attention = SpatialAttentionBlock(
        spatial_dims, channels, channels // heads, _GROUPS, _EPSILON, use_flash_attention=True
    )
    nn.init.zeros_(attention.get_parameter("attn.out_proj.weight"))
    return [attention, _residual(spatial_dims, channels)]


def _downsampler(spatial_dims: int, width_in: int, widths: Sequence[int], heads: int) -> list[nn.Module]:
    """Layers ``(b, width_in, *s) -> (b, widths[-1], *s / stride)`` with one halving a further width."""
    conv = Conv[Conv.CONV, spatial_dims]
    layers: list[nn.Module] = []
    if len(widths) == 1:
        layers += [conv(width_in, widths[0], 3, padding=1), _residual(spatial_dims, widths[0])]
    for narrower, wider in pairwise([width_in, *widths[1:]]):
        layers += [conv(narrower, wider, 4, stride=2, padding=1), _residual(spatial_dims, wider)]
    return [*layers, *_middle(spatial_dims, widths[-1], heads), nn.GroupNorm(_GROUPS, widths[-1]), nn.SiLU()]


def _upsampler(spatial_dims: int, width_in: int, widths: Sequence[int], width_out: int, heads: int) -> list[nn.Module]:
    """The mirror: layers ``(b, width_in, *s) -> (b, width_out, *s * stride)``."""
    conv = Conv[Conv.CONV, spatial_dims]
    layers = [conv(width_in, widths[-1], 3, padding=1), _residual(spatial_dims, widths[-1])]
    layers += _middle(spatial_dims, widths[-1], heads)
    for wider, narrower in pairwise(reversed(widths)):
        layers += [nn.Upsample(scale_factor=2, mode="nearest"), conv(wider, narrower, 3, padding=1)]
        layers.append(_residual(spatial_dims, narrower))
    return [*layers, nn.GroupNorm(_GROUPS, widths[0]), nn.SiLU(), conv(widths[0], width_out, 3, padding=1)]
