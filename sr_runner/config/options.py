"""What the chosen option of a group says by itself, before a recipe or the command line changes any of it."""

from __future__ import annotations

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
    content: Any = OmegaConf.load(path) if path is not None else {}
    bases = [base for base in content.pop("defaults", []) if isinstance(base, str) and base != "_self_"]
    inherited = [_read(folders, base.lstrip("/") if "/" in base else f"{Path(option).parent}/{base}") for base in bases]
    return OmegaConf.to_container(OmegaConf.unsafe_merge({}, *inherited, content))  # type: ignore[return-value]
