"""The config as a whole: its schema and its check."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from sr_runner.config.identity import flatten
from sr_runner.config.settings import CheckpointSettings, RunSettings, SweepSettings, TrainerSettings
from sr_runner.errors import RequestError
from sr_runner.masking import masked


@dataclass(kw_only=True)
class Schema(RunSettings):
    """What a config may hold. Groups whose keys are those of a class (`_target_`) are checked against that class."""

    model: Any = MISSING
    objective: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    data: Any = MISSING
    tracker: Any = MISSING
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    sweep: SweepSettings = field(default_factory=SweepSettings)


def register_schema() -> None:
    ConfigStore.instance().store(name="schema", node=Schema)


def check(config: DictConfig) -> None:
    """Raises `RequestError`, or an error of OmegaConf's, for values that no part needs to be built for to be seen as
    wrong."""
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    # What an interpolation gives has not been held against the schema, nor has a key that `+` adds.
    typed = OmegaConf.merge(OmegaConf.structured(Schema), plain)
    OmegaConf.to_container(typed, throw_on_missing=True)
    untyped = OmegaConf.create(OmegaConf.to_container(config.copy(), resolve=False))
    given = flatten(OmegaConf.to_container(untyped, resolve=True))
    for key, value in flatten(plain).items():
        _check_value(key, value)
        # OmegaConf takes any whole number for a boolean, and the words of YAML 1.1: `off`, `no`, `n`.
        if isinstance(value, bool) and str(given.get(key, value)).lower() not in ("true", "false"):
            raise RequestError(f"{key}={given[key]}: expected true or false")
    _check_ranges(plain)
    config = typed  # type: ignore[assignment]
    RunSettings(scale=config.scale, seed=config.seed, outputs=config.outputs)
    own = OmegaConf.select(config, "data.scale")
    if own is not None and own != config.scale:
        raise RequestError(f"data.scale={own}: expected {config.scale}, as scale={config.scale}; set scale instead")
    settings(config, "trainer", TrainerSettings)
    settings(config, "checkpoint", CheckpointSettings)
    settings(config, "sweep", SweepSettings)


_ABOVE_0, _BELOW_1, _STEPS = math.ulp(0.0), math.nextafter(1.0, 0.0), 2**31
_RATE = (_ABOVE_0, 1000, "a number above 0, such as 1e-4, and at most 1000")
_SHARE = (0, _BELOW_1, "a number from 0 up to, but not including, 1")
_DIVISOR = (_ABOVE_0, 1e9, "a number above 0 and at most 1e9")
_OPTIMIZER = {
    "lr": _RATE,
    "weight_decay": (0, 100, "a number from 0 to 100"),
    "eps": (_ABOVE_0, 1, "a number above 0, such as 1e-8, and at most 1"),
    "betas": _SHARE,
    "momentum": _SHARE,
    "momentum_decay": _SHARE,
    "alpha": _SHARE,
}
_ANY = (0, 0, "")
_RANGES: dict[str, dict[str, tuple[float, float, str]]] = {
    **{f"torch.optim.{name}": _OPTIMIZER for name in ("Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSprop", "SGD")},
    "torch.optim.lr_scheduler.ConstantLR": {
        "factor": (_ABOVE_0, 1, "a number above 0 and at most 1"),
        "total_iters": (0, _STEPS, f"0 to {_STEPS} steps"),
    },
    "torch.optim.lr_scheduler.OneCycleLR": {
        "max_lr": _RATE,
        "pct_start": (0, 1, "a number from 0 to 1"),
        "div_factor": _DIVISOR,
        "final_div_factor": _DIVISOR,
    },
    "torch.optim.lr_scheduler.MultiStepLR": {
        "milestones": (1, _STEPS, f"steps, each from 1 to {_STEPS}"),
        "gamma": (_ABOVE_0, 10, "a number above 0 and at most 10"),
    },
}
"""Per class and argument: least, most, and the words for it. These classes are torch's, which check less or do not
name the key; a class of one's own decides about its arguments itself. Of a list each number counts."""


def _check_ranges(tree: Any, prefix: str = "") -> None:
    """Of every part in `tree` that `_RANGES` knows, its arguments."""
    ranges = _RANGES.get(str(tree.get("_target_")), {}) if isinstance(tree, dict) else {}
    for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        key = f"{prefix}{name}"
        least, most, words = ranges.get(str(name), _ANY)
        for number in value if isinstance(value, list) else [value]:
            is_number = isinstance(number, Real) and not isinstance(number, bool)
            if words and number is not None and not (is_number and least <= number <= most):
                raise RequestError(f"{key}={number}: expected {words}")
        if isinstance(value, dict | list):
            _check_ranges(value, f"{key}.")


def _check_value(key: str, value: Any) -> None:
    for inner in value if isinstance(value, list) else ():
        _check_value(key, inner)
    if isinstance(value, dict):  # in a list
        for name, inner in flatten(value).items():
            _check_value(f"{key}.{name}", inner)
    if isinstance(value, str) and re.search(r"[\x00-\x1f\x7f]", value):
        raise RequestError(f"{key}={value}: expected text without line ends and control characters")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise RequestError(f"{key}={value}: expected a number below 2^63")
    if isinstance(value, float) and not abs(value) < 2.0**127:
        raise RequestError(f"{key}={value}: expected a finite number below 2^127")


def settings(config: DictConfig, group: str, kind: type[Any]) -> Any:
    """`config.<group>` as its plain dataclass. Raises `RequestError` for a value out of range."""
    values = OmegaConf.to_container(config[group], resolve=True)
    assert isinstance(values, dict)
    return kind(**{str(key): value for key, value in values.items()})


def as_yaml(config: DictConfig) -> str:
    """The resolved config without secrets, for checkpoints and people."""
    return OmegaConf.to_yaml(OmegaConf.create(masked(OmegaConf.to_container(config, resolve=True))))
