"""Which optimizers and schedules of PyTorch, schedulefree, pytorch-optimizer and timm train here, and resume exactly.

    python tests/tools/optimizers.py

prints the tables of docs/optimizers.md. Each optimizer, with its own defaults, trains SRResNet with one block for 24
steps, and again with a checkpoint's bytes between steps 13 and 14, in either memory format; each schedule does so with
SGD. Exit status 1 if the weights of any differ.
"""

from __future__ import annotations

import copy
import inspect
import logging
import pkgutil
import random
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from typing import Any

import numpy as np
import pytorch_optimizer
import schedulefree
import timm.optim
import torch
from torch import nn

from sr_runner.checkpoint import codec, tensors
from sr_runner.errors import RequestError
from sr_runner.models import SRResNet
from sr_runner.objectives import Learner, PixelObjective

PACKAGES = {
    "torch.optim": torch.optim,
    "schedulefree": schedulefree,
    "pytorch_optimizer": pytorch_optimizer,
    "timm.optim": timm.optim,
}
ARGUMENTS = {"lr": 1e-3, "num_iterations": 1000, "num_data": 1000}
"""For those that have no default for one of these."""
MATRICES = {"head.weight|body.*.conv*.weight": {"use_muon": True}, "*": {"use_muon": False}}
"""Rules for those that are told which parameters are matrices."""
SCHEDULES: dict[str, dict[str, Any]] = {
    "torch.optim.lr_scheduler.ConstantLR": {},
    "torch.optim.lr_scheduler.LinearLR": {"total_iters": 20},
    "torch.optim.lr_scheduler.ExponentialLR": {"gamma": 0.9},
    "torch.optim.lr_scheduler.StepLR": {"step_size": 5},
    "torch.optim.lr_scheduler.MultiStepLR": {"milestones": [5, 18]},
    "torch.optim.lr_scheduler.PolynomialLR": {"total_iters": 20},
    "torch.optim.lr_scheduler.CosineAnnealingLR": {"T_max": 20},
    "torch.optim.lr_scheduler.CosineAnnealingWarmRestarts": {"T_0": 7},
    "torch.optim.lr_scheduler.CyclicLR": {"base_lr": 1e-3, "max_lr": 1e-2, "step_size_up": 5},
    "torch.optim.lr_scheduler.OneCycleLR": {"max_lr": 1e-2, "total_steps": 24},
    "torch.optim.lr_scheduler.LambdaLR": {"lr_lambda": lambda step: 0.9**step},
    "torch.optim.lr_scheduler.MultiplicativeLR": {"lr_lambda": lambda step: 0.9},
    "torch.optim.swa_utils.SWALR": {"swa_lr": 1e-3},
    "torch.optim.lr_scheduler.ReduceLROnPlateau": {},
    "pytorch_optimizer.lr_scheduler.CosineAnnealingWarmupRestarts": {"first_cycle_steps": 9, "max_lr": 1e-2},
    "pytorch_optimizer.lr_scheduler.CosineScheduler": {"t_max": 20, "max_lr": 1e-2, "warmup_steps": 4},
    "pytorch_optimizer.lr_scheduler.LinearScheduler": {"t_max": 20, "max_lr": 1e-2, "warmup_steps": 4},
    "pytorch_optimizer.lr_scheduler.PolyScheduler": {"t_max": 20, "max_lr": 1e-2, "warmup_steps": 4},
    "pytorch_optimizer.lr_scheduler.REXScheduler": {"total_steps": 24, "max_lr": 1e-2},
    "pytorch_optimizer.lr_scheduler.get_chebyshev_schedule": {"num_epochs": 24},
    "pytorch_optimizer.lr_scheduler.get_wsd_schedule": {
        "num_warmup_steps": 4, "num_stable_steps": 12, "num_decay_steps": 8,
    },
    "timm.scheduler.CosineLRScheduler": {"t_initial": 20},
    "timm.scheduler.PlateauLRScheduler": {},
}  # fmt: skip
"""Of each kind: `_target_` and arguments."""
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
EXACT, DIFFERS = "exact", "differs"


def optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    """By `_target_`."""
    found: dict[str, type[torch.optim.Optimizer]] = {}
    for package, module in PACKAGES.items():
        for name, value in sorted(vars(module).items()):
            is_one = isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
            if is_one and not name.startswith(("Optimizer", "Base")) and value not in found.values():
                found[f"{package}.{name}"] = value
    return found


def schedule(target: str) -> Callable[..., Any]:
    """That of `SCHEDULES`, as a config makes it."""
    return partial(pkgutil.resolve_name(target), **SCHEDULES[target])


def verdict(
    optimizer: type[torch.optim.Optimizer], memory_format: torch.memory_format,
    scheduler: Callable[..., Any] | None = None,
) -> str:  # fmt: skip
    """`EXACT`, `DIFFERS`, or why a run with them is refused."""
    parameters = list(inspect.signature(optimizer).parameters.values())
    needed = {each.name for each in parameters if not isinstance(each.default, int | float | None)}
    factory = partial(optimizer, **{name: value for name, value in ARGUMENTS.items() if name in needed})
    rules = MATRICES if optimizer.__module__.startswith("pytorch_optimizer.optimizer.muon") else None

    def learner() -> Learner:
        torch.manual_seed(0)
        network = SRResNet(scale=2, num_filters=8, num_res_blocks=1).to(memory_format=memory_format)  # type: ignore[call-overload]
        return Learner(network.train(), factory, scheduler, rules=rules)

    try:
        whole, resumed = learner(), learner()
    except RequestError as refusal:
        return str(refusal).removeprefix("optimizer: ").removeprefix("scheduler: ")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    train(whole, 13)
    state = restored({"learner": whole.state_dict(), "weights": whole.network.state_dict()})
    for each in (whole, resumed):
        if each is resumed:
            each.network.load_state_dict(state["weights"])
            each.load_state_dict(state["learner"])
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        train(each, 11)
    pairs = zip(whole.network.state_dict().values(), resumed.network.state_dict().values(), strict=True)
    is_exact = all(torch.equal(mine, theirs) for mine, theirs in pairs)
    is_trained = not torch.equal(
        whole.network.state_dict()["head.weight"], learner().network.state_dict()["head.weight"]
    )
    return EXACT if is_exact and is_trained else DIFFERS


def train(learner: Learner, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    lr, hr = torch.rand(2, 3, 8, 8, generator=generator), torch.rand(2, 3, 16, 16, generator=generator)
    for _ in range(steps):
        PixelObjective({"pixel": nn.L1Loss()}).train_step({"model": learner}, [(lr, hr)], measure=False)


def restored(state: dict[str, Any]) -> dict[str, Any]:
    """`state`, out of the bytes of a checkpoint's files."""
    flat, rest = codec.flatten(copy.deepcopy(state))
    found, _ = tensors.parse(b"".join(tensors.TensorFile.of(flat).chunks()))
    return codec.unflatten(rest, found)


def tables() -> tuple[str, bool]:
    """The tables, and whether nothing differs."""
    exact: dict[str, list[str]] = defaultdict(list)
    refused: dict[str, str] = {}
    for target, optimizer in optimizers().items():
        package, _, name = target.rpartition(".")
        said = {format_: verdict(optimizer, value) for format_, value in FORMATS.items()}
        print(target, *said.values(), file=sys.stderr, flush=True)
        if said["contiguous"] == EXACT:
            exact[package].append(name)
        if {*said.values()} != {EXACT}:
            reason, *others = dict.fromkeys(each for each in said.values() if each != EXACT)
            where = "" if said["contiguous"] != EXACT else "only with `trainer.channels_last=false`: "
            refused[target] = where + " ".join("; ".join([reason, *others]).split())
    lines = ["| package | resumes exactly |", "|---|---|"]
    lines += [f"| {package} | {', '.join(names)} |" for package, names in exact.items()]
    lines += ["", "| refused | why |", "|---|---|"]
    lines += [f"| {target} | {reason} |" for target, reason in refused.items()]
    said_of = {each: verdict(torch.optim.SGD, FORMATS["channels_last"], schedule(each)) for each in SCHEDULES}
    lines += ["", "| schedule | resume |", "|---|---|"]
    lines += [f"| {target} | {said if said == EXACT else f'refused: {said}'} |" for target, said in said_of.items()]
    refused |= said_of
    return "\n".join(lines), DIFFERS not in " ".join(refused.values())


if __name__ == "__main__":
    logging.disable()
    with redirect_stdout(sys.stderr):  # some optimizers print
        text, is_all_exact = tables()
    print(text)
    sys.exit(not is_all_exact)
