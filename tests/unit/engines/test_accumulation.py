"""A batch in parts gives the step of the whole batch: gradients, codebooks, handlers and outputs."""

from __future__ import annotations

import copy

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from monai_vqgen.engines import (
    AutoencoderObjective,
    PrepareCodes,
    PrepareImages,
    PriorObjective,
    accumulated_update,
    objective_loss,
)
from monai_vqgen.errors import InputError, VQGenError
from monai_vqgen.handlers import GradientGuard
from monai_vqgen.networks import EMACodebook, GatedPixelCNN, HierarchicalVQVAE, Quantizer

BATCH = 7


@pytest.fixture
def objective() -> AutoencoderObjective:
    torch.manual_seed(0)
    quantizers = [EMACodebook(8, 4, kmeans=False, restart_below=0.995) for _ in (0, 1)]  # unused codes restart at once
    network = HierarchicalVQVAE(channels=8, residual_channels=4, quantizers=quantizers, finer_dropout=0.0)
    return AutoencoderObjective(network, l1_weight=0.5)


def images(*, scale: float = 1.0) -> dict[str, Tensor]:
    return {"image": scale * torch.rand(BATCH, 1, 16, 16, generator=torch.Generator().manual_seed(1))}


def train(objective: nn.Module, batches: list[dict[str, Tensor]], *, steps: int, prepare=None, handlers=()):
    """An epoch with plain gradient descent on a copy; return the copy and each iteration's output."""
    objective = copy.deepcopy(objective)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=batches,
        network=objective,
        optimizer=torch.optim.SGD(objective.parameters(), lr=0.1),
        loss_function=objective_loss,
        iteration_update=accumulated_update(steps),
        prepare_batch=prepare or PrepareImages(),
        decollate=False,
    )
    outputs: list[dict] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output))
    for make in handlers:
        make(objective).attach(trainer)
    trainer.run()
    return objective, outputs


def assert_equal_states(one: nn.Module, other: nn.Module) -> None:
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("steps", [2, 3, BATCH, 20])
def test_weights_and_codebooks_after_two_steps_are_those_of_whole_batches(objective, steps):
    batches = [images(), images(scale=0.5)]
    whole, _ = train(objective, batches, steps=1)
    parts, _ = train(objective, batches, steps=steps)
    assert_equal_states(whole, parts)
    assert any(not torch.equal(a, b) for a, b in zip(whole.parameters(), objective.parameters(), strict=True))
    codebooks = [module for module in parts.modules() if isinstance(module, Quantizer)]
    assert [int(codebook.num_updates) for codebook in codebooks] == [2, 2]  # once a step, not once a part


def test_the_gradient_is_clipped_once_as_a_whole(objective):
    clip = [lambda module: GradientGuard(module, 0.05)]
    whole, _ = train(objective, [images()], steps=1, handlers=clip)
    parts, _ = train(objective, [images()], steps=3, handlers=clip)
    assert_equal_states(whole, parts)
    free, _ = train(objective, [images()], steps=3)
    assert not torch.allclose(next(free.parameters()), next(parts.parameters()), rtol=1e-4)


def test_a_prior_learns_from_parts_with_their_coarser_codes_and_conditions():
    torch.manual_seed(0)
    sizes = {"channels": 8, "num_layers": 2, "attention_every": 0, "coarser_codes": [8], "condition_dim": 3}
    prior = GatedPixelCNN(8, **sizes, dropout=0.0)
    batch = {
        "codes_0": torch.randint(0, 8, (BATCH, 2, 2)),
        "codes_1": torch.randint(0, 8, (BATCH, 4, 4)),
        "condition": torch.rand(BATCH, 3),
    }
    options = {"prepare": PrepareCodes(1)}
    whole, expected = train(PriorObjective(prior), [batch], steps=1, **options)
    parts, outputs = train(PriorObjective(prior), [batch], steps=3, **options)
    assert_equal_states(whole, parts)
    torch.testing.assert_close(outputs[0]["pred"]["bits_per_code"], expected[0]["pred"]["bits_per_code"])


def test_handlers_see_one_iteration_with_the_loss_and_all_items_of_the_batch(objective):
    _, whole = train(objective, [images()], steps=1)
    _, parts = train(objective, [images()], steps=3)
    assert len(parts) == 1
    assert set(parts[0]) == set(whole[0])
    assert set(parts[0]["pred"]) == set(whole[0]["pred"])
    for name, value in whole[0]["pred"].items():
        torch.testing.assert_close(parts[0]["pred"][name], value.detach(), rtol=1e-4, atol=1e-6, msg=name)
    torch.testing.assert_close(parts[0]["loss"], whole[0]["loss"].detach())
    assert torch.equal(parts[0]["image"], images()["image"])


def test_a_loss_that_is_no_number_touches_neither_weights_nor_codebooks(objective):
    bad = images()
    bad["image"][-1] = float("nan")
    kept = []
    with pytest.raises(VQGenError, match="the loss became nan"):
        train(objective, [bad], steps=3, handlers=[lambda module: kept.append(module) or GradientGuard(module)])
    assert_equal_states(objective, kept[0])
    with torch.no_grad():
        kept[0].autoencoder.train_pass(images()["image"])  # learns at once again
    assert int(kept[0].autoencoder.quantizers[0].num_updates) == 1


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "2"])
def test_steps_that_cannot_work_are_refused(steps):
    with pytest.raises(InputError, match="accumulation_steps"):
        accumulated_update(steps)
