"""What determines a run's weights, and the name that follows from it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

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


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`. Lists stay values."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
