"""An autoencoder against a patch discriminator: one training iteration of both, and the balance of their losses.

Shape suffixes: b batch, c channels, s spatial axes (2 or 3).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from monai.engines import IterationEvents, SupervisedTrainer
from torch import Tensor, nn
from torch.optim import Optimizer

from monai_vqgen.engines.distributed import process_count
from monai_vqgen.errors import InputError, VQGenError
from monai_vqgen.networks.quantizers.codebooks import all_reduce_sum
from monai_vqgen.weights import plain_state

__all__ = ["AdversarialUpdate"]

_KEPT = 0.8  # share of the old balance at each measurement
_LARGEST_WEIGHT = 1e4  # of a term, however small its gradient (Esser et al. 2021, code published with the paper)
_WON = 0.1  # mean loss of a discriminator that is not fooled any more; one that guesses has 2 ln 2 = 1.39
_LOSS_KEPT = 0.98  # share of the old mean in the discriminator's running mean loss

logger = logging.getLogger(__name__)


class AdversarialUpdate:
    """One training iteration of an autoencoder and of a discriminator that tells its reconstructions from images.

    ::

        autoencoder    loss of the objective + share * (a * softplus(-D(y)) + f * mean over layers of |D_l(y) - D_l(x)|
                                                        + d * softplus(-D(z)))
        discriminator  softplus(-D(x)) + softplus(D(y, z)) + r1_weight * |grad of D(x)|^2

    The non-saturating loss of Goodfellow et al. 2014 on patches (Isola et al. 2017), feature matching (Salimans et al.
    2016) and the penalty R1 (Mescheder et al. 2018, without their factor of a half; D is the mean over patches). The
    weights a, f and d follow the gradients at the images made, as in Esser et al. 2021, equation 7: the norm of each
    term's gradient is held at `adversarial_weight`, `feature_weight` and `drawn_weight` times that of the objective's
    loss. Images z of codes that priors have drawn come from an objective that returns them, `DecoderObjective`.

    Give it to MONAI's `SupervisedTrainer` as ``iteration_update``, and to `TrainingState` as a part. Handlers see one
    iteration. Several processes share the discriminator's gradients and the balance. The objective returns ``loss`` and
    ``reconstruction``, as `AutoencoderObjective` does; ``adversarial_loss``, ``feature_loss`` and
    ``discriminator_loss`` are added to its result, scalars, zero before `start`.

    Args:
        discriminator: returns the features of its layers, its judgment of each patch last, as MONAI's
            `PatchDiscriminator` does; best without batch normalization. It sees intensities clipped to [0, 1] and
            as [-1, 3], because on mostly black images it stays blind otherwise. Of a `ModuleList` of several each has
            its terms in the loss, at the same weights; ``penalized = False`` on one leaves it out of R1.
        optimizer: of the discriminator; its learning rate is at each step the autoencoder's.
        adversarial_weight: of the patch loss, relative to the objective's.
        feature_weight: of feature matching, likewise.
        drawn_weight: of the loss of images of drawn codes, likewise.
        start: iterations before the discriminator begins to learn.
        ramp: iterations from there in which the share of its terms rises to all.
        r1_weight: of the penalty. Without it stripes appear; too much of it blinds the discriminator.
        r1_every: iterations from one penalty to the next, which then counts for all of them.
        balance_every: iterations from one measurement of the gradients to the next.
        total_steps: of the training, to refuse one that ends before the discriminator begins; None does not look.
        accumulation_steps: of the training; only 1 works here.
        amp: discriminators compute in bfloat16 where torch deems it safe.

    Raises:
        InputError: weights or numbers of steps that cannot work; at the first batch or `check`, images that the
            discriminator cannot take.
        VQGenError: the discriminator's loss is not finite.

    Examples:
        >>> from monai.networks.nets import PatchDiscriminator
        >>> discriminator = PatchDiscriminator(2, 32, 1, norm=None, bias=True)
        >>> optimizer = torch.optim.Adam(discriminator.parameters(), 3e-4, betas=(0.0, 0.99))
        >>> AdversarialUpdate(discriminator, optimizer).check((1, 112, 96))
    """

    def __init__(
        self,
        discriminator: nn.Module,
        optimizer: Optimizer,
        *,
        adversarial_weight: float = 0.4,
        feature_weight: float = 1.5,
        drawn_weight: float = 0.0,
        start: int = 600,
        ramp: int = 300,
        r1_weight: float = 0.15,
        r1_every: int = 4,
        balance_every: int = 10,
        total_steps: int | None = None,
        accumulation_steps: int = 1,
        amp: bool = False,
    ) -> None:
        self.judges = list(discriminator) if isinstance(discriminator, nn.ModuleList) else [discriminator]
        wanted = {"adversarial_loss": adversarial_weight, "feature_loss": feature_weight}
        if drawn_weight:
            wanted["drawn_loss"] = drawn_weight
        self.terms = {
            name + _ending(which): weight for which in range(len(self.judges)) for name, weight in wanted.items()
        }
        weights = {"adversarial_weight": adversarial_weight, "feature_weight": feature_weight}
        weights.update(drawn_weight=drawn_weight, r1_weight=r1_weight)
        if min(weights.values()) < 0 or adversarial_weight + feature_weight <= 0:
            raise InputError(f"{weights}: none may be negative, and one of the first two must be positive")
        if min(start, ramp) < 0 or min(r1_every, balance_every) < 1:
            numbers = f"start={start}, ramp={ramp}, r1_every={r1_every}, balance_every={balance_every}"
            raise InputError(f"{numbers}: the first two must be at least 0, the others at least 1")
        if total_steps is not None and start >= total_steps:
            raise InputError(
                f"the discriminator would begin after {start} iterations (adversarial_start), and the training has "
                f"{total_steps}: train for more epochs or begin earlier"
            )
        if accumulation_steps != 1:
            advice = "adversarial training takes whole batches; give accumulation_steps=1 and a smaller batch_size"
            raise InputError(f"accumulation_steps={accumulation_steps}: {advice}")
        self.discriminator, self.optimizer, self.amp = discriminator, optimizer, amp
        self.start, self.ramp, self.balance_every = start, ramp, balance_every
        self.r1_weight, self.r1_every = r1_weight, r1_every
        self.weights: dict[str, float] = {}
        self.mean_loss: float | None = None
        self._begun, self._warned = False, -1

    def check(self, image_shape: Sequence[int]) -> None:
        """Refuse images of shape ``(c, *s)`` that the discriminator cannot take, before hours are spent."""
        first, trained = next(self.discriminator.parameters()), self.discriminator.training
        self.discriminator.eval()  # spectral normalization learns from each look in training
        try:
            with torch.no_grad():
                found = [judge(torch.zeros(1, *image_shape, device=first.device)) for judge in self.judges]
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"the discriminator cannot take images of shape {tuple(image_shape)}: match its spatial_dims and "
                "in_channels, and give it fewer layers (num_layers_d) where images are small"
            ) from error
        finally:
            self.discriminator.train(trained)
        for judge, features in zip(self.judges, found, strict=True):
            if isinstance(features, Sequence) and len(features) > 1:
                continue
            raise InputError(
                f"the discriminator {type(judge).__name__} returns no list of its layers' features, its "
                "judgment last: take one that does, such as monai.networks.nets.PatchDiscriminator"
            )

    def __call__(self, engine: SupervisedTrainer, batchdata: Mapping[str, Any]) -> dict[str, Any]:
        """Run the iteration; return the trainer's output."""
        engine.network.train()
        prepare, device = engine.prepare_batch, engine.state.device
        images_bcs, targets = prepare(batchdata, device, engine.non_blocking, **engine.to_kwargs)
        if not self._begun:
            self._begin(images_bcs)
        step = engine.state.iteration - 1
        engine.optimizer.zero_grad(set_to_none=engine.optim_set_to_none)
        prediction = dict(engine.inferer(images_bcs, engine.network))
        output: dict[str, Any] = {"image": images_bcs, "label": targets, "pred": prediction}
        engine.state.output = output
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        output["loss"] = engine.loss_function(prediction, targets).mean()
        prediction.update({name: output["loss"].new_zeros(()) for name in (*self.terms, "discriminator_loss")})
        if step > self.start:
            output["loss"] = output["loss"] + self._adversary(images_bcs, prediction, output["loss"], step)
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        output["loss"].backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if step >= self.start:  # before the autoencoder's step, so that no step is taken where this fails
            prediction["discriminator_loss"] = self._learn(engine, images_bcs, torch.cat(_made(prediction)), step)
        engine.optimizer.step()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output  # as the event's handlers left it: decollated, for example

    def state_dict(self) -> dict[str, Any]:
        """The discriminator, its optimizer and the balance."""
        return {
            "discriminator": plain_state(self.discriminator),
            "optimizer": self.optimizer.state_dict(),
            "weights": dict(self.weights),
            "mean_loss": self.mean_loss,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the state back; RuntimeError or ValueError where it is that of another discriminator."""
        self.discriminator.load_state_dict(state_dict["discriminator"])
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.weights, self.mean_loss = dict(state_dict["weights"]), state_dict["mean_loss"]

    def _begin(self, images_bcs: Tensor) -> None:
        self.check(images_bcs.shape[1:])
        if process_count() > 1:
            for tensor in self.discriminator.state_dict().values():
                dist.broadcast(tensor, src=0)
        self._begun = True

    def _features(self, judge: nn.Module, images_bcs: Tensor, *, amp: bool | None = None) -> list[Tensor]:
        with torch.autocast(images_bcs.device.type, torch.bfloat16, enabled=self.amp if amp is None else amp):
            features: list[Tensor] = judge(images_bcs.float().clamp(0, 1) * 4 - 1)
        return [level.float() for level in features]

    def _adversary(self, images_bcs: Tensor, prediction: dict[str, Any], loss: Tensor, step: int) -> Tensor:
        """What the discriminator adds to the autoencoder's loss."""
        images, count = _made(prediction), len(images_bcs)
        if "drawn_loss" in self.terms and len(images) == 1:
            raise InputError(
                "drawn_weight is for an objective that returns images of drawn codes: see DecoderObjective"
            )
        self.discriminator.requires_grad_(False)
        terms: dict[str, Tensor] = {}
        for which, judge in enumerate(self.judges):
            *made, judgment = self._features(judge, torch.cat(images))
            with torch.no_grad():
                real = self._features(judge, images_bcs)[:-1]
            distances = [F.l1_loss(ours[:count], theirs) for ours, theirs in zip(made, real, strict=True)]
            found = {
                "adversarial_loss": F.softplus(-judgment[:count]).mean(),
                "feature_loss": torch.stack(distances).mean(),
            }
            if "drawn_loss" in self.terms:
                found["drawn_loss"] = F.softplus(-judgment[count:]).mean()
            terms.update({name + _ending(which): value for name, value in found.items()})
        if not self.weights or step % self.balance_every == 0:
            self._balance({"loss": loss, **terms}, images)
        prediction.update({name: value.detach() for name, value in terms.items()})
        share = min(1.0, (step - self.start) / self.ramp) if self.ramp else 1.0
        return share * torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()

    def _balance(self, losses: Mapping[str, Tensor], images: Sequence[Tensor]) -> None:
        """Move the weights towards those at which the gradients at the images made have their ratio."""
        gradients = [  # of the objective's loss at the reconstructions alone: drawn images have no original
            torch.autograd.grad(
                loss, images[:1] if name == "loss" else images, retain_graph=True, materialize_grads=True
            )
            for name, loss in losses.items()
        ]
        sums = [torch.stack([part.float().square().sum() for part in parts]).sum() for parts in gradients]
        squares = all_reduce_sum(torch.stack(sums))
        norms = dict(zip(losses, squares.sqrt().tolist(), strict=True))
        for name, wanted in self.terms.items():
            found = min(wanted * norms["loss"] / max(norms[name], 1e-12), _LARGEST_WEIGHT)
            self.weights[name] = _KEPT * self.weights.get(name, found) + (1 - _KEPT) * found

    def _learn(self, engine: SupervisedTrainer, images_bcs: Tensor, made_bcs: Tensor, step: int) -> Tensor:
        """One step of the discriminator; return its loss without the penalty."""
        self.discriminator.train()
        penalize = self.r1_weight and step % self.r1_every == 0
        losses, penalties = [], []
        for judge in self.judges:
            judge.requires_grad_(True)
            real, made = (self._features(judge, images)[-1] for images in (images_bcs, made_bcs.detach()))
            losses.append(F.softplus(-real).mean() + F.softplus(made).mean())
            if penalize and getattr(judge, "penalized", True):
                penalties.append(self._penalty(judge, images_bcs))
        loss = torch.stack(losses).mean()
        total = torch.stack(losses).sum()
        if penalties:
            total = total + self.r1_weight * self.r1_every * torch.stack(penalties).sum()
        self._check_loss(engine, total, loss)
        self.optimizer.zero_grad()
        total.backward()
        for parameter in self.discriminator.parameters():
            if parameter.grad is not None:
                all_reduce_sum(parameter.grad).div_(process_count())
        for group in self.optimizer.param_groups:
            group["lr"] = engine.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        return loss.detach()

    def _penalty(self, judge: nn.Module, images_bcs: Tensor) -> Tensor:
        """R1: the mean squared length of the gradient of the mean judgment of each image."""
        images_bcs = images_bcs.detach().clone().requires_grad_(True)
        judgment_b = self._features(judge, images_bcs, amp=False)[-1].flatten(1).mean(1)
        (gradient_bcs,) = torch.autograd.grad(judgment_b.sum(), images_bcs, create_graph=True)
        return gradient_bcs.square().flatten(1).sum(1).mean()

    def _check_loss(self, engine: SupervisedTrainer, total: Tensor, loss: Tensor) -> None:
        epoch, value, whole = engine.state.epoch, float(loss.detach()), float(total.detach())
        if not math.isfinite(whole):
            raise VQGenError(
                f"the discriminator's loss became {whole} at epoch {epoch}, iteration {engine.state.iteration}. "
                "Weights saved so far are untouched. Lower --learning_rate or --r1_weight"
            )
        self.mean_loss = value if self.mean_loss is None else _LOSS_KEPT * self.mean_loss + (1 - _LOSS_KEPT) * value
        if self.mean_loss < _WON and self._warned != epoch:
            self._warned = epoch
            advice = "the autoencoder learns little from it. Raise --r1_weight, or give it fewer channels"
            logger.warning(
                "The discriminator has won: its loss is %.3f (1.39 is chance), so %s", self.mean_loss, advice
            )


def _made(prediction: Mapping[str, Tensor]) -> list[Tensor]:
    """The reconstructions and, where the objective returns some, the images of drawn codes."""
    return [prediction[name] for name in ("reconstruction", "drawn") if name in prediction]


def _ending(which: int) -> str:
    """What tells the terms of several discriminators apart; the first's have their plain names."""
    return f"_{which}" if which else ""
