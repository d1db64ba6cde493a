"""Weights into a network that is already there: all of them, those that fit, or all but the upsampler."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sr_runner.errors import RequestError, check_choice
from sr_runner.models import Network, SpandrelNetwork
from sr_runner.streams import DETAIL
from sr_runner.weights import shapes
from sr_runner.weights.layouts import rescale_range, unwrapped
from sr_runner.weights.reading import LoadedWeights

Rule = Literal["strict", "matching", "body"]


class MisfitError(RequestError):
    """Weights that do not fit by the rule that was asked for; by `rule` a part of them does."""

    def __init__(self, message: str, rule: Rule):
        super().__init__(message)
        self.rule = rule


@dataclass(frozen=True)
class Report:
    """What became of every tensor: of the file's, `loaded` or `skipped`; of the network's, `loaded` or `new`."""

    source: str
    loaded: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of tensors in the file that were not used."""
    new: list[str] = field(default_factory=list)
    """Tensors of the network that keep their initialisation."""
    notes: list[str] = field(default_factory=list)
    """What else was done to the weights."""

    def __str__(self) -> str:
        return f"{self.source}: {len(self.loaded)} tensors loaded, {len(self.skipped)} skipped, {len(self.new)} new"

    def lines(self) -> Iterator[str]:
        """What a person has to know: that, the notes, and a line for each tensor that was not loaded."""
        yield str(self)
        yield from (f"  note: {note}" for note in self.notes)
        yield from (f"  skipped: {name} ({reason})" for name, reason in self.skipped)
        yield from (f"  new: {name}" for name in self.new)

    def log(self, to: logging.Logger) -> None:
        """`lines`, and for a run's file a line for each tensor that was loaded."""
        for line in self.lines():
            to.info("%s", line)
        for name in self.loaded:
            to.info("  loaded: %s", name, extra=DETAIL)


def apply(network: nn.Module, weights: LoadedWeights, *, rule: Rule = "strict") -> Report:
    """Copy `weights` into `network` in place; nothing is changed where it raises.

    Rules: `strict` wants the same network, tensor for tensor. `matching` takes every tensor of the same name and
    shape, and leaves the rest new. `body` is the transfer from one scale to another of the EDSR paper: all that does
    not belong to the scale (the class's `UPSAMPLER` names) must fit and is taken; the upsampler is left new.

    EDSR weights trained under another `rgb_range` are moved to the network's, which is exact.

    Raises:
        RequestError: the weights do not fit; it names the hyperparameters that differ and what to set. It is a
            `MisfitError` where another rule takes a part of them.
    """
    check_choice("checkpoint.init_rule", rule, get_args(Rule))
    target = unwrap(network)
    name = name_of(target)
    upsampler = _upsampler_names(target) if rule == "body" else ()
    if rule != "matching":
        _check_hyperparameters(target, name, weights, ignore=("scale",) if rule == "body" else ())
    state, notes = _in_range_of(target, name, weights)
    own = target.state_dict()  # references: copying into these changes the network
    if weights.network is None:
        state = _in_names_of(own, getattr(target, "PREFIX", ""), state)
    report = Report(weights.source, notes=notes + _unstated(target, name, weights))
    for key, tensor in state.items():
        if reason := _misfit(key, tensor, own, upsampler):
            report.skipped.append((key, reason))
        else:
            report.loaded.append(key)
    loaded = set(report.loaded)
    report.new.extend(key for key in own if key not in loaded and not shapes.OPTIONAL.fullmatch(key))
    _check_outcome(report, rule, upsampler, weights)
    with torch.no_grad():
        for key in report.loaded:
            own[key].copy_(state[key])
    return report


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside torch.compile's, DataParallel's and DistributedDataParallel's wrappers."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        inner = network.module if isinstance(network, wrappers) else getattr(network, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return network
        network = inner


def name_of(network: nn.Module) -> str | None:
    """Its name in `shapes.CLASSES`; None for anyone else's network, subclasses of sr-run's included."""
    return next((name for name, cls in shapes.CLASSES.items() if type(network) is cls), None)


def hyperparameters_of(network: nn.Module) -> dict[str, Any]:
    """Those of one of sr-run's own networks, or of spandrel's; {} for anyone else's."""
    return network.hyperparameters() if isinstance(network, Network | SpandrelNetwork) else {}


def _upsampler_names(network: nn.Module) -> tuple[str, ...]:
    names = getattr(network, "UPSAMPLER", None)
    if not isinstance(names, tuple):
        raise RequestError(
            f"checkpoint.init_rule=body: {type(network).__name__} does not state which tensors belong to one scale"
            " (a class attribute UPSAMPLER with the beginnings of their names);"
            " checkpoint.init_rule=matching takes all that fit"
        )
    return names


def _check_hyperparameters(
    network: nn.Module, name: str | None, weights: LoadedWeights, ignore: tuple[str, ...]
) -> None:
    if name is None or weights.network is None:
        return
    if name != weights.network:
        keys = [f"{_config_key(weights.network, key)}={value:g}" for key, value in weights.hyperparameters.items()]
        advice = f"set {' '.join([f'model={weights.network}', *keys])}"
        if weights.network == "discriminator":
            advice = "objective.discriminator_weights takes it"
        raise RequestError(f"{weights} does not fit {name}: {advice}")
    mine = hyperparameters_of(network)
    differing = {
        key: value
        for key, value in weights.arguments.items()
        if key != "rgb_range" and key not in ignore and key in mine and mine[key] != value
    }
    if differing:
        theirs = ", ".join(f"{key}={value:g} (not {mine[key]:g})" for key, value in differing.items())
        to_set = " ".join(f"{_config_key(name, key)}={value:g}" for key, value in differing.items())
        other: Rule = "body" if set(differing) == {"scale"} else "matching"
        raise MisfitError(f"{weights.source} is {name} with {theirs}. Set {to_set}", other)


def _in_range_of(network: nn.Module, name: str | None, weights: LoadedWeights) -> tuple[dict[str, Tensor], list[str]]:
    if name != "edsr" or weights.network != "edsr":
        return weights.state, []
    new = hyperparameters_of(network)["rgb_range"]
    old = weights.arguments.get("rgb_range", new)
    if old == new:
        return weights.state, []
    return rescale_range(weights.state, old, new), [f"biases moved from rgb_range {old:g} to {new:g}"]


def _unstated(network: nn.Module, name: str | None, weights: LoadedWeights) -> list[str]:
    mine = hyperparameters_of(network) if name is not None and name == weights.network else {}
    return [f"the file does not state {key}: {_config_key(name or '', key)}={mine[key]:g} is used"
            for key in weights.unknown if key in mine]  # fmt: skip


def _in_names_of(own: dict[str, Tensor], prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a state that sr-run does not know, the form of its names that the network has most of: as they are, without
    wrappers', and as those of the network inside a wrapper of sr-run's (`PREFIX`)."""
    forms = list(unwrapped(state, "model."))
    forms += [{prefix + key: tensor for key, tensor in form.items()} for form in forms] if prefix else []
    return max(forms, key=lambda form: len(form.keys() & own.keys()))


def _misfit(key: str, tensor: Tensor, own: dict[str, Tensor], upsampler: tuple[str, ...]) -> str:
    if key not in own:
        return "the network has no such tensor"
    if key.startswith(upsampler):
        return "belongs to the upsampler"
    if own[key].shape != tensor.shape:
        return f"{shapes.shape_of(tensor)} in the file, {shapes.shape_of(own[key])} in the network"
    if own[key].is_floating_point() != tensor.is_floating_point():
        return f"{tensor.dtype} in the file, {own[key].dtype} in the network"
    return ""


def _check_outcome(report: Report, rule: Rule, upsampler: tuple[str, ...], weights: LoadedWeights) -> None:
    if not report.loaded:
        raise RequestError(f"{weights}: none of its {len(weights.state)} tensors fits the network by name and shape")
    if rule == "matching":
        return
    reasons = dict(report.skipped)
    reasons |= {key: "not in the file" for key in report.new if key not in reasons}
    if problems := [f"{key} ({reason})" for key, reason in reasons.items() if not key.startswith(upsampler)]:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise MisfitError(f"{weights} does not fit the network: {'; '.join(problems[:3])}{more}", "matching")


def _config_key(network: str, name: str) -> str:
    if network == "discriminator":
        return {"patch_size": "data.patch_size", "num_filters": "objective.discriminator.num_filters"}[name]
    return name if name == "scale" else f"model.{name}"
