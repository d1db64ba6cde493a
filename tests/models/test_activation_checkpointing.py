"""Modules that are computed anew in the backward pass: the same bits for less memory."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from sr_runner.errors import RequestError
from sr_runner.models import EDSR, WDSRA, SRResNet
from sr_runner.models.activation_checkpointing import checkpoint_activations
from sr_runner.models.discriminator import Discriminator
from sr_runner.objectives import GanObjective, Learner, PixelObjective
from sr_runner.objectives.ema import Ema
from sr_runner.objectives.learner import Precision
from sr_runner.objectives.perceptual import PerceptualLoss


class Block(nn.Module):
    """Everything that a second forward pass would do differently: statistics, dropout, drop path by any generator,
    power iteration, a counter, and a module that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = spectral_norm(nn.Conv2d(8, 8, 3, padding=1))
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, *, size: tuple[int, int]) -> tuple[Tensor, int]:
        self.calls += 1
        kept = random.random() < 0.7, np.random.random() < 0.7, torch.rand(()) < 0.7  # noqa: NPY002
        y = self.norm(torch.relu_(self.conv(self.drop(self.conv(x))))) * (1 + 0.1 * int(self.calls))
        return x + y * sum(kept) / size[0], int(self.calls)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.tail = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, lr: Tensor) -> Tensor:
        x = self.head(lr)
        for block in self.blocks:
            x, _ = block(x, size=lr.shape[-2:])
        sr: Tensor = self.tail(x)
        return sr


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "edsr": (partial(EDSR, scale=2, num_filters=8, num_res_blocks=2), "body.*"),
    "wdsr (weight norm)": (partial(WDSRA, scale=2, num_filters=8, num_res_blocks=2, res_block_expansion=2), "body"),
    "srresnet (BatchNorm)": (partial(SRResNet, scale=2, num_filters=8, num_res_blocks=2), "body.*|upsampler.0"),
    "all at once": (Net, "blocks"),
}


def seed() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002


def batch(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.rand(2, 3, 8, 8, generator=generator), torch.rand(2, 3, 16, 16, generator=generator)


def trained(make: Callable[[], nn.Module], pattern: str | None, precision: Precision = "fp32") -> tuple[Any, ...]:
    """What three steps of two batches make of the network, its gradients' norm and the generators."""
    seed()
    network = make().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if pattern is not None:
        assert checkpoint_activations(network, pattern)
    learner = Learner(network, partial(torch.optim.Adam, lr=1e-2), None, precision=precision)
    objective = PixelObjective({"pixel": nn.L1Loss()})
    terms = [objective.train_step({"model": learner}, [batch(2 * i), batch(2 * i + 1)], measure=True) for i in range(3)]
    generators = torch.rand(()), random.random(), np.random.random()  # noqa: NPY002
    return network.state_dict(), [{k: float(v) for k, v in each.items()} for each in terms], generators


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_weights_statistics_and_generators_are_the_same_bit_for_bit(name: str, precision: Precision) -> None:
    make, pattern = NETWORKS[name]
    (state, *rest), (expected, *others) = trained(make, pattern, precision), trained(make, None, precision)
    assert list(state) == list(expected) and rest == others
    assert [key for key in state if not torch.equal(state[key], expected[key])] == []


def saved_bytes(network: nn.Module) -> int:
    """Of all that is kept between forward and backward pass, without the parameters."""
    own = {each.untyped_storage().data_ptr() for each in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive = network(batch(0)[0])
    del alive
    return sum(kept.values())


def test_a_chosen_module_keeps_nothing_but_its_output() -> None:
    network = EDSR(scale=2, num_filters=8, num_res_blocks=16)
    usual = saved_bytes(network)
    blocks = checkpoint_activations(network, "body.*")
    feature_map = 2 * 8 * 8 * 8 * 4
    assert len(blocks) == 17 and saved_bytes(network) < usual - 15 * feature_map


def test_a_generator_against_a_discriminator_is_trained_to_the_same_bits() -> None:
    def steps(pattern: str | None) -> dict[str, Tensor]:
        seed()
        losses = {"content": PerceptualLoss(layers=["VGG22"], vgg_seed=0), "pixel": nn.L1Loss()}
        objective = GanObjective(losses=losses, discriminator=Discriminator(patch_size=16, num_filters=2))
        networks = objective.networks(SRResNet(scale=2, num_filters=8, num_res_blocks=2), patch_size=16)
        if pattern is not None:
            checkpoint_activations(networks["model"], pattern)
        learners = {k: Learner(each, partial(torch.optim.Adam, lr=1e-3), None) for k, each in networks.items()}
        for number in range(2):
            objective.train_step(learners, [batch(number)], measure=False)
        return {f"{k}.{n}": each for k, net in networks.items() for n, each in net.state_dict().items()}

    state, expected = steps("body.*"), steps(None)
    assert [key for key in expected if not torch.equal(state[key], expected[key])] == []


def test_a_copy_computes_with_its_own_weights_and_an_evaluation_keeps_nothing() -> None:
    network = EDSR(scale=2, num_filters=8, num_res_blocks=2)
    checkpoint_activations(network, "body.*")
    averaged = Ema(network, 0.5).network
    with torch.no_grad():
        before = network(batch(0)[0])
        for parameter in network.parameters():
            parameter.zero_()
        assert torch.equal(averaged(batch(0)[0]), before) and not network(batch(0)[0]).requires_grad


def test_a_second_pass_through_the_same_graph_is_the_same() -> None:
    seed()
    network = Net()
    checkpoint_activations(network, "blocks")
    loss = network(batch(0)[0]).square().mean()
    loss.backward(retain_graph=True)
    first = [each.grad.clone() for each in network.parameters() if each.grad is not None]
    network.zero_grad()
    loss.backward()
    assert all(torch.equal(a, each.grad) for a, each in zip(first, network.parameters(), strict=True))


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("blocks", ["blocks.0", "blocks.1"]),
        ("blocks.*", ["blocks.0", "blocks.1"]),
        ("blocks.1|*.0.norm", ["blocks.0.norm", "blocks.1"]),
        ("*", ["head", "blocks.0", "blocks.1", "tail"]),
        ("tail.?", ["tail.0", "tail.1"]),
    ],
)
def test_the_outermost_module_counts_and_a_list_stands_for_its_members(pattern: str, chosen: list[str]) -> None:
    assert checkpoint_activations(Net(), pattern) == chosen


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("block", "trainer.checkpoint_activations=block: this fits no module; .* Did you mean 'blocks'"),
        ("blocks|body.*", r"trainer.checkpoint_activations=body\.\*: this fits no module; .* head, blocks, tail"),
        ("", "trainer.checkpoint_activations=: this fits no module"),
    ],
)
def test_a_name_that_fits_nothing_is_refused(pattern: str, said: str) -> None:
    network = Net()
    with pytest.raises(RequestError, match=said):
        checkpoint_activations(network, pattern)
    assert not any("forward" in vars(module) for module in network.modules())


def test_a_module_that_changes_its_input_is_refused() -> None:
    network = copy.deepcopy(EDSR(scale=2, num_filters=8, num_res_blocks=1))
    checkpoint_activations(network, "body.0.relu")
    with pytest.raises(RequestError, match=r"body\.0\.relu \(ReLU\) changes its input in place"):
        network(batch(0)[0])
