from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from sr_runner.checkpoint import codec
from sr_runner.models import EDSR, WDSRB, SRResNet
from sr_runner.objectives import Learner, PixelObjective

NETWORKS = {
    "edsr": lambda: EDSR(scale=2, num_filters=8, num_res_blocks=1),
    "wdsr_b (weight norm)": lambda: WDSRB(scale=2, num_filters=8, num_res_blocks=1, res_block_expansion=6),
    "srresnet (BatchNorm)": lambda: SRResNet(scale=2, num_filters=8, num_res_blocks=1),
}


class Sums(torch.optim.Optimizer):
    """Keeps sums of products of gradients, transposed and in double precision, and adds a bit of them."""

    def __init__(self, params: Any, lr: float):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                matrix = parameter.grad.flatten(1) if parameter.ndim > 1 else parameter.grad[:, None]
                state = self.state[parameter]
                if not state:
                    rows = len(matrix)
                    state |= {"like": torch.zeros(parameter.shape), "sums": [torch.zeros(rows, rows).double().T]}
                    state["wide"] = torch.zeros(rows, matrix.shape[1]).T.contiguous().T
                    state["count"] = torch.tensor(0)
                state["count"] += 1
                state["like"] += parameter.grad
                state["wide"].addmm_(state["sums"][0].float(), matrix, beta=0.9)
                state["sums"][0].addmm_(matrix.double(), matrix.double().T, beta=0.9)
                change = (matrix + state["sums"][0].float() @ matrix + state["wide"]).reshape(parameter.shape)
                parameter.sub_(group["lr"] * change / state["count"])


OPTIMIZERS = {
    "sums": partial(Sums, lr=1e-3),
    "adam": partial(torch.optim.Adam, lr=1e-3, fused=True),
    "adamw": partial(torch.optim.AdamW, lr=1e-3, fused=True),
    "sgd": partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    "rmsprop": partial(torch.optim.RMSprop, lr=1e-3),
}
SCHEDULERS = {
    "multistep": partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[2, 5], gamma=0.5),
    "cosine": partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1e-3, total_steps=20, cycle_momentum=False),
}


def batch(scale: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lr = torch.rand(4, 3, 12, 12, generator=generator).contiguous(memory_format=torch.channels_last)
    return lr, torch.rand(4, 3, 12 * scale, 12 * scale, generator=generator)


def train(learner: Learner, steps: int) -> None:
    objective = PixelObjective({"pixel": nn.L1Loss()})
    for _ in range(steps):
        objective.train_step({"model": learner}, [batch()], measure=False)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_learner_goes_on_from_its_saved_state_bit_for_bit(
    network: str, optimizer: str, scheduler: str, memory_format: torch.memory_format
) -> None:
    def learner() -> Learner:
        torch.manual_seed(0)
        module = NETWORKS[network]().to(memory_format=memory_format)  # type: ignore[call-overload]
        return Learner(module.train(), OPTIMIZERS[optimizer], SCHEDULERS[scheduler], grad_clip=0.1)

    unbroken = learner()
    train(unbroken, 3)
    # As a checkpoint gives it back: contiguous, whatever the format in memory was.
    tensors, rest = codec.flatten({"learner": unbroken.state_dict(), "weights": unbroken.network.state_dict()})
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    saved = copy.deepcopy(codec.unflatten(rest, tensors))
    train(unbroken, 3)

    resumed = learner()
    resumed.network.load_state_dict(saved["weights"])
    resumed.load_state_dict(saved["learner"])
    train(resumed, 3)
    for (name, mine), theirs in zip(
        resumed.network.state_dict().items(), unbroken.network.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    assert resumed.lr == unbroken.lr
    mine, theirs = (dict(tensors_of(each.optimizer.state_dict()["state"])) for each in (resumed, unbroken))
    assert mine.keys() == theirs.keys()
    for place, tensor in theirs.items():
        assert torch.equal(mine[place], tensor) and mine[place].dtype == tensor.dtype, place
        assert mine[place].stride() == tensor.stride(), place


def tensors_of(value: Any, place: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield place, value
    elif isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors_of(each, f"{place}/{key}")


def test_the_scale_of_an_fp16_loss_and_its_growth_are_in_the_state() -> None:
    def learner() -> Learner:
        torch.manual_seed(0)
        return Learner(nn.Conv2d(3, 3, 3), OPTIMIZERS["sgd"], None, precision="fp16")

    def update(learner: Learner, gradient: float) -> None:
        assert learner.scaler is not None
        learner.backward((learner(torch.ones(1, 3, 4, 4)) * gradient).sum())
        learner.step()

    first, second = learner(), learner()
    update(first, float("inf"))  # halves the scale
    update(first, 1e-3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert first.scaler is not None and second.scaler is not None
    assert second.scaler.state_dict() == first.scaler.state_dict() != learner().scaler.state_dict()  # type: ignore[union-attr]
    assert second.scaler.get_scale() == first.scaler.get_scale() == 2**15


def test_gradients_reach_every_network_behind_a_loss_and_with_own_only_this_one() -> None:
    first, second = (Learner(nn.Conv2d(3, 3, 3), OPTIMIZERS["sgd"], None) for _ in range(2))
    second.backward(second(first(torch.ones(1, 3, 8, 8))).mean(), own=True)
    assert first.network.weight.grad is None and second.network.weight.grad is not None
    second.backward(second(first(torch.ones(1, 3, 8, 8))).mean())
    assert first.network.weight.grad is not None


def test_the_state_is_keyed_by_parameter_name() -> None:
    learner = Learner(NETWORKS["edsr"](), OPTIMIZERS["adam"], None)
    train(learner, 1)
    state = learner.state_dict()
    assert state["optimizer"].keys() == dict(learner.network.named_parameters()).keys()
    assert state["groups"][0]["params"] == list(dict(learner.network.named_parameters()))


def test_accumulated_batches_update_like_one_large_batch() -> None:
    lr, hr = batch()
    results = []
    for batches in ([(lr, hr)], [(lr[:2], hr[:2]), (lr[2:], hr[2:])]):
        torch.manual_seed(0)
        learner = Learner(NETWORKS["edsr"](), partial(torch.optim.SGD, lr=1.0), None)
        terms = PixelObjective({"pixel": nn.L1Loss()}).train_step({"model": learner}, batches, measure=True)
        results.append((terms["loss"], terms["grad_norm"], learner.network.state_dict()["head.weight"].clone()))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two)


def test_gradients_are_clipped_to_the_norm_asked_for() -> None:
    torch.manual_seed(0)
    learner = Learner(NETWORKS["edsr"](), partial(torch.optim.SGD, lr=1.0), None, grad_clip=1e-3)
    before = torch.cat([p.detach().flatten() for p in learner.parameters])
    terms = PixelObjective({"pixel": nn.L1Loss()}).train_step({"model": learner}, [batch()], measure=True)
    after = torch.cat([p.detach().flatten() for p in learner.parameters])
    assert terms["grad_norm"] > 1e-3
    assert torch.linalg.vector_norm(after - before).item() == pytest.approx(1e-3, rel=1e-3)


def test_frozen_parameters_are_not_trained() -> None:
    network = NETWORKS["edsr"]()
    network.head.requires_grad_(False)
    head = network.head.weight.clone()
    learner = Learner(network, OPTIMIZERS["adam"], None)
    train(learner, 2)
    assert torch.equal(network.head.weight, head) and "head.weight" not in learner.state_dict()["optimizer"]


def test_a_fork_keeps_moments_and_takes_its_own_rate_and_schedule() -> None:
    source = Learner(NETWORKS["edsr"](), OPTIMIZERS["adam"], SCHEDULERS["multistep"])
    train(source, 3)
    fork = Learner(
        NETWORKS["edsr"](), partial(torch.optim.Adam, lr=4e-3, fused=True),
        partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[1], gamma=0.1),
    )  # fmt: skip
    fork.load_moments(source.state_dict(), step=3)
    assert fork.lr == pytest.approx(4e-4)
    moments = fork.state_dict()["optimizer"]["head.weight"]["exp_avg"]
    assert torch.equal(moments, source.state_dict()["optimizer"]["head.weight"]["exp_avg"])


def test_an_update_that_is_not_finite_is_left_out_where_asked_for() -> None:
    learner = Learner(NETWORKS["edsr"](), OPTIMIZERS["adam"], SCHEDULERS["multistep"], skip_non_finite=True)
    train(learner, 1)
    before = copy.deepcopy(learner.network.state_dict())
    lr, hr = batch()
    terms = PixelObjective({"pixel": nn.L1Loss()}).train_step(
        {"model": learner}, [(lr * float("nan"), hr)], measure=False
    )
    assert terms["loss"].isnan()
    assert all(torch.equal(mine, before[name]) for name, mine in learner.network.state_dict().items())
    train(learner, 1)
    assert not torch.equal(learner.network.state_dict()["head.weight"], before["head.weight"])
