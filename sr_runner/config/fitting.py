"""What the classes that are named in place of an option's own take of a config."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sr_runner.config import types
from sr_runner.config.identity import flatten
from sr_runner.config.options import as_written
from sr_runner.config.overrides import parse
from sr_runner.config.settings import TermSettings
from sr_runner.config.targets import locate, signature
from sr_runner.errors import RequestError

_GROUPS = ("model", "objective", "optimizer", "scheduler", "data", "data/degradation", "tracker", "checkpoint")
_OF_A_TERM = {each.name for each in dataclasses.fields(TermSettings)}


def located(node: DictConfig, key: str) -> Callable[..., Any]:
    """What `node._target_` names. Raises `RequestError` where that is nothing that makes a part."""
    name = node.get("_target_") if isinstance(node, DictConfig) else None
    if not name:
        raise RequestError(f"{key}._target_ is not set: expected {key}._target_=package.module.Class")
    found = locate(f"{key}._target_", str(name))
    if not callable(found) or (inspect.isbuiltin(found) and not node.get("_partial_")):
        raise RequestError(f"{key}._target_={name}: expected a class, or a function that makes a part")
    return found


def fitted(config: DictConfig, overrides: Sequence[str], *, resolve: bool = True) -> DictConfig:
    """`config` as the classes that are named in place of an option's own can take it.

    `model._target_=mine.Net` leaves the keys of the option file, which was written for another class. Unless they were
    given by hand, those that the new class does not take, or takes as something else, are dropped, and those for which
    it has a default of its own get that default; only what refers to the run (`scale: ${scale}`) stays as it is. The
    same at every `_target_`. `resolve`: interpolations as well, as others may refer to what is dropped.
    """
    given = {k for each in parse(overrides) if not each.is_delete() for k in flatten(each.value(), each.key_or_group)}
    written = {k: v for group in _GROUPS for k, v in flatten(as_written(group), group.replace("/", ".")).items()}
    there = flatten(OmegaConf.to_container(config, resolve=False))
    targets = [key for key in {*given, *there} if key.endswith("._target_") and not key.startswith("hydra.")]
    config, unfit = copy.deepcopy(config), []
    OmegaConf.set_struct(config, False)
    for key in (each for each in targets if (there.get(each) != written[each] if each in written else each in given)):
        part = key.removesuffix("._target_")
        node = OmegaConf.select(config, part)
        hints, takes_any = signature(located(node, part))
        for name in [each for each in map(str, node) if each[0] != "_"]:
            full = f"{part}.{name}"
            is_setting = re.fullmatch(r"objective\.losses\.[^.]+", part) and name in _OF_A_TERM
            if is_setting or any(f"{each}.".startswith(f"{full}.") for each in given):
                continue
            hint, default = hints.get(name, (Any, inspect.Parameter.empty))
            is_taken = types.fits(node[name], hint) if name in hints else takes_any
            # What the option says for its own class; what refers to the run holds for any.
            is_of_option = full in there and there[full] == written.get(full) and "${" not in str(there[full])
            has_own = is_of_option and default is not inspect.Parameter.empty
            if is_taken and has_own and types.is_plain(default):
                node[name] = default
            elif has_own or not is_taken:
                unfit.append((node, name))
    if resolve:  # a part that is built has no config around it
        OmegaConf.resolve(config)
    for node, name in unfit:
        del node[name]
    return config
