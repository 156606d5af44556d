"""The autoencoder against its discriminator: what each is told, when, in which balance, and what is refused."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.engines import IterationEvents, SupervisedTrainer
from monai.networks.nets import PatchDiscriminator
from torch import nn

from monai_vqgen.engines import AdversarialUpdate, AutoencoderObjective, DecoderObjective, PrepareImages, objective_loss
from monai_vqgen.errors import CheckpointError, InputError, VQGenError
from monai_vqgen.handlers import GradientGuard, TrainingState
from monai_vqgen.networks import GenerativeVQVAE

SIDE = 16


def objective(spatial_dims: int = 2) -> AutoencoderObjective:
    torch.manual_seed(0)
    network = GenerativeVQVAE(spatial_dims, strides=(4,), widths=(8, 8, 8), num_codes=8, code_dim=4)
    return AutoencoderObjective(network, mse_weight=0.0, smooth_l1_weight=1.0, codebook_weight=0.05)


def adversary(spatial_dims: int = 2, *, seed: int = 1, channels: int = 4, **options: Any) -> AdversarialUpdate:
    torch.manual_seed(seed)
    discriminator = PatchDiscriminator(spatial_dims, channels, 1, num_layers_d=1, norm=None, bias=True)
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-3, betas=(0.0, 0.99))
    return AdversarialUpdate(discriminator, optimizer, **{"start": 0, "ramp": 0, **options})


def batches(count: int, spatial_dims: int = 2) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [{"image": torch.rand(3, 1, *[SIDE] * spatial_dims, generator=generator)} for _ in range(count)]


def trainer_of(module: nn.Module, data: list, update: Any, *, epochs: int = 1, handlers: list | None = None):
    return SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=data,
        network=module,
        optimizer=torch.optim.Adam(module.parameters(), lr=1e-3),
        loss_function=objective_loss,
        iteration_update=update,
        prepare_batch=PrepareImages(),
        decollate=False,
        train_handlers=handlers,
    )


def train(module: nn.Module, data: list, update: Any, **options: Any) -> list[dict]:
    outputs: list[dict] = []
    trainer = trainer_of(module, data, update, **options)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output))
    trainer.run()
    return outputs


def state(module: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(one: dict, other: dict) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def shown(images: torch.Tensor) -> torch.Tensor:
    return 4 * images.clamp(0, 1) - 1


def seen(discriminator: nn.Module, images: torch.Tensor) -> list[np.ndarray]:
    return [feature.detach().double().numpy() for feature in discriminator(shown(images))]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_losses_are_those_that_numpy_gives(spatial_dims: int) -> None:
    update = adversary(spatial_dims, r1_weight=0.0)
    before = copy.deepcopy(update.discriminator)
    first, second = batches(2, spatial_dims)
    kept: list[nn.Module] = []
    module = objective(spatial_dims)
    outputs = []

    def each(engine: Any) -> None:
        outputs.append(engine.state.output)
        kept.append(copy.deepcopy(update.discriminator))

    trainer = trainer_of(module, [first, second], update)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, each)
    trainer.run()
    for output, discriminator, images, adversarial in zip(
        outputs, [before, kept[0]], [first["image"], second["image"]], [False, True], strict=True
    ):
        pred = output["pred"]
        *real, real_judgment = seen(discriminator, images)
        *made, judgment = seen(discriminator, pred["reconstruction"].detach())
        told = np.logaddexp(0, -real_judgment).mean() + np.logaddexp(0, judgment).mean()
        assert float(pred["discriminator_loss"]) == pytest.approx(told, rel=1e-5)
        if not adversarial:  # at its first step the discriminator only learns
            assert float(pred["adversarial_loss"]) == float(pred["feature_loss"]) == 0.0
            continue
        patches = np.logaddexp(0, -judgment).mean()
        features = np.mean([np.abs(a - b).mean() for a, b in zip(real, made, strict=True)])
        assert float(pred["adversarial_loss"]) == pytest.approx(patches, rel=1e-5)
        assert float(pred["feature_loss"]) == pytest.approx(features, rel=1e-4)
        weights = update.weights
        expected = float(pred["loss"].detach()) + weights["adversarial_loss"] * patches
        assert float(output["loss"].detach()) == pytest.approx(expected + weights["feature_loss"] * features, rel=1e-5)


def test_gradients_at_the_image_have_the_ratio_that_the_weights_ask_for() -> None:
    update = adversary(adversarial_weight=0.3, feature_weight=2.0)
    module, (first, second) = objective(), batches(2)
    found: dict[str, float] = {}

    def measure(engine: Any) -> None:
        if engine.state.iteration < 2:
            return
        pred = engine.state.output["pred"]
        image = pred["reconstruction"].detach().requires_grad_(True)
        *made, judgment = update.discriminator(shown(image))
        *real, _ = update.discriminator(shown(second["image"]))
        terms = {
            "loss": nn.functional.smooth_l1_loss(image, second["image"], beta=0.02),
            "adversarial_loss": -nn.functional.logsigmoid(judgment).mean(),
            "feature_loss": sum((a - b).abs().mean() for a, b in zip(real, made, strict=True)) / len(made),
        }
        for name, value in terms.items():
            found[name] = float(torch.autograd.grad(value, image, retain_graph=True)[0].norm())

    trainer = trainer_of(module, [first, second], update)
    trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, measure)
    trainer.run()
    for name, wanted in {"adversarial_loss": 0.3, "feature_loss": 2.0}.items():
        assert update.weights[name] * found[name] == pytest.approx(wanted * found["loss"], rel=1e-4)


def decoder_objective(**options: Any) -> DecoderObjective:
    network = objective().autoencoder
    drawn = network.encode(torch.rand(6, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(3)))
    return DecoderObjective(network, drawn, mse_weight=0.0, smooth_l1_weight=1.0, **options)


def test_images_of_drawn_codes_are_judged_by_themselves_and_seen_by_the_discriminator() -> None:
    update, (first, second) = adversary(r1_weight=0.0, drawn_weight=0.6), batches(2)
    found: dict[str, Any] = {}

    def measure(engine: Any) -> None:  # at the second step, before the discriminator learns
        pred = engine.state.output["pred"]
        if engine.state.iteration < 2:
            return
        drawn = pred["drawn"].detach().requires_grad_(True)
        again = pred["reconstruction"].detach().requires_grad_(True)
        *_, judgment = update.discriminator(shown(drawn))
        term = -nn.functional.logsigmoid(judgment).mean()
        loss = nn.functional.smooth_l1_loss(again, second["image"], beta=0.02)
        norms = [float(torch.autograd.grad(value, image)[0].norm()) for value, image in ((term, drawn), (loss, again))]
        made = seen(update.discriminator, torch.cat([again, drawn]).detach())[-1]
        real = seen(update.discriminator, second["image"])[-1]
        told = np.logaddexp(0, -real).mean() + np.logaddexp(0, made).mean()
        found.update(drawn_loss=float(term.detach()), norms=norms, discriminator_loss=told)

    outputs: list[Any] = []
    trainer = trainer_of(decoder_objective(), [first, second], update)
    trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, measure)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output["pred"]))
    trainer.run()
    for name in ("drawn_loss", "discriminator_loss"):
        assert float(outputs[1][name]) == pytest.approx(found[name], rel=1e-5)
    of_term, of_loss = found["norms"]
    assert update.weights["drawn_loss"] * of_term == pytest.approx(0.6 * of_loss, rel=1e-4)


def test_a_weight_of_drawn_images_wants_an_objective_that_returns_some() -> None:
    with pytest.raises(InputError, match="see DecoderObjective"):
        trainer_of(objective(), batches(2), adversary(drawn_weight=0.6)).run()


def test_a_decoder_learns_from_the_codes_that_float32_gives() -> None:
    module, (batch,) = decoder_objective(amp=True), batches(1)
    assert torch.equal(module.train()(batch["image"])["codes_0"], module.autoencoder.encode(batch["image"])[0])
    dtypes = []
    module.autoencoder.downsamplers[0].register_forward_hook(lambda *call: dtypes.append(call[-1].dtype))
    module.autoencoder.upsamplers[0].register_forward_hook(lambda *call: dtypes.append(call[-1].dtype))
    module(batch["image"])
    assert dtypes == [torch.float32, torch.bfloat16]


def test_a_look_at_the_shapes_leaves_the_discriminator_as_it_was() -> None:
    judge = PatchDiscriminator(2, 4, 1, num_layers_d=1, norm=None, bias=True)
    for module in judge.modules():
        if isinstance(module, nn.Conv2d):
            nn.utils.parametrizations.spectral_norm(module)
    update = AdversarialUpdate(judge, torch.optim.Adam(judge.parameters()), start=0)
    before = state(judge)
    update.check((1, SIDE, SIDE))
    assert judge.training
    assert equal(before, state(judge))


def test_what_of_the_drawn_images_lies_outside_the_intensities_is_loss() -> None:
    module, (batch, _) = decoder_objective().train(), batches(2)
    last = module.autoencoder.upsamplers[-1]
    torch.manual_seed(4)
    inside = module(batch["image"])
    with torch.no_grad():
        list(last.parameters())[-1].add_(0.7)
    torch.manual_seed(4)
    outside = module(batch["image"])
    for result in (inside, outside):
        drawn = result["drawn"].detach().numpy()
        far = np.maximum(drawn - 1, 0) + np.maximum(-drawn, 0)
        beyond = np.where(far < 0.02, far**2 / 0.04, far - 0.01)
        pixels = nn.functional.smooth_l1_loss(result["reconstruction"], batch["image"], beta=0.02)
        assert float(result["loss"].detach()) == pytest.approx(float(pixels.detach()) + beyond.mean(), rel=1e-4)
    assert beyond.mean() > 0.01
    assert "drawn" not in module.eval()(batch["image"])


def test_each_of_several_discriminators_has_its_terms_and_learns() -> None:
    first, second = (adversary(seed=seed).discriminator for seed in (1, 2))
    second.penalized = False
    both = nn.ModuleList([first, second])
    update = AdversarialUpdate(
        both, torch.optim.Adam(both.parameters(), 1e-3), start=0, ramp=0, drawn_weight=0.5, r1_every=1
    )
    asked: list[nn.Module] = []
    penalty = update._penalty
    update._penalty = lambda judge, images: asked.append(judge) or penalty(judge, images)
    before = state(both)
    last = train(decoder_objective(), batches(3), update)[-1]["pred"]
    assert asked == [first] * 3
    wanted = {"adversarial_loss": 0.4, "feature_loss": 1.5, "drawn_loss": 0.5}
    assert update.terms == wanted | {f"{name}_1": weight for name, weight in wanted.items()}
    assert all(float(last[name]) > 0 for name in update.terms)
    assert float(last["adversarial_loss"]) != float(last["adversarial_loss_1"])
    changed = {name.split(".")[0] for name, value in both.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0", "1"}


def test_in_bfloat16_the_discriminators_judge_alike_and_the_penalty_is_exact() -> None:
    images = batches(1)[0]["image"]
    exact, rounded = adversary(), adversary(amp=True)
    for ours, theirs in zip(
        exact._features(exact.judges[0], images), rounded._features(rounded.judges[0], images), strict=True
    ):
        assert theirs.dtype == torch.float32
        assert not torch.equal(ours, theirs)
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)
    penalties = [float(update._penalty(update.judges[0], images).detach()) for update in (exact, rounded)]
    assert penalties[0] == penalties[1]


def test_the_balance_moves_a_fifth_of_the_way_at_each_measurement() -> None:
    update = adversary(balance_every=2, adversarial_weight=0.5, feature_weight=0.0)
    image = torch.ones(1, 4, requires_grad=True)

    def measured(slope: float) -> float:
        terms = {"loss": image.sum(), "adversarial_loss": slope * image.sum(), "feature_loss": image.sum()}
        update._balance(terms, [image])
        return update.weights["adversarial_loss"]

    assert measured(1.0) == pytest.approx(0.5)
    assert measured(0.25) == pytest.approx(0.8 * 0.5 + 0.2 * 2.0)
    assert measured(0.0) == pytest.approx(0.8 * 0.8 + 0.2 * 1e4)  # however blind the discriminator is
    assert update.weights["feature_loss"] == 0.0


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_penalty_is_the_squared_gradient_by_finite_differences(spatial_dims: int) -> None:
    update = adversary(spatial_dims)
    update.discriminator.double()
    update._features = lambda judge, x, amp: judge(x.double() * 4 - 1)  # type: ignore[method-assign]
    images = torch.rand(2, 1, *[6] * spatial_dims, dtype=torch.float64)
    penalty = float(update._penalty(update.discriminator, images).detach())
    squares, step = 0.0, 1e-5
    with torch.no_grad():
        for index in range(images.numel()):
            ends = []
            for sign in (1, -1):
                moved = images.clone()
                moved.view(-1)[index] += sign * step
                ends.append(float(update.discriminator(4 * moved - 1)[-1].flatten(1).mean(1).sum()))
            squares += ((ends[0] - ends[1]) / (2 * step)) ** 2
    assert penalty == pytest.approx(squares / len(images), rel=1e-5)


def test_the_penalty_counts_for_all_the_steps_it_stands_for() -> None:
    module, data = objective(), batches(1)
    update = adversary(r1_weight=0.5, r1_every=3)
    with torch.no_grad():
        for parameter in update.discriminator.parameters():
            parameter.mul_(20)  # or the penalty would not be seen
    twin = copy.deepcopy(update.discriminator)
    outputs = train(module, data, update)
    x, y = data[0]["image"], outputs[0]["pred"]["reconstruction"].detach()
    loss = nn.functional.softplus(-twin(4 * x - 1)[-1]).mean() + nn.functional.softplus(twin(shown(y))[-1]).mean()
    x = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(twin(4 * x - 1)[-1].flatten(1).mean(1).sum(), x, create_graph=True)
    (loss + 0.5 * 3 * gradient.square().sum() / len(x)).backward()
    for ours, theirs in zip(update.discriminator.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_before_the_discriminator_begins_all_is_as_without_it() -> None:
    data = batches(3)
    plain, started, module = objective(), objective(), objective()
    train(plain, data, None)
    update = adversary(start=3)
    before = state(update.discriminator)
    outputs = train(module, data, update)
    assert equal(state(plain), state(module))
    assert equal(before, state(update.discriminator))
    assert all(float(output["pred"]["discriminator_loss"]) == 0 for output in outputs)
    train(started, data, adversary(start=1))
    assert not equal(state(plain), state(started))


def test_the_share_of_the_adversary_rises_along_the_ramp() -> None:
    shares = []
    for output in train(objective(), batches(6), update := adversary(start=1, ramp=2, balance_every=100)):
        pred = output["pred"]
        terms = sum(update.weights[name] * float(pred[name]) for name in ("adversarial_loss", "feature_loss"))
        extra = float((output["loss"] - pred["loss"]).detach())
        shares.append(extra / terms if terms else 0.0)
    np.testing.assert_allclose(shares, [0, 0, 0.5, 1, 1, 1], rtol=1e-3)


def test_the_autoencoders_loss_sends_no_gradient_to_the_discriminator_and_its_learning_rate_follows() -> None:
    update = adversary()
    module, grads = objective(), []
    trainer = trainer_of(module, batches(2), update)
    trainer.optimizer.param_groups[0]["lr"] = 0.007
    trainer.add_event_handler(
        IterationEvents.LOSS_COMPLETED,
        lambda _: [p.grad.zero_() for p in update.discriminator.parameters() if p.grad is not None],
    )
    trainer.add_event_handler(
        IterationEvents.BACKWARD_COMPLETED,
        lambda _: grads.append(
            [p.grad for p in update.discriminator.parameters() if p.grad is not None and p.grad.any()]
        ),
    )
    trainer.run()
    assert grads == [[], []]
    assert update.optimizer.param_groups[0]["lr"] == 0.007


def test_the_state_of_another_discriminator_is_refused(tmp_path) -> None:
    module = objective()
    trainer = trainer_of(module, batches(1), adversary())
    TrainingState(tmp_path / "state.pt", {"adversary": adversary()}).save(trainer)
    other = TrainingState(tmp_path / "state.pt", {"adversary": adversary(channels=8)}, resume=True)
    with pytest.raises(CheckpointError, match="does not fit this run's adversary"):
        other.restore(trainer)


@pytest.mark.parametrize("where", ["autoencoder", "discriminator"])
def test_a_loss_that_is_not_finite_ends_the_training_before_any_step(where: str) -> None:
    module, update = objective(), adversary()
    data = batches(1)
    if where == "autoencoder":
        data[0]["image"][0, 0, 0, 0] = float("nan")
    else:
        with torch.no_grad():
            next(update.discriminator.parameters()).fill_(float("inf"))
    weights = [p.clone() for p in module.parameters()], [p.clone() for p in update.discriminator.parameters()]
    trainer = trainer_of(module, data, update, handlers=[GradientGuard(module)])
    with pytest.raises(VQGenError, match=r"became nan at epoch 1, iteration 1\. Weights saved so far are untouched"):
        trainer.run()
    for before, after in zip(weights, (module.parameters(), update.discriminator.parameters()), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_discriminator_that_has_won_is_reported_once_an_epoch(caplog) -> None:
    update = adversary()
    engine = trainer_of(objective(), batches(1), update)
    with caplog.at_level(logging.WARNING):
        for epoch, loss in ((1, 0.02), (1, 0.02), (2, 0.02)):
            engine.state.epoch = epoch
            update._check_loss(engine, torch.tensor(loss), torch.tensor(loss))
    messages = [record.getMessage() for record in caplog.records if "has won" in record.getMessage()]
    assert len(messages) == 2
    assert "--r1_weight" in messages[0]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"adversarial_weight": -0.1}, "none may be negative"),
        ({"r1_weight": -1.0}, "none may be negative"),
        ({"adversarial_weight": 0.0, "feature_weight": 0.0}, "one of the first two must be positive"),
        ({"start": -1}, "start=-1"),
        ({"r1_every": 0}, "r1_every=0"),
        ({"balance_every": 0}, "balance_every=0"),
        ({"start": 100, "total_steps": 100}, r"after 100 iterations .* has 100"),
        ({"accumulation_steps": 2}, "accumulation_steps=2"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        adversary(**options)


def test_images_that_the_discriminator_cannot_take_are_refused_at_once() -> None:
    adversary().check((1, SIDE, SIDE))
    for shape in [(1, 2, 2), (2, SIDE, SIDE), (1, SIDE, SIDE, SIDE)]:
        with pytest.raises(InputError, match="cannot take images of shape"):
            adversary().check(shape)
    with pytest.raises(InputError, match="returns no list of its layers"):
        AdversarialUpdate(lone := nn.Conv2d(1, 1, 1), torch.optim.SGD(lone.parameters())).check((1, 8, 8))
    with pytest.raises(InputError, match="cannot take images of shape"):
        train(objective(), [{"image": torch.rand(2, 1, 2, 2)}], adversary(start=1000))
