"""The config as a whole: its schema and its check."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from sr_runner.config.identity import flatten
from sr_runner.config.settings import CheckpointSettings, RunSettings, TrainerSettings
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
        _check_numbers(key, value)
        # OmegaConf takes any whole number for a boolean, and the words of YAML 1.1: `off`, `no`, `n`.
        if isinstance(value, bool) and str(given.get(key, value)).lower() not in ("true", "false"):
            raise RequestError(f"{key}={given[key]}: expected true or false")
    config = typed  # type: ignore[assignment]
    RunSettings(scale=config.scale, seed=config.seed, outputs=config.outputs)
    own = OmegaConf.select(config, "data.scale")
    if own is not None and own != config.scale:
        raise RequestError(f"data.scale={own}: expected {config.scale}, as scale={config.scale}; set scale instead")
    settings(config, "trainer", TrainerSettings)
    settings(config, "checkpoint", CheckpointSettings)
    for key in ("optimizer.lr", "scheduler.max_lr"):
        rate = OmegaConf.select(config, key)
        is_number = isinstance(rate, Real) and not isinstance(rate, bool)
        if rate is not None and not (is_number and 0 < float(rate) < float("inf")):
            raise RequestError(f"{key}={rate}: expected a number above 0, such as 1e-4")


def _check_numbers(key: str, value: Any) -> None:
    for inner in value if isinstance(value, list) else ():
        _check_numbers(key, inner)
    if isinstance(value, dict):  # in a list
        for name, inner in flatten(value).items():
            _check_numbers(f"{key}.{name}", inner)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise RequestError(f"{key}={value}: expected a number below 2^63")
    if isinstance(value, float) and not math.isfinite(value):
        raise RequestError(f"{key}={value}: expected a finite number")


def settings(config: DictConfig, group: str, kind: type[Any]) -> Any:
    """`config.<group>` as its plain dataclass. Raises `RequestError` for a value out of range."""
    values = OmegaConf.to_container(config[group], resolve=True)
    assert isinstance(values, dict)
    return kind(**{str(key): value for key, value in values.items()})


def as_yaml(config: DictConfig) -> str:
    """The resolved config without secrets, for checkpoints and people."""
    return OmegaConf.to_yaml(OmegaConf.create(masked(OmegaConf.to_container(config, resolve=True))))
