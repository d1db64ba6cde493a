"""What determines a run's weights, and the name that follows from it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Protocol

from omegaconf import DictConfig, OmegaConf

from sr_runner.masking import digested

_OF_THE_TRAINER = ("precision", "accumulate", "grad_clip", "parameters", "ema_decay", "on_nan")


class Part(Protocol):
    """What a model, an objective or data may declare of their own keys. All are optional, since anyone's class is a
    part: without them every key of the group is in the identity, as the config has it."""

    not_in_identity: ClassVar[Collection[str]] = ()
    """The keys that cannot change the weights, such as `workers`."""

    not_in_identity_if: ClassVar[Mapping[str, object]] = {}
    """The keys that count only where they differ from this: they came later than the first runs."""

    @property
    def file_contents(self) -> Mapping[str, str | None]:
        """The keys that name files: a digest of what was read (None: nothing was), counts instead of the place."""
        return {}


def identity_facts(
    config: DictConfig, parts: Mapping[str, object], fingerprint: str, init_from: str | None = None
) -> dict[str, Any]:
    """Everything that determines a run's weights, flat: `{"optimizer.lr": 0.0001, ...}`.

    `parts` are the built ones by group, which may declare what `Part` has. `fingerprint` stands for the content of the
    training images, wherever they lie, and `init_from` for that of the pre-trained weights. `trainer.steps` is not in
    it (a finished run can be extended), unless a schedule is stretched over it and so says it itself.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    facts: dict[str, Any] = {"scale": plain["scale"], "seed": plain["seed"], "data": fingerprint}
    for group in ("model", "objective", "optimizer", "scheduler", "data"):
        left_out = {*getattr(parts.get(group), "not_in_identity", ())}
        unless: Mapping[str, object] = getattr(parts.get(group), "not_in_identity_if", {})
        left_out |= {key for key, value in unless.items() if key in (plain[group] or {}) and plain[group][key] == value}
        counted = plain[group] and {key: value for key, value in plain[group].items() if key not in left_out}
        files = getattr(parts.get(group), "file_contents", {})
        facts |= flatten(counted, group) | {f"{group}.{key}": digest for key, digest in files.items()}
    for key in ("scale", "seed"):
        if facts.get(f"data.{key}") == facts[key]:
            del facts[f"data.{key}"]  # near misses and differences name it once
    facts |= {f"trainer.{key}": plain["trainer"][key] for key in _OF_THE_TRAINER}
    if init_from is not None:
        facts |= {"checkpoint.init_from": init_from, "checkpoint.init_rule": plain["checkpoint"]["init_rule"]}
    return digested(facts)


def identity(model: str, scale: int, facts: Mapping[str, Any]) -> str:
    """`<model>-x<scale>-<hash>`, such as `edsr-x4-3f9a12c40b1e`."""
    text = json.dumps(dict(sorted(facts.items())), separators=(",", ":"))
    name = re.sub(r"[^A-Za-z0-9_]+", "_", model).strip("_") or "model"
    return f"{name}-x{scale}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`. Lists stay values."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
