"""What a trainer optimizes: modules that wrap a network, take a batch and return its losses. DDP wraps these.

Shape suffixes: b batch, c channels, k codebook size, s spatial axes (2 or 3), f condition features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import SSIMLoss
from torch import Tensor, nn

from monai_vqgen.errors import InputError
from monai_vqgen.metrics.reconstruction import WINDOW

__all__ = ["AutoencoderObjective", "DecoderObjective", "PriorObjective", "objective_loss"]

_SMALLEST_MSE = 1e-10  # 100 dB: an exact reconstruction has a finite PSNR


def objective_loss(prediction: Mapping[str, Tensor], target: object = None) -> Tensor:
    """The ``loss_function`` of MONAI's trainer: objectives have computed the loss already."""
    return prediction["loss"]


class AutoencoderObjective(nn.Module):
    """Reconstruction and codebook losses of a VQ-VAE.

    ::

        images -> autoencoder -> reconstruction   loss = mse_weight * MSE + l1_weight * L1 + ssim_weight * (1 - SSIM)
                       |                                 + smooth_l1_weight * smooth L1
                       |                                 + codebook_weight * sum of the levels' losses
                       +-> codes, losses of the levels (commitment included)

    van den Oord et al. 2017, equation 3. In training mode the quantizers learn from the batch
    (`autoencoder.train_pass`); in evaluation mode nothing changes, and the loss is the reconstruction loss alone.

    Args:
        autoencoder: keeps the autoencoder contract, for example `HierarchicalVQVAE`.
        mse_weight: weight of the mean squared error.
        l1_weight: weight of the mean absolute error.
        ssim_weight: weight of 1 - SSIM (Wang et al. 2004; Gaussian window of 11 pixels, sigma 1.5, data range 1).
        smooth_l1_weight: weight of the smooth L1 loss of a difference d: d^2 / (2 beta) up to beta, d - beta / 2 above
            (Girshick 2015, equation 3, in units of beta).
        smooth_l1_beta: that difference, in units of intensity.
        codebook_weight: weight of the quantizers' losses, which carry their own commitment weight (0.25).
        amp: compute in bfloat16 where torch deems it safe. It needs no loss scaling, so it works alike on CPU and GPU.

    Returns of ``forward(images_bcs, seen_bcs)``, a dictionary as MONAI's engines expect: ``loss`` (scalar),
    ``reconstruction`` (b, c, *s), ``codes_0``, ``codes_1``, ... (b, *s) coarsest first, and per image (b,) ``mse``,
    ``mae``, ``psnr`` (dB, data range 1); in training also the scalar ``codebook_loss``.

    ``seen_bcs`` is what the autoencoder is shown in place of the images, with noise for example (a denoising
    autoencoder, Vincent et al. 2008); the losses compare with the images.

    Raises:
        InputError: no positive weight, a negative one, or a beta that is not positive; at a call, images of less than
            11 pixels an axis with an `ssim_weight`.

    Examples:
        >>> from monai_vqgen.networks import HierarchicalVQVAE
        >>> network = HierarchicalVQVAE(channels=8, residual_channels=4)
        >>> result = AutoencoderObjective(network)(torch.rand(2, 1, 32, 32))
        >>> sorted(result)
        ['codebook_loss', 'codes_0', 'codes_1', 'loss', 'mae', 'mse', 'psnr', 'reconstruction']
    """

    autoencoder: Any  # whatever keeps the autoencoder contract

    def __init__(
        self,
        autoencoder: nn.Module,
        *,
        mse_weight: float = 1.0,
        l1_weight: float = 0.0,
        ssim_weight: float = 0.0,
        smooth_l1_weight: float = 0.0,
        smooth_l1_beta: float = 0.02,
        codebook_weight: float = 1.0,
        amp: bool = False,
    ) -> None:
        super().__init__()
        pixel_weights = {"mse_weight": mse_weight, "l1_weight": l1_weight, "ssim_weight": ssim_weight}
        pixel_weights["smooth_l1_weight"] = smooth_l1_weight
        weights = {**pixel_weights, "codebook_weight": codebook_weight}
        if min(weights.values()) < 0 or sum(pixel_weights.values()) <= 0:
            raise InputError(
                f"Loss weights {weights}: none may be negative, and one of mse_weight, l1_weight or ssim_weight "
                "(or smooth_l1_weight) must be positive"
            )
        if smooth_l1_beta <= 0:
            raise InputError(f"smooth_l1_beta={smooth_l1_beta} must be positive: a difference of intensities")
        self.autoencoder = autoencoder
        self.mse_weight, self.l1_weight, self.ssim_weight = mse_weight, l1_weight, ssim_weight
        self.smooth_l1_weight, self.smooth_l1_beta = smooth_l1_weight, smooth_l1_beta
        self.codebook_weight = codebook_weight
        dims = self.autoencoder.spatial_dims
        self.ssim_loss = SSIMLoss(dims, data_range=1.0, win_size=WINDOW) if ssim_weight else None
        self.amp = amp

    def forward(self, images_bcs: Tensor, seen_bcs: Tensor | None = None) -> dict[str, Tensor]:
        """Return the losses, reconstructions and codes of a batch; those of `seen_bcs` where it is given."""
        seen_bcs = images_bcs if seen_bcs is None else seen_bcs
        if self.ssim_loss is not None and min(images_bcs.shape[2:]) < WINDOW:
            raise InputError(
                f"ssim_weight={self.ssim_weight} with slices of {tuple(images_bcs.shape[2:])} pixels: SSIM's window is "
                f"{WINDOW} pixels wide; give ssim_weight=0 or larger slices"
            )
        with torch.autocast(images_bcs.device.type, dtype=torch.bfloat16, enabled=self.amp):
            if self.training:
                passed = self._train_pass(seen_bcs)
                reconstruction_bcs, codes = passed["reconstruction"], passed.pop("codes")
            else:
                passed = {}
                codes = self.autoencoder.encode(seen_bcs)
                # Sizes that do not divide are padded at the end of an axis, so the image is at its start.
                window = (..., *(slice(size) for size in images_bcs.shape[2:]))
                reconstruction_bcs = self.autoencoder.decode(codes)[window]
        if reconstruction_bcs.shape != images_bcs.shape:  # a channel would be compared with all
            raise InputError(
                f"images of shape {tuple(images_bcs.shape)} are reconstructed as {tuple(reconstruction_bcs.shape)}; "
                "set network_def::in_channels to the images' channels, and leave network_def::out_channels out"
            )
        difference_bn = (reconstruction_bcs.float() - images_bcs.float()).flatten(1)
        mse_b, mae_b = difference_bn.square().mean(1), difference_bn.abs().mean(1)
        result = {**passed, "reconstruction": reconstruction_bcs, "mse": mse_b, "mae": mae_b}
        result["psnr"] = -10 * mse_b.detach().clamp_min(_SMALLEST_MSE).log10()
        result.update({f"codes_{level}": codes_bs for level, codes_bs in enumerate(codes)})
        result["loss"] = self.mse_weight * mse_b.mean() + self.l1_weight * mae_b.mean()
        if self.smooth_l1_weight:
            smooth_l1 = F.smooth_l1_loss(reconstruction_bcs.float(), images_bcs.float(), beta=self.smooth_l1_beta)
            result["loss"] = result["loss"] + self.smooth_l1_weight * smooth_l1
        if self.ssim_loss is not None:
            result["loss"] = result["loss"] + self.ssim_weight * self.ssim_loss(reconstruction_bcs.float(), images_bcs)
        if "codebook_loss" in result:
            result["loss"] = result["loss"] + self.codebook_weight * result["codebook_loss"]
        return result

    def _train_pass(self, images_bcs: Tensor) -> dict[str, Any]:
        """Reconstructions, codes and what else a training batch gives."""
        reconstruction_bcs, levels = self.autoencoder.train_pass(images_bcs)
        loss = torch.stack([level.loss.float() for level in levels]).sum()
        codes = [level.codes_bs for level in levels]
        return {"reconstruction": reconstruction_bcs, "codes": codes, "codebook_loss": loss}


class DecoderObjective(AutoencoderObjective):
    """Trains the decoder of a trained VQ-VAE alone, on the codes of images and on codes that priors have drawn.

    What priors draw differs from what encoders write, and a decoder that has never seen it turns the difference into
    speckle. What encodes is frozen, the decoders of coarser levels included, so the priors still fit.
    `AdversarialUpdate` with a `drawn_weight` judges the images of drawn codes, which have no original to be compared
    with; what of them lies outside [0, 1] counts as loss, by the smooth L1 distance.

    Args:
        autoencoder: with trained weights; keeps the autoencoder contract and has its decoder in ``upsamplers``.
        drawn: grids ``(n, *grid)`` a level, coarsest first, of which each training batch takes at random as many as it
            has images; None takes none.
        options: of `AutoencoderObjective`; quantizers have no loss here.

    Returns of ``forward(images_bcs)``: as `AutoencoderObjective`, and in training ``drawn`` (b, c, *s), images of drawn
    codes.

    Raises:
        InputError: as `AutoencoderObjective`; an autoencoder without ``upsamplers``; grids of another number of levels;
            at a call, grids that are not those of the images.

    Examples:
        >>> from monai_vqgen.networks import HierarchicalVQVAE
        >>> network = HierarchicalVQVAE(channels=8, residual_channels=4)
        >>> drawn = network.encode(torch.rand(5, 1, 32, 32))
        >>> DecoderObjective(network, drawn)(torch.rand(2, 1, 32, 32))["drawn"].shape
        torch.Size([2, 1, 32, 32])
    """

    def __init__(self, autoencoder: nn.Module, drawn: Sequence[Tensor] | None = None, **options: Any) -> None:
        if not isinstance(getattr(autoencoder, "upsamplers", None), nn.Module):
            raise InputError(f"{type(autoencoder).__name__} has no upsamplers, so no decoder of its own can be trained")
        super().__init__(autoencoder, **options)
        if drawn is not None and len(drawn) != self.autoencoder.num_levels:
            raise InputError(f"{len(drawn)} levels of drawn codes for {self.autoencoder.num_levels} of the autoencoder")
        self.drawn = drawn
        autoencoder.requires_grad_(False)
        self.autoencoder.upsamplers[-1].requires_grad_(True)  # finer latents see what the coarser ones decode to

    def forward(self, images_bcs: Tensor, seen_bcs: Tensor | None = None) -> dict[str, Tensor]:
        """Return the losses, reconstructions, codes and images of drawn codes of a batch."""
        result = super().forward(images_bcs, seen_bcs)
        if "drawn" in result:  # discriminators see [0, 1] alone, so nothing else holds these images there
            drawn_bcs = result["drawn"].float()
            beyond = F.smooth_l1_loss(drawn_bcs, drawn_bcs.clamp(0, 1), beta=self.smooth_l1_beta)
            result["loss"] = result["loss"] + beyond
        return result

    def _train_pass(self, images_bcs: Tensor) -> dict[str, Any]:
        with torch.no_grad(), torch.autocast(images_bcs.device.type, enabled=False):  # the codes that priors know
            codes = self.autoencoder.encode(images_bcs)
        count, wanted = len(images_bcs), codes
        if self.drawn is not None:
            if any(grid.shape[1:] != mine.shape[1:] for grid, mine in zip(self.drawn, codes, strict=True)):
                grids = [[tuple(level.shape[1:]) for level in levels] for levels in (codes, self.drawn)]
                raise InputError(f"images become grids {grids[0]}, the drawn codes are {grids[1]}: set image_size")
            which_b = torch.randint(len(self.drawn[0]), (count,))
            drawn = [grid[which_b].to(mine) for grid, mine in zip(self.drawn, codes, strict=True)]
            wanted = [torch.cat(pair) for pair in zip(codes, drawn, strict=True)]
        window = (..., *(slice(size) for size in images_bcs.shape[2:]))
        decoded_bcs = self.autoencoder.decode(wanted)[window]
        result = {"reconstruction": decoded_bcs[:count], "codes": codes, "codebook_loss": decoded_bcs.new_zeros(())}
        return result if self.drawn is None else {**result, "drawn": decoded_bcs[count:]}


class PriorObjective(nn.Module):
    """Cross-entropy of a prior over one level's codes.

    Args:
        prior: keeps the prior contract: ``forward(codes_bs, coarser, condition) -> logits_bks``.
        amp: compute in bfloat16 where torch deems it safe; logits are compared in float32.

    Returns of ``forward(codes_bs, coarser, condition_bf)``: ``loss`` (scalar, nats per code) and, per grid (b,),
    ``nats_per_code`` and ``bits_per_code``.

    Examples:
        >>> from monai_vqgen.networks import GatedPixelCNN
        >>> prior = GatedPixelCNN(16, channels=8, num_layers=2, attention_every=0)
        >>> result = PriorObjective(prior)(torch.zeros(2, 4, 4, dtype=torch.int64))
        >>> result["bits_per_code"].shape
        torch.Size([2])
    """

    def __init__(self, prior: nn.Module, *, amp: bool = False) -> None:
        super().__init__()
        self.prior = prior
        self.amp = amp

    def forward(
        self, codes_bs: Tensor, coarser: Sequence[Tensor] = (), condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the loss of a batch of grids."""
        with torch.autocast(codes_bs.device.type, dtype=torch.bfloat16, enabled=self.amp):
            logits_bks = self.prior(codes_bs, coarser, condition)
        # A row of logits a position: along the last axis a softmax needs no copy of them.
        logits_nk = logits_bks.float().movedim(1, -1).flatten(0, -2)
        nats_b = F.cross_entropy(logits_nk, codes_bs.flatten(), reduction="none").view(codes_bs.shape[0], -1).mean(1)
        return {"loss": nats_b.mean(), "nats_per_code": nats_b, "bits_per_code": nats_b / math.log(2)}
