"""What a person reads of a run where runs are compared: its name, and its params."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sr_runner.config.identity import flatten
from sr_runner.config.options import as_written

_LONGEST = 120
_GROUPS = ("model", "objective", "optimizer", "scheduler", "data")
_PLUMBING = ("checkpoint", "tracker", "trainer")
"""Groups whose choice does not change what is learned."""
_ALWAYS = ("optimizer.lr", "optimizer.weight_decay", "data.batch_size", "data.patch_size")
"""Keys of groups that every run has. Others are shown where somebody chose their value, so that two networks do not
differ by what only one of them has."""


def run_name(
    config: DictConfig, choices: Mapping[str, str], facts: Mapping[str, Any], overrides: Sequence[str],
    swept: Sequence[str] = (),
) -> str:  # fmt: skip
    """In a sweep what is swept, `edsr lr=0.003 seed=1`; else the network, the scale and what was asked for beside them:
    `edsr x2 lr=0.003`. At most 120 characters.

    `facts` are what determines the weights, `overrides` of the job or run, `swept` the keys of a sweep.
    """
    chosen = given(overrides)
    if swept:
        words = list(short_names({key: chosen[key] for key in swept if key in chosen}, choices).values())
    else:
        of_name = {"model", "scale", "seed"} if chosen.get("seed", "0") == "0" else {"model", "scale"}
        matters = {key: value for key, value in chosen.items() if key not in of_name and _matters(key, choices, facts)}
        words = [choices.get("model", "model"), f"x{config.scale}", *short_names(matters, choices).values()]
    text = " ".join(words)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def short_names(values: Mapping[str, str], groups: Collection[str]) -> dict[str, str]:
    """Per key what a person calls it with that value: `edsr` for a choice of a group, else `lr=0.003`, with as many
    words of the key as tell it from the others."""
    keys = [key for key in values if key not in groups]
    named: dict[str, str] = {}
    for key, value in values.items():
        words = key.split(".")
        tails = (".".join(words[-count:]) for count in range(1, len(words) + 1))
        tail = next(t for t in tails if t == key or not any(f".{k}".endswith(f".{t}") for k in keys if k != key))
        named[key] = value if key in groups else f"{tail}={value}"
    return named


def params(
    config: DictConfig, choices: Mapping[str, str], facts: Mapping[str, Any], overrides: Sequence[str],
    swept: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """The choice of each group, and what somebody chose or may want to: what runs differ by, under the names of the
    command line. No plumbing, no copies of other keys, no classes of shipped options.

    `facts` are what determines the weights, `overrides` those of the command line, `swept` the keys of
    a sweep.
    """
    values = flatten(OmegaConf.to_container(config, resolve=True))
    asked = [key for key in given(overrides) if key not in choices]
    written = {f"{group}.{key}": value for group in _GROUPS for key, value in flatten(as_written(group)).items()}

    def is_shown(key: str) -> bool:
        group = key.partition(".")[0]
        if key in ("scale", "seed", *swept):
            return True
        if key in facts and any(f"{key}.".startswith(f"{each}.") for each in asked):  # `{...}` gives several at once
            return True
        if key not in facts or values[key] is None or str(written.get(key)).startswith("${"):
            return False
        was_chosen = key in written and values[key] != written[key]
        return group == "trainer" or (group in _GROUPS and (key in _ALWAYS or was_chosen))

    options = {group: name for group, name in choices.items() if _is_shown(group) and name not in ("None", "none")}
    return options | {key: values[key] for key in values if is_shown(key)}


def given(overrides: Sequence[str]) -> dict[str, str]:
    """Key and value of overrides, without signs and quotes."""
    parts = (override.lstrip("+~").partition("=") for override in overrides)
    return {key: value.strip("'\"") for key, _, value in parts}


def _is_shown(group: str) -> bool:
    return not group.startswith("hydra/") and group not in _PLUMBING


def _matters(key: str, choices: Mapping[str, str], facts: Mapping[str, Any]) -> bool:
    return _is_shown(key) if key in choices else key in facts
