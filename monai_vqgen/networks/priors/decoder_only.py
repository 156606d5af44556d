"""MONAI's decoder-only transformer as a prior.

Legend of suffixes: b batch, c channels, k number of codes, m positions of the context, n raster positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.nets import DecoderOnlyTransformer
from torch import Tensor, nn

from monai_vqgen.errors import InputError
from monai_vqgen.networks.priors.base import Prior, check_prior_inputs
from monai_vqgen.networks.priors.layers import COORDINATE_OCTAVES, coordinate_features


class DecoderOnlyPrior(Prior):
    """Lets `monai.networks.nets.DecoderOnlyTransformer` model a grid of codes, read in raster order.

        codes -> raster sequence -> [begin, code 0, ..., code n-2] -> transformer -> logits of code 0 ... code n-1
        coarser codes, condition -> context network (+ coordinates) -> sequence for cross-attention

    Pinaya et al., "Unsupervised brain imaging 3D anomaly detection and segmentation with transformers", 2022. It has
    no cached path: sampling runs the whole grid at every position, as MONAI's own does.

    Args:
        num_codes: codebook size K; the begin token is a (K + 1)-th.
        spatial_dims: 2 or 3.
        max_positions: largest number of positions of a grid; a grid must keep one shape for all of training and
            sampling, since positions are learned along the sequence.
        channels: width of the transformer.
        num_layers: its blocks.
        num_heads: its heads; must divide `channels`.
        coarser_codes: codebook sizes of the coarser levels, coarsest first.
        condition_dim: length of the condition vector, 0 for none.
        dropout: probability with which an embedding feature is dropped in training.

    Shapes:
        codes `(b, *grid)` integers in [0, K) -> logits `(b, K, *grid)`.

    Raises:
        InputError: arguments that cannot work, or inputs that do not fit the prior.

    Examples:
        >>> prior = DecoderOnlyPrior(8, max_positions=30, channels=16, num_layers=1, num_heads=2)
        >>> prior(torch.randint(8, (3, 5, 6))).shape
        torch.Size([3, 8, 5, 6])
    """

    def __init__(
        self,
        num_codes: int,
        spatial_dims: int = 2,
        *,
        max_positions: int = 1024,
        channels: int = 256,
        num_layers: int = 8,
        num_heads: int = 8,
        coarser_codes: Sequence[int] = (),
        condition_dim: int = 0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(num_codes, spatial_dims, coarser_codes=coarser_codes, condition_dim=condition_dim)
        if num_heads < 1 or channels % num_heads:
            raise InputError(f"num_heads is {num_heads}; give a divisor of channels ({channels})")
        use_context = bool(self.coarser_codes or condition_dim)
        self.max_positions = max_positions
        self.transformer = DecoderOnlyTransformer(
            num_tokens=num_codes + 1,
            max_seq_len=max_positions,
            attn_layers_dim=channels,
            attn_layers_depth=num_layers,
            attn_layers_heads=num_heads,
            with_cross_attention=use_context,
            embedding_dropout_rate=dropout,
        )
        if not use_context:  # MONAI builds the norms of cross-attention all the same; DDP refuses idle parameters
            for name, parameter in self.transformer.named_parameters():
                parameter.requires_grad_("cross_attn" not in name)
        self.context = self._context_network(channels)
        if use_context:
            self.position = nn.Linear(2 * COORDINATE_OCTAVES * spatial_dims, channels, bias=False)

    def forward(self, codes_bs: Tensor, coarser: Sequence[Tensor] = (), condition: Tensor | None = None) -> Tensor:
        """Teacher-forced logits `(b, k, *grid)`; see the class."""
        check_prior_inputs(self, codes_bs, coarser=coarser, condition=condition)
        grid = codes_bs.shape[1:]
        if math.prod(grid) > self.max_positions:
            raise InputError(
                f"the grid {tuple(grid)} has {math.prod(grid)} positions; this prior was built for at most "
                f"{self.max_positions}. Build it with max_positions={math.prod(grid)}"
            )
        codes_bn = codes_bs.flatten(1)
        begin_b1 = torch.full_like(codes_bn[:, :1], self.num_codes)
        tokens_bn = torch.cat([begin_b1, codes_bn[:, :-1]], dim=1)
        logits_bnk = self.transformer(tokens_bn, context=self._context(coarser, condition))
        return logits_bnk[..., : self.num_codes].movedim(-1, 1).unflatten(2, grid)

    def _context(self, coarser: Sequence[Tensor], condition: Tensor | None) -> Tensor | None:
        """The sequence `(b, m, c)` that cross-attention reads, with its coordinates."""
        if self.context is None:
            return None
        context_bcs = self.context(coarser, condition)
        coordinates_ps = coordinate_features(context_bcs.shape[2:], like=self.position.weight)
        return context_bcs.flatten(2).transpose(1, 2) + self.position(coordinates_ps.flatten(1).t())
