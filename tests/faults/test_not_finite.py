"""Gradients, latents and states that are not finite, or too large to stay so, end a training before they are kept."""

from __future__ import annotations

import math

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from monai_vqgen.engines import accumulated_update, objective_loss
from monai_vqgen.errors import CheckpointError, VQGenError
from monai_vqgen.handlers import GradientGuard, TrainingState
from monai_vqgen.networks import EMACodebook
from monai_vqgen.weights import read_state

STEPS = 3  # an epoch


class SteepAtZero(nn.Module):
    """Its loss is finite for every image; at an image of zeros the slope of the root is not."""

    def __init__(self) -> None:
        super().__init__()
        self.free = nn.Parameter(torch.ones(2))
        self.root = nn.Parameter(torch.ones(2))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"loss": self.free.square().mean() + (images.mean() * self.root).sqrt().mean()}


def train(folder, images: list[Tensor], *, guarded: bool = True, max_norm: float = 0.0, parts: int = 1):
    module = SteepAtZero()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    state = TrainingState(folder / "state.pt", {"objective": module, "optimizer": optimizer})
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=len(images) // STEPS,
        epoch_length=STEPS,
        train_data_loader=[{"image": image} for image in images],
        network=module,
        optimizer=optimizer,
        loss_function=objective_loss,
        iteration_update=accumulated_update(parts),
        train_handlers=[*([GradientGuard(module, max_norm)] if guarded else []), state],
    )
    return trainer, module


BAD_LAST_STEP = [torch.ones(4, 1, 2, 2)] * (2 * STEPS - 1) + [torch.zeros(4, 1, 2, 2)]


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("max_norm", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_under_a_finite_loss_never_reaches_weights_or_state(tmp_path, max_norm, parts):
    trainer, module = train(tmp_path, BAD_LAST_STEP, max_norm=max_norm, parts=parts)
    with pytest.raises(VQGenError, match=r"gradient of root became (nan|inf) at epoch 2, iteration 6"):
        trainer.run()
    assert all(bool(torch.isfinite(weight).all()) for weight in module.parameters())
    assert read_state(tmp_path / "state.pt")["place"] == {"epoch": 1, "iteration": STEPS}


def test_a_finite_gradient_of_which_adam_would_keep_an_infinite_square_is_caught_too(tmp_path):
    trainer, module = train(tmp_path, [torch.ones(4, 1, 2, 2)] * STEPS)
    module.root.register_hook(lambda gradient: 1e25 * gradient)
    with pytest.raises(VQGenError, match=r"gradient of root became inf at epoch 1, iteration 1.* in a new output_dir"):
        trainer.run()
    assert read_state(tmp_path / "state.pt")["place"]["epoch"] == 0


def test_without_the_guard_the_state_that_is_not_finite_is_still_not_written(tmp_path):
    trainer, module = train(tmp_path, BAD_LAST_STEP, guarded=False)
    with pytest.raises(CheckpointError, match=r"parts\.objective\.root has values that are not finite"):
        trainer.run()
    assert not bool(torch.isfinite(module.root).all())
    assert read_state(tmp_path / "state.pt")["place"]["epoch"] == 1


@pytest.mark.parametrize("value", [1e38, -3e38, 1e19, math.nan, math.inf])
@pytest.mark.parametrize("share", [0.02, 1.0])
def test_latents_however_large_leave_a_codebook_finite(value, share):
    generator = torch.Generator().manual_seed(0)
    good = torch.randn(4, 3, 16, 16, generator=generator)
    bad = torch.where(torch.rand(4, 1, 16, 16, generator=generator) < share, torch.tensor(value), good)
    codebook = EMACodebook(8, 3, restart_below=0.5)
    codebook.prepare(bad)
    for latents in (good, bad, good, bad):
        codebook.prepare(latents)
        codebook.learn(latents, codebook(latents).codes_bs)
    for name, buffer in codebook.state_dict().items():
        assert bool(torch.isfinite(buffer.double()).all()), name
    assert codebook.embeddings_kd.abs().max() <= good.abs().max() + 1
    distances = (good.movedim(1, -1).reshape(-1, 1, 3) - codebook.embeddings_kd).square().sum(-1)
    assert torch.equal(codebook(good).codes_bs.flatten(), distances.argmin(1))


def test_latents_of_a_millionth_or_a_million_are_followed_as_ever():
    for scale in (1e-6, 1.0, 1e6, 1e14):
        latents = scale * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        codebook = EMACodebook(8, 3)
        codebook.prepare(latents)
        before = codebook.embeddings_kd.clone()
        codebook.learn(2 * latents, codebook(2 * latents).codes_bs)
        assert not torch.equal(codebook.embeddings_kd, before), scale
        assert bool(torch.isfinite(codebook.embeddings_kd).all())
