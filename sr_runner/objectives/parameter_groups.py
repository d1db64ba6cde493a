"""Some parameters at a rate of their own, or not trained at all: `trainer.parameters`."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sr_runner.errors import RequestError, nearest

Rules = Mapping[str, Mapping[str, Any]]
"""Pattern -> settings: `{"head|tail": {"lr": 1e-5}, "*.bias": {"weight_decay": 0}, "body": {"freeze": True}}`."""

FREEZE = "freeze"

log = logging.getLogger(__name__)


def parameter_groups(network: nn.Module, rules: Rules) -> list[dict[str, Any]]:
    """The groups to give to an optimizer: first what no rule is about, then a group per rule that sets something.

    A pattern is the name of a parameter (`tail.0.bias`) or of a module around it (`tail`), with the wildcards of a
    shell (`*.bias`); `|` stands between several. The first that fits counts. Its settings are those of the optimizer
    (`lr`, `weight_decay`, ...), or `freeze`, which takes the gradient away.

    Raises:
        RequestError: a rule is not of that form, fits no parameter, or everything is frozen.
    """
    if not isinstance(rules, Mapping):
        raise RequestError(
            f"trainer.parameters={rules}: expected patterns with settings, such as {{body: {{freeze: true}}}}"
        )
    for pattern, settings in rules.items():
        _check(pattern, settings)
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    rest: dict[str, Any] = {"params": []}
    groups = {pattern: {"params": [], **settings} for pattern, settings in rules.items() if not _freezes(settings)}
    used = set()
    for name, parameter in trained.items():
        fitting = next((pattern for pattern in rules if _fits(pattern, name)), None)
        if fitting is None:
            rest["params"].append(parameter)
            continue
        used.add(fitting)
        if _freezes(rules[fitting]):
            parameter.requires_grad_(False)
            log.debug("%s: frozen", name)
        else:
            groups[fitting]["params"].append(parameter)
            log.debug("%s: %s", name, rules[fitting])
    for pattern in rules:
        if pattern not in used:
            parts = {part for name in trained for part in (name, name.split(".")[0])}
            raise RequestError(
                f"trainer.parameters={{{pattern}: ...}}: this fits no parameter that is left; expected the name of a "
                f"module or parameter, or a pattern such as *.bias.{nearest(pattern, parts)}"
                f" Names begin with {', '.join(dict.fromkeys(name.split('.')[0] for name in trained))}"
            )
    result = [group for group in (rest, *groups.values()) if group["params"]]
    if not result:
        raise RequestError("trainer.parameters: everything is frozen, so there is nothing to train")
    return result


def check_settings(optimizer: Optimizer, rules: Rules, read: Collection[str]) -> None:
    """Raises `RequestError` for a setting that `optimizer` does not have, nor `read` by other means; it would take it
    and do nothing with it."""
    for pattern, settings in rules.items():
        for key in settings:
            if key not in (FREEZE, *optimizer.defaults, *read):
                known = [FREEZE, *optimizer.defaults]
                raise RequestError(
                    f"trainer.parameters={{{pattern}: {{{key}: ...}}}}: {type(optimizer).__name__} has no such setting."
                    f"{nearest(key, known)} It has {', '.join(optimizer.defaults)}"
                )


def with_own_peaks(
    scheduler: Callable[..., Any], groups: list[dict[str, Any]], optimizer: Optimizer
) -> Callable[..., Any]:
    """`scheduler`, where it sets every group to one `max_lr`, with that of each group in proportion to its rate."""
    keywords = scheduler.keywords if isinstance(scheduler, functools.partial) else {}
    base, peak = optimizer.defaults.get("lr"), keywords.get("max_lr")
    if not any("lr" in group for group in groups) or not isinstance(peak, int | float) or not base:
        return scheduler
    return functools.partial(scheduler, max_lr=[peak * group.get("lr", base) / base for group in groups])


def _freezes(settings: Mapping[str, Any]) -> bool:
    return bool(settings.get(FREEZE, False))


def _fits(pattern: str, name: str) -> bool:
    return any(fnmatchcase(name, each) or fnmatchcase(name, f"{each}.*") for each in pattern.split("|"))


def _check(pattern: str, settings: Any) -> None:
    if not isinstance(settings, Mapping) or not settings:
        raise RequestError(
            f"trainer.parameters={{{pattern}: {settings}}}: expected settings, such as {{lr: 1e-5}} or {{freeze: true}}"
        )
    frozen = settings.get(FREEZE, False)
    if not isinstance(frozen, bool) or (frozen and len(settings) > 1) or (FREEZE in settings and not frozen):
        raise RequestError(
            f"trainer.parameters={{{pattern}: {dict(settings)}}}: expected freeze: true without other settings"
        )
    rate = settings.get("lr", 1.0)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < float("inf"):
        raise RequestError(f"trainer.parameters={{{pattern}: {{lr: {rate}}}}}: expected a number above 0, such as 1e-5")
