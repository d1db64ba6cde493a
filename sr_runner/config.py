"""The config as a whole: its schema, its check, and the identity that follows from it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from sr_runner.errors import RequestError, nearest
from sr_runner.settings import SCALES, CheckpointSettings, TrainerSettings


@dataclass
class Schema:
    """What a config may hold. Groups whose keys are those of a class (`_target_`) are checked against that class."""

    scale: int = 2
    seed: int = 0
    outputs: str = "outputs"
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
    """Raises `RequestError` for values that no part needs to be built for to be seen as wrong."""
    _no_unknown_keys(config, "", Schema)
    if config.scale not in SCALES:
        raise RequestError(f"scale={config.scale}: one of {', '.join(map(str, SCALES))} would do")
    if not 0 <= config.seed < 2**63:
        raise RequestError(f"seed={config.seed}: a whole number from 0 to 2^63 - 1 would do")
    settings(config, "trainer", TrainerSettings).check()
    settings(config, "checkpoint", CheckpointSettings).check()
    rate = OmegaConf.select(config, "optimizer.lr")
    is_number = isinstance(rate, Real) and not isinstance(rate, bool)
    if rate is not None and not (is_number and 0 < float(rate) < float("inf")):
        raise RequestError(f"optimizer.lr={rate}: a number above 0 would do, such as 1e-4")


def settings(config: DictConfig, group: str, kind: type[Any]) -> Any:
    """`config.<group>` as its plain dataclass."""
    values = OmegaConf.to_container(config[group], resolve=True)
    assert isinstance(values, dict)
    _no_unknown_keys(values, f"{group}.", kind)
    return kind(**{str(key): value for key, value in values.items()})


def _no_unknown_keys(values: Mapping[Any, Any] | DictConfig, prefix: str, kind: type[Any]) -> None:
    """`+trainer.stps=5` gets past Hydra, since `+` means that a new key is wanted. Here none is."""
    known = [each.name for each in fields(kind)]
    for key in map(str, values):
        if key not in known:
            raise RequestError(
                f"{prefix}{key}={values[key]}: there is no key {prefix}{key}.{nearest(str(key), known)} "
                f"Keys{f' of {prefix[:-1]}' if prefix else ''}: {', '.join(known)}"
            )


# -- identity ----------------------------------------------------------------------------------------------------------

# Keys of `data` that say where images are and how they are read; which images they are is in the fingerprint.
_NOT_OF_THE_DATA = re.compile(r"_target_|workers|cache.*|train.*|valid.*|preview.*|root|folder|url|base_url|download.*")
_OF_THE_TRAINER = ("precision", "accumulate", "grad_clip", "parameters", "ema_decay", "on_nan")


def identity_facts(
    config: DictConfig, fingerprint: str, init_from: str | None = None, files: Mapping[str, str | None] | None = None
) -> dict[str, Any]:
    """Everything that determines a run's weights, flat: `{"optimizer.lr": 0.0001, ...}`.

    `fingerprint` stands for the content of the training images, wherever they lie, `init_from` for that of the
    pre-trained weights, and `files` for that of other files, by the key that names them (`objective.vgg_weights`).
    `trainer.steps` is not in it (a finished run can be extended), unless a schedule is stretched over it and so says
    it itself.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    facts: dict[str, Any] = {"scale": plain["scale"], "seed": plain["seed"], "data": fingerprint}
    for group in ("model", "objective", "optimizer", "scheduler"):
        facts |= flatten(plain[group], group)
    facts |= {f"data.{k}": v for k, v in flatten(plain["data"]).items() if not _NOT_OF_THE_DATA.match(k)}
    facts |= {f"trainer.{key}": plain["trainer"][key] for key in _OF_THE_TRAINER}
    if init_from is not None:
        facts |= {"checkpoint.init_from": init_from, "checkpoint.init_rule": plain["checkpoint"]["init_rule"]}
    facts |= files or {}
    facts.pop("data.scale", None), facts.pop("data.seed", None)
    return facts


def identity(model: str, scale: int, facts: Mapping[str, Any]) -> str:
    """`<model>-x<scale>-<hash>`, such as `edsr-x4-3f9a12c40b1e`."""
    text = json.dumps(dict(sorted(facts.items())), separators=(",", ":"))
    name = re.sub(r"[^A-Za-z0-9_]+", "_", model).strip("_") or "model"
    return f"{name}-x{scale}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


# -- for people --------------------------------------------------------------------------------------------------------

_SECRET_NAME = r"(?:passw|secret|token|credential|api_?key|access_?key|private_?key|\bauth)"
_SECRET_KEY = re.compile(rf"(?i){_SECRET_NAME}")
_SECRET_INSIDE = re.compile(
    rf"""(?i)(?P<key>[\w.-]*{_SECRET_NAME}[\w.-]*['"]?\s*[:=]\s*)(?:'[^']*'|"[^"]*"|(?![{{\[\s])[^,}}\]&\s]+)"""
)
"""In the text of a mapping (`{secret: 123}`) or of a command line."""
_SECRET_IN_URL = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*://)[^/\s@]+@")
_SECRET_IN_QUERY = re.compile(r"(?i)(?P<key>[?&][\w.-]*(?:signature|token|secret|passw|key|credential)[\w.-]*=)[^&\s]+")
_MASKED = "*****"


def masked(value: Any, key: str = "") -> Any:
    """`value` with every secret in it replaced: what goes into logs, checkpoints and the tracker."""
    if isinstance(value, Mapping):
        return {k: masked(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [masked(v, key) for v in value]
    if _SECRET_KEY.search(key) and value not in (None, ""):
        return _MASKED
    if isinstance(value, str):
        value = _SECRET_IN_URL.sub(rf"\g<scheme>{_MASKED}@", value)
        return _SECRET_IN_QUERY.sub(rf"\g<key>{_MASKED}", value)
    return value


def masked_override(override: str) -> str:
    """One `key=value` of the command line without secrets."""
    key, sign, value = override.partition("=")
    return f"{key}{sign}{masked_text(str(masked(value, key)))}" if sign else override


def masked_text(text: str) -> str:
    """Any text about a config without secrets."""
    return _SECRET_INSIDE.sub(rf"\g<key>{_MASKED}", str(masked(text)))


def as_yaml(config: DictConfig) -> str:
    """The resolved config without secrets, for checkpoints and people."""
    return OmegaConf.to_yaml(OmegaConf.create(masked(OmegaConf.to_container(config, resolve=True))))


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`. Lists stay values."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
