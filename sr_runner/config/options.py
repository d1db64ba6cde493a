"""What the chosen option of a group says by itself, before a recipe or the command line changes any of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf


def as_written(group: str) -> dict[str, Any]:
    """The keys of the chosen option of `group`, those of its bases included, interpolations as they stand.

    {} where Hydra has composed nothing, or the option stands in no folder (but in a package, `pkg://`).
    """
    if not HydraConfig.initialized():
        return {}
    runtime = HydraConfig.get().runtime
    folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file"]
    return _read(folders, f"{group}/{runtime.choices.get(group)}")


def network_name(config: DictConfig) -> str:
    """What the network is called: as the option of `model`, or as its class where that is not the option's own."""
    written, target = as_written("model").get("_target_"), OmegaConf.select(config, "model._target_")
    if not isinstance(target, str) or written in (None, target):
        return str(HydraConfig.get().runtime.choices.get("model", "model"))
    return target.rpartition(".")[2].lower()


def _read(folders: Sequence[Path], option: str) -> dict[str, Any]:
    path = next((path for folder in folders if (path := folder / f"{option}.yaml").is_file()), None)
    content = dict(_loaded(path, path.stat().st_mtime_ns)) if path is not None else {}
    bases = [base for base in content.pop("defaults", []) if isinstance(base, str) and base != "_self_"]
    inherited = [_read(folders, base.lstrip("/") if "/" in base else f"{Path(option).parent}/{base}") for base in bases]
    return functools.reduce(_merged, [*inherited, content])


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """As OmegaConf merges plain trees, in a hundredth of its time."""
    both = {key: _merged(base[key], over[key]) for key in base.keys() & over.keys() if _are_dicts(base[key], over[key])}
    return base | over | both


def _are_dicts(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


@functools.lru_cache(maxsize=256)
def _loaded(path: Path, modified: int) -> dict[str, Any]:
    """The jobs of a sweep have the same options: a file is parsed once, until it is modified."""
    return OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[return-value]
