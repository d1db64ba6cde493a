from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sr_runner.checkpoint import codec
from sr_runner.config.settings import TermSettings
from sr_runner.errors import RequestError
from sr_runner.models import (
    EDSR,
    WDSRB,
    Discriminator,
    PatchDiscriminator,
    SRResNet,
    UNetDiscriminator,
    VGG19Features,
)
from sr_runner.objectives import GanObjective, Learner, PerceptualLoss, Term
from sr_runner.objectives.adversarial import ADVERSARIAL_LOSSES
from sr_runner.objectives.gan import DISCRIMINATOR, squared_gradient_norm
from sr_runner.weights import export

torch.set_num_threads(1)

GENERATORS: dict[str, Callable[[], nn.Module]] = {
    "edsr": lambda: EDSR(scale=2, num_filters=4, num_res_blocks=1),
    "wdsr_b (weight norm)": lambda: WDSRB(scale=2, num_filters=4, num_res_blocks=1, res_block_expansion=6),
    "srresnet (BatchNorm)": lambda: SRResNet(scale=2, num_filters=4, num_res_blocks=1),
}
SGD = partial(torch.optim.SGD, lr=0.1)
ADAM = partial(torch.optim.Adam, lr=1e-3, fused=True)


def objective(*, pixel: float = 0.0, content: float = 1.0, **arguments: Any) -> GanObjective:
    losses: dict[str, Term] = {}
    if content:
        perceptual = PerceptualLoss(layers=["VGG22"], vgg_seed=0)
        losses["content"] = Term(perceptual, TermSettings(weight=content, autocast=True))
    if pixel:
        losses["pixel"] = Term(nn.L1Loss(), TermSettings(weight=pixel))
    torch.manual_seed(0)
    return GanObjective(losses=losses, **{"discriminator": Discriminator(patch_size=16, num_filters=2)} | arguments)


def learners(
    gan: GanObjective, generator: str = "edsr", optimizer: Any = SGD, scheduler: Any = None, **arguments: Any
) -> dict[str, Learner]:
    torch.manual_seed(0)
    networks = copy.deepcopy(gan.networks(GENERATORS[generator](), patch_size=16))
    result = {}
    for name, network in networks.items():
        own = gan.trained_by(name)
        network = network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        result[name] = Learner(network, own.optimizer or optimizer, own.scheduler or scheduler, **arguments)
    return result


def batch(seed: int = 0, count: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lr = torch.rand(count, 3, 8, 8, generator=generator).contiguous(memory_format=torch.channels_last)
    hr = torch.rand(count, 3, 16, 16, generator=generator).contiguous(memory_format=torch.channels_last)
    return lr, hr


def weights(trained: dict[str, Learner]) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value.clone()
        for name, learner in trained.items()
        for key, value in learner.network.state_dict().items()
    }


def by_the_book(
    gan: GanObjective, trained: dict[str, Learner], lr: Tensor, hr: Tensor, rate: float
) -> dict[str, Tensor]:
    """One step of gradient descent of both networks, each from passes of its own, at the weights before the step."""
    generator, discriminator = (copy.deepcopy(trained[name].network) for name in ("model", DISCRIMINATOR))
    vgg = VGG19Features.seeded(0, layer="VGG22")
    real_label, fake_label = torch.ones(len(lr), 1), torch.zeros(len(lr), 1)
    bce = F.binary_cross_entropy_with_logits

    sr = generator(lr)
    content = F.mse_loss(vgg(sr) / 12.75, vgg(hr) / 12.75)
    adversarial = bce(copy.deepcopy(discriminator)(sr), real_label)
    loss = content + 0.5 * F.l1_loss(sr, hr) + 0.01 * adversarial
    gradients = torch.autograd.grad(loss, list(generator.parameters()))
    against = bce(discriminator(hr), real_label) + bce(discriminator(sr.detach()), fake_label)
    against_gradients = torch.autograd.grad(against, list(discriminator.parameters()))
    with torch.no_grad():
        for network, steps in ((generator, gradients), (discriminator, against_gradients)):
            for parameter, gradient in zip(network.parameters(), steps, strict=True):
                parameter -= rate * gradient
    return {
        f"{name}/{key}": value
        for name, network in (("model", generator), (DISCRIMINATOR, discriminator))
        for key, value in network.state_dict().items()
    } | {"loss": loss.detach(), "loss/content": content.detach(), "loss/discriminator": against.detach()}


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_step_is_the_references_simultaneous_update_of_both_networks(generator: str) -> None:
    gan = objective(adversarial_weight=0.01, pixel=0.5)
    trained = learners(gan, generator)
    expected = by_the_book(gan, trained, *batch(), rate=0.1)
    terms = gan.train_step(trained, [batch()], measure=True)
    for name, value in (weights(trained) | terms).items():
        if name in expected:
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    assert set(terms) == {
        "loss", "loss/content", "loss/pixel", "loss/adversarial", "loss/discriminator", "grad_norm",
    }  # fmt: skip
    assert not any(term.requires_grad for term in terms.values())


def test_neither_network_takes_gradients_of_the_others_loss() -> None:
    """Without a loss of its own that reaches it, a network stays as it is."""
    trained = learners(objective(adversarial_weight=0.0, content=0.0))
    before = weights(trained)
    objective(adversarial_weight=0.0, content=0.0).train_step(trained, [batch()], measure=False)
    changed = {name.split("/")[0] for name, value in weights(trained).items() if not torch.equal(value, before[name])}
    assert changed == {DISCRIMINATOR}
    assert all(p.grad is None for learner in trained.values() for p in learner.parameters)


@pytest.mark.parametrize("adversarial", ADVERSARIAL_LOSSES)
def test_accumulated_batches_count_as_their_mean(adversarial: str) -> None:
    gan = objective(adversarial=adversarial, pixel=1.0, gradient_penalty=1.0)
    results = []
    for batches in ([batch()], [batch(), batch()]):
        trained = learners(gan)
        terms = gan.train_step(trained, batches, measure=True)
        results.append(terms | dict(weights(trained)))
    for name, value in results[0].items():
        if "running_" not in name and "num_batches" not in name:  # BatchNorm saw the one batch twice
            torch.testing.assert_close(value, results[1][name], rtol=1e-4, atol=1e-6, msg=name)


def test_the_adversarial_losses_are_those_of_their_papers() -> None:
    real, fake = torch.randn(5, 1, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    s = torch.sigmoid
    formulas = {
        "vanilla": (-s(fake).log().mean(), (-s(real).log() - (1 - s(fake)).log()).mean()),
        "relativistic": (
            (-(1 - s(real - fake.mean())).log().mean() - s(fake - real.mean()).log().mean()) / 2,
            (-s(real - fake.mean()).log().mean() - (1 - s(fake - real.mean())).log().mean()) / 2,
        ),
        "hinge": (-fake.mean(), (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()),
    }
    for name, (generator, discriminator) in formulas.items():
        loss = ADVERSARIAL_LOSSES[name]()
        torch.testing.assert_close(loss.generator(real, fake), generator)
        torch.testing.assert_close(loss.discriminator(real, fake), discriminator)
    certain = torch.full((2, 1), 1e4)
    assert all(torch.isfinite(loss().discriminator(-certain, certain)) for loss in ADVERSARIAL_LOSSES.values())


def test_the_gradient_penalty_of_a_linear_discriminator_is_its_squared_weight() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 1))
    penalty = squared_gradient_norm(linear, torch.rand(5, 3, 4, 4))
    torch.testing.assert_close(penalty, linear[1].weight.square().sum())
    penalty.backward()
    torch.testing.assert_close(linear[1].weight.grad, 2 * linear[1].weight)


def test_the_gradient_penalty_trains_the_discriminator_alone() -> None:
    results = []
    for gamma in (0.0, 10.0):
        gan = objective(gradient_penalty=gamma)
        trained = learners(gan)
        terms = gan.train_step(trained, [batch()], measure=False)
        results.append((weights(trained), terms))
    (plain, plain_terms), (penalised, penalised_terms) = results
    assert penalised_terms["loss/discriminator"] > plain_terms["loss/discriminator"]
    assert torch.equal(penalised["model/head.weight"], plain["model/head.weight"])
    assert not torch.equal(penalised["discriminator/blocks.0.conv.weight"], plain["discriminator/blocks.0.conv.weight"])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_every_term_is_fp32_and_finite_in_reduced_precision(precision: Any) -> None:
    gan = objective(gradient_penalty=1.0, pixel=1.0, adversarial="relativistic")
    trained = learners(gan, optimizer=ADAM, precision=precision)
    before = weights(trained)
    for step in range(3):
        terms = gan.train_step(trained, [batch(step)], measure=True)
        assert all(term.dtype == torch.float32 and torch.isfinite(term) for term in terms.values()), terms
    after = weights(trained)
    assert all(torch.isfinite(value).all() for value in after.values())
    for name in ("model/head.weight", "discriminator/dense2.weight"):
        assert not torch.equal(before[name], after[name])


@pytest.mark.parametrize(("kind", "precision"), [("vgg", "fp32"), ("unet", "bf16"), ("spectral patch", "fp32")])
def test_the_whole_state_is_that_of_the_learners_and_goes_on_bit_for_bit(kind: str, precision: str) -> None:
    def discriminator() -> nn.Module:
        torch.manual_seed(3)
        if kind == "unet":
            return UNetDiscriminator(num_filters=2)
        if kind == "vgg":
            return Discriminator(patch_size=16, num_filters=2)
        return PatchDiscriminator(num_filters=2, halvings=1, spectral=True)

    def start() -> tuple[GanObjective, dict[str, Learner]]:
        gan = objective(
            pixel=0.1,
            discriminator=discriminator(),
            gradient_penalty=1.0,
            discriminator_optimizer=partial(torch.optim.AdamW, lr=3e-4),
            discriminator_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=2),
        )
        multistep = partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[2, 5])
        return gan, learners(gan, "srresnet (BatchNorm)", ADAM, multistep, precision=precision)

    gan, unbroken = start()
    for step in range(3):
        gan.train_step(unbroken, [batch(step)], measure=False)
    tree = {name: {"state": each.state_dict(), "weights": each.network.state_dict()} for name, each in unbroken.items()}
    tensors, rest = codec.flatten(tree)
    saved = copy.deepcopy(
        codec.unflatten(rest, {name: tensor.contiguous().clone() for name, tensor in tensors.items()})
    )
    resumed_gan, resumed = start()
    for name, learner in resumed.items():
        learner.network.load_state_dict(saved[name]["weights"])
        learner.load_state_dict(saved[name]["state"])
    for step in range(3, 6):
        gan.train_step(unbroken, [batch(step)], measure=False)
        resumed_gan.train_step(resumed, [batch(step)], measure=False)
    expected = weights(unbroken)
    assert [name for name, value in weights(resumed).items() if not torch.equal(value, expected[name])] == []
    assert [each.lr for each in resumed.values()] == [each.lr for each in unbroken.values()]
    assert resumed["model"].lr != resumed[DISCRIMINATOR].lr
    assert not any("vgg" in name or "features" in name for name in tensors)
    spectral = [name for name in expected if name.endswith("._u")]
    assert bool(spectral) == (kind != "vgg")
    assert all(not torch.equal(expected[name], saved[DISCRIMINATOR]["weights"][name[14:]]) for name in spectral)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"adversarial": "relativstic"}, "objective.adversarial=relativstic: .*Did you mean 'relativistic'"),
        ({"adversarial_weight": -1.0}, "objective.adversarial_weight=-1.0"),
        ({"gradient_penalty": float("nan")}, "objective.gradient_penalty=nan"),
        ({"discriminator_weights": "/nope.h5"}, "objective.discriminator_weights=/nope.h5: no such file"),
    ],
)
def test_a_wrong_argument_is_named_by_its_key(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        objective(**arguments)
    with pytest.raises(RequestError, match=r"objective\.losses\.adversarial: expected another name"):
        GanObjective(losses={"adversarial": nn.L1Loss()}, discriminator=Discriminator(patch_size=16, num_filters=2))


class Sentence(nn.Module):
    def forward(self, images: Tensor) -> str:
        return "a photograph"


class Sum(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.sum()


@pytest.mark.parametrize(
    ("discriminator", "message"),
    [
        (
            Discriminator(patch_size=32, num_filters=2),
            r"Discriminator fails on patches of 1 x 3 x 16 x 16: .* 32 pixels",
        ),
        (UNetDiscriminator(num_filters=2).train(), None),
        (PatchDiscriminator(num_filters=2, halvings=1), None),
        (PatchDiscriminator(num_filters=2, halvings=4), "PatchDiscriminator fails on patches of 1 x 3 x 16 x 16: "),
        (Sentence(), r"Sentence makes str of patches of 1 x 3 x 16 x 16; expected logits"),
        (Sum(), r"Sum makes \(\) of patches"),
        (len, r"objective\.discriminator\._target_ makes a builtin_function_or_method: expected a torch\.nn\.Module"),
    ],
)
def test_what_makes_no_logits_of_patches_is_refused_and_what_does_is_left_as_it_was(
    discriminator: Any, message: str | None
) -> None:
    gan = objective(discriminator=discriminator)
    if message is None:
        before = copy.deepcopy(discriminator.state_dict())
        assert gan.networks(GENERATORS["edsr"](), patch_size=16)[DISCRIMINATOR] is discriminator
        assert discriminator.training
        assert all(torch.equal(value, before[key]) for key, value in discriminator.state_dict().items())
        return
    with pytest.raises(RequestError, match=message):
        gan.networks(GENERATORS["edsr"](), patch_size=16)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (Discriminator, {"patch_size": 16, "num_filters": 2}),
        (UNetDiscriminator, {"num_filters": 2}),
        (PatchDiscriminator, {"num_filters": 2, "spectral": True}),
    ],
)
def test_the_discriminator_starts_from_a_file_of_one(
    kind: type[nn.Module], arguments: dict[str, Any], tmp_path: Path
) -> None:
    patch, trained = 32 if kind is PatchDiscriminator else 16, kind(**arguments)
    save_file(trained.state_dict(), tmp_path / "discriminator.safetensors")
    gan = objective(discriminator=kind(**arguments), discriminator_weights=tmp_path / "discriminator.safetensors")
    built = gan.networks(GENERATORS["edsr"](), patch_size=patch)[DISCRIMINATOR]
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in built.state_dict().items())


def test_a_file_of_another_discriminator_is_refused_with_what_to_set(tmp_path: Path) -> None:
    export(Discriminator(patch_size=16, num_filters=2), tmp_path / "discriminator.safetensors")

    def networks(patch_size: int, num_filters: int) -> None:
        discriminator = Discriminator(patch_size=patch_size, num_filters=num_filters)
        gan = objective(discriminator=discriminator, discriminator_weights=tmp_path / "discriminator.safetensors")
        gan.networks(GENERATORS["edsr"](), patch_size=patch_size)

    with pytest.raises(RequestError, match=r"objective\.discriminator_weights: .*Set data\.patch_size=16"):
        networks(32, 2)
    with pytest.raises(RequestError, match=r"Set objective\.discriminator\.num_filters=2$"):
        networks(16, 3)
    export(GENERATORS["edsr"](), tmp_path / "edsr.safetensors")
    with pytest.raises(RequestError, match=r"edsr\.safetensors .* is no discriminator"):
        objective(discriminator_weights=tmp_path / "edsr.safetensors")


def test_files_stand_in_the_identity_by_their_content(tmp_path: Path) -> None:
    torch.save(VGG19Features.seeded(1, layer="VGG22").state_dict(), tmp_path / "vgg.pth")
    export(Discriminator(patch_size=16, num_filters=2), tmp_path / "d.safetensors")
    content = PerceptualLoss(layers=["VGG22"], vgg_weights=tmp_path / "vgg.pth")
    discriminator = Discriminator(patch_size=16, num_filters=2)
    gan = GanObjective(
        losses={"style": content}, discriminator=discriminator, discriminator_weights=tmp_path / "d.safetensors"
    )
    found = gan.file_contents
    assert found.keys() == {"losses.style.vgg_weights", "discriminator_weights"} and None not in found.values()
    assert found["losses.style.vgg_weights"] == content.file_contents["vgg_weights"]
    assert objective().file_contents == {"losses.content.vgg_weights": None, "discriminator_weights": None}
