"""One network with what trains it: optimizer, schedule, loss scaler."""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from sr_runner.errors import RequestError
from sr_runner.models.padding import take_any_size
from sr_runner.objectives import optimizer_state
from sr_runner.objectives.ema import tensors
from sr_runner.objectives.parameter_groups import Rules, check_settings, parameter_groups, with_own_peaks
from sr_runner.objectives.probe import probe

OptimizerFactory: TypeAlias = Callable[..., Optimizer]
SchedulerFactory: TypeAlias = Callable[[Optimizer], LRScheduler]
Precision = Literal["fp32", "bf16", "fp16"]

log = logging.getLogger(__name__)

_RATES = 1000  # places at which a schedule is looked at


class Learner:
    """Calls like its network, and updates it.

    `learner(lr)` runs the (compiled) network under autocast and returns its fp32 output; `backward(loss)` may be
    called several times; `step()` clips, updates, advances the schedule and clears the gradients.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        *,
        rules: Rules | None = None,
        precision: Precision = "fp32",
        grad_clip: float | None = None,
        skip_non_finite: bool = False,
        compile: bool = False,
        gradient_average: Callable[[nn.Module], Callable[[], None] | None] | None = None,
    ):
        """`network` is already on its device, and takes inputs of any size from now on. `optimizer` and `scheduler` are
        called with parameters and optimizer.

        `rules` freeze parameters or set a rate of their own, by the names they begin with: see `parameter_groups`.
        `grad_clip` is the largest gradient norm. With `skip_non_finite` an update whose gradients are not all finite is
        left out (the schedule goes on), at the price of waiting for the device at every step. fp16 scales the loss, so
        that small gradients do not vanish. `gradient_average(network)` gives what is called before every update, to
        make the gradients those of all processes of a run.
        """
        take_any_size(network)
        self.network = network
        rules = {} if rules is None else rules
        groups = parameter_groups(network, rules)
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = optimizer([dict(group) for group in groups] if rules else self.parameters)
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise RequestError(
                f"optimizer._target_ makes a {type(self.optimizer).__name__}: expected a torch.optim.Optimizer"
            )
        if not all("lr" in group for group in self.optimizer.param_groups):
            raise RequestError(
                f"optimizer: {type(self.optimizer).__name__} has no lr: expected one with a learning rate"
            )
        self._averaged: nn.Module | None = None  # the network with the weights of a schedule-free optimizer
        if callable(getattr(self.optimizer, "train", None)) and callable(getattr(self.optimizer, "eval", None)):
            self._averaged = copy.deepcopy(network).eval().requires_grad_(False)
            self.optimizer.train()  # type: ignore[attr-defined]
        if scheduler is not None:
            scheduler = with_own_peaks(scheduler, groups, self.optimizer)
        self.scheduler = scheduler(self.optimizer) if scheduler is not None else None
        if scheduler is not None and not all(
            hasattr(self.scheduler, name) for name in ("step", "state_dict", "load_state_dict")
        ):
            raise RequestError(
                f"scheduler._target_ makes a {type(self.scheduler).__name__}: expected a torch.optim.lr_scheduler"
            )
        if self.scheduler is not None:
            arguments = inspect.signature(self.scheduler.step).parameters.values()
            asked = [each.name for each in arguments if each.default is each.empty and "VAR" not in each.kind.name]
            if asked:
                raise RequestError(
                    f"scheduler: {type(self.scheduler).__name__}.step() asks for {', '.join(asked)}: expected a "
                    "schedule of nothing but the number of updates, such as those of torch.optim.lr_scheduler"
                )
        check_settings(self.optimizer, rules, probe(optimizer, scheduler, groups))
        self._last_lr: float | torch.Tensor | None = None
        self.grad_clip = grad_clip
        self.skip_non_finite = skip_non_finite
        self._gradient_average = gradient_average(network) if gradient_average is not None else None
        self._device, self.precision = next(network.parameters()).device.type, precision
        self.scaler = torch.amp.GradScaler(self._device) if precision == "fp16" else None
        self._forward = torch.compile(network) if compile else network

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The network's output in fp32, whatever it computes in: a loss in bf16 would lose its last digits."""
        with self.autocast():
            return self._forward(*inputs).float()  # type: ignore[no-any-return]

    @torch.no_grad()
    def evaluated(self) -> nn.Module:
        """The network whose weights are evaluated and exported: `network`, or under a schedule-free optimizer (one with
        `train` and `eval`) a copy that is brought up to date here, with the averaged weights.

        `network` keeps the weights that it trains with, bit for bit: how often somebody asks changes nothing.
        """
        if self._averaged is None:
            return self.network
        kept = [parameter.clone() for parameter in self.parameters]
        self.optimizer.eval()  # type: ignore[attr-defined]
        for mine, theirs in zip(tensors(self._averaged), tensors(self.network), strict=True):
            mine.copy_(theirs)
        self.optimizer.train()  # type: ignore[attr-defined]
        for parameter, value in zip(self.parameters, kept, strict=True):
            parameter.copy_(value)  # the way there and back has rounded
        return self._averaged

    @property
    def lr(self) -> float:
        """Of the next update."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def last_lr(self) -> float:
        """Of the last update; before the first, that of the next."""
        return self.lr if self._last_lr is None else float(self._last_lr)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that the network computes in, for what else a loss needs."""
        return autocast(self._device, self.precision)

    def backward(self, loss: torch.Tensor, *, own: bool = False, retain_graph: bool = False) -> None:
        """Add the gradients of `loss`: those of every network behind it, or with `own` only this one's."""
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward(inputs=self.parameters if own else None, retain_graph=retain_graph)  # type: ignore[no-untyped-call]

    def step(self, *, measure: bool = False) -> torch.Tensor | None:
        """Update the network once; the gradient's norm (before clipping) where it is clipped or measured."""
        if self._gradient_average is not None:  # still scaled: not finite in one process is so in all
            self._gradient_average()
        norm = None
        if self.grad_clip is not None or measure or self.skip_non_finite:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            if self.grad_clip is not None:
                nn.utils.clip_grads_with_norm_(self.parameters, self.grad_clip, norm)
        if self.scaler is not None:  # leaves out by itself what is not finite
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif norm is None or not self.skip_non_finite or bool(torch.isfinite(norm)):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        rate = self.optimizer.param_groups[0]["lr"]
        self._last_lr = rate.clone() if isinstance(rate, torch.Tensor) else rate  # the schedule fills a tensor anew
        if self.scheduler is not None:
            self.scheduler.step()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Optimizer (by parameter name), schedule and loss scaler; the network's weights are not in it."""
        return {
            **optimizer_state.pack(self.optimizer, dict(self.network.named_parameters())),
            "scheduler": dict(self.scheduler.state_dict()) if self.scheduler is not None else None,
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over everything that `state_dict` gave. Raises `KeyError` where the parameters have other names."""
        optimizer_state.unpack(self.optimizer, dict(self.network.named_parameters()), state)
        if self.scheduler is not None and state["scheduler"] is not None:
            self.scheduler.load_state_dict(dict(state["scheduler"]))
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(dict(state["scaler"]))

    def load_moments(self, state: Mapping[str, Any], step: int) -> None:
        """For a fork: the optimizer's moments, under this learner's own settings and its schedule at `step`."""
        if not optimizer_state.adopt(self.optimizer, dict(self.network.named_parameters()), state):
            log.warning(
                "the moments of another kind of optimizer are left: %s starts anew", type(self.optimizer).__name__
            )
        for _ in range(step if self.scheduler is not None else 0):
            self.optimizer._opt_called = True  # type: ignore[attr-defined]  # no update was skipped: do not warn
            self.scheduler.step()  # type: ignore[union-attr]

    def rates(
        self, steps: int, first: int = 1, saved: Mapping[str, Any] | None = None
    ) -> tuple[float, float, float] | None:
        """The learning rate (of the first group) at step `first`, the highest, and that at step `steps`, where the
        schedule can tell without being gone through; else None. `saved` (`state_dict`): of that schedule, not of its
        own."""
        if self.scheduler is None:
            return self.lr, self.lr, self.lr
        scheduler = copy.copy(self.scheduler)
        scheduler.optimizer = copy.copy(self.optimizer)
        groups = saved["groups"] if saved else self.optimizer.param_groups
        scheduler.optimizer.param_groups = [dict(group) for group in groups]
        if saved:
            scheduler.load_state_dict(dict(saved["scheduler"]))
        closed = getattr(scheduler, "_get_closed_form_lr", None)
        if closed is None and not isinstance(scheduler, LambdaLR | OneCycleLR):
            return None
        found = []
        places = (first - 1 + (max(steps - first, 0) * position) // _RATES for position in range(_RATES + 1))
        for scheduler.last_epoch in dict.fromkeys(places):  # a short run has fewer steps
            with warnings.catch_warnings(action="ignore"):
                found.append(float((closed or scheduler.get_lr)()[0]))
        return found[0], max(found), found[-1]


def autocast(device: str, precision: Precision) -> AbstractContextManager[Any]:
    """Within, networks on `device` (`cpu`, `cuda`) compute in `precision`."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device, dtype)
