from __future__ import annotations

import copy
import logging
from functools import partial
from typing import Any

import pytest
import timm.optim
import torch
from torch import nn

from sr_runner.errors import RequestError
from sr_runner.models import EDSR
from sr_runner.objectives import Learner, PixelObjective

ADAM = partial(torch.optim.Adam, lr=1e-3)


def network() -> EDSR:
    torch.manual_seed(0)
    return EDSR(scale=2, num_filters=4, num_res_blocks=2)


def train(learner: Learner, steps: int = 3) -> None:
    torch.manual_seed(1)
    lr, hr = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16)
    for _ in range(steps):
        PixelObjective({"pixel": nn.L1Loss()}).train_step({"model": learner}, [(lr, hr)], measure=False)


def rates(learner: Learner) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in learner.network.named_parameters()}
    return {names[id(p)]: group["lr"] for group in learner.optimizer.param_groups for p in group["params"]}


def test_frozen_parameters_stay_and_the_others_are_trained() -> None:
    learner = Learner(network(), ADAM, None, rules={"head|body.0": {"freeze": True}})
    before = {name: value.clone() for name, value in learner.network.state_dict().items()}
    train(learner)
    changed = {n for n, value in learner.network.state_dict().items() if not torch.equal(value, before[n])}
    frozen = {name for name in before if name.startswith(("head", "body.0"))}
    assert frozen and changed == before.keys() - frozen
    assert learner.state_dict()["optimizer"].keys() == changed


def test_the_first_pattern_that_fits_sets_the_rate_and_the_rest_keeps_the_optimizers() -> None:
    learner = Learner(network(), ADAM, None, rules={"body.0": {"lr": 1e-5, "eps": 1e-6}, "body": {"lr": 1e-4}})
    expected = {
        name: 1e-5 if name.startswith("body.0") else 1e-4 if name.startswith("body") else 1e-3
        for name in rates(learner)
    }
    assert rates(learner) == expected
    assert learner.lr == 1e-3 and learner.optimizer.param_groups[1]["eps"] == 1e-6


def test_a_pattern_has_the_wildcards_of_a_shell() -> None:
    learner = Learner(network(), partial(torch.optim.AdamW, lr=1e-3), None, rules={"*.bias": {"weight_decay": 0.0}})
    names = {id(parameter): name for name, parameter in learner.network.named_parameters()}
    decays = {names[id(p)]: group["weight_decay"] for group in learner.optimizer.param_groups for p in group["params"]}
    assert decays == {name: 0.0 if name.endswith(".bias") else 0.01 for name in names.values()}
    assert {0.0, 0.01} == set(decays.values())


@pytest.mark.parametrize(
    "scheduler",
    [
        partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[2], gamma=0.5),
        partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1e-3, total_steps=20, cycle_momentum=False),
    ],
    ids=["multistep", "cosine"],
)
def test_a_schedule_keeps_the_rates_in_proportion_and_all_of_it_is_restored(scheduler: Any) -> None:
    def learner() -> Learner:
        return Learner(network(), ADAM, scheduler, rules={"head": {"lr": 1e-5}})

    first = learner()
    train(first)
    assert first.optimizer.param_groups[1]["lr"] == pytest.approx(first.lr / 100)
    second = learner()
    second.network.load_state_dict(first.network.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(first)
    train(second)
    assert rates(first) == rates(second)
    ours, theirs = first.network.state_dict(), second.network.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_every_parameter_with_a_rule_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "sr_runner"):
        Learner(network(), ADAM, None, rules={"head": {"freeze": True}, "tail": {"lr": 1e-5}})
    assert sorted(caplog.messages) == [
        "head.bias: frozen",
        "head.weight: frozen",
        "tail.bias: {'lr': 1e-05}",
        "tail.weight: {'lr': 1e-05}",
    ]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"hed": {"freeze": True}}, r"trainer.parameters=\{hed.*Did you mean 'head'.*head, body, upsampler, tail"),
        ({"*": {"freeze": True}}, "everything is frozen"),
        ({"": {"freeze": True}}, "fits no parameter"),
        ({"hea": {"freeze": True}}, "fits no parameter that is left; expected the name of a module or parameter"),
        ({"body": {"rl": 1e-5}}, "Adam has no such setting. It has lr, betas"),
        ({"body": {"lr": "fast"}}, "a number above 0"),
        ({"body": {}}, "expected settings, such as"),
        ({"body": {"freeze": True, "lr": 1e-5}}, "without other settings"),
        (3, "trainer.parameters=3"),
    ],
)
def test_a_rule_that_would_do_nothing_is_refused(rules: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Learner(network(), ADAM, None, rules=rules)


def test_a_setting_that_an_optimizer_asks_its_groups_for_is_one_that_it_has() -> None:
    """timm's Muon leaves to AdamW what is no matrix of at least 4 x 4, and what a rule says."""
    muon = partial(timm.optim.Muon, lr=1e-3)
    learner = Learner(network(), muon, None, rules={"head": {"use_fallback": True}})
    train(learner)
    state = learner.state_dict()["optimizer"]
    matrices = {name for name, entry in state.items() if "momentum_buffer" in entry}
    convolutions = {name for name in state if name.endswith(".weight")}
    assert matrices == convolutions - {"head.weight", "tail.weight"} and "exp_avg" in state["head.weight"]
    with pytest.raises(RequestError, match=r"use_fallbak: .*Muon has no such setting"):
        Learner(network(), muon, None, rules={"head": {"use_fallbak": True}})
