"""Hydra's own keys: what is wrong with them, which Hydra says late, by an error of any kind, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import is_dataclass
from enum import EnumMeta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sr_runner.config import types
from sr_runner.config.targets import locate
from sr_runner.errors import RequestError


def is_plugin(target: str) -> bool:
    """Whether the class is Hydra's own, or in the package of its plugins: Hydra sets those up itself."""
    return target.partition(".")[0] in ("hydra", "hydra_plugins")


def check(hydra: DictConfig, options: Callable[[str], list[str]]) -> None:
    """Raises `RequestError` for values of `hydra.*` that cannot be meant. `options` lists those of a group."""
    for part in ("launcher", "sweeper"):
        target = _target(hydra[part])
        if not is_plugin(target) and not (part == "sweeper" and _class(target, Sweeper)):
            listed = ", ".join(options(f"hydra/{part}"))
            raise RequestError(f"hydra.{part}._target_={target}: expected hydra/{part}=OPTION, one of {listed}")
    for name, node in hydra.callbacks.items():
        if not _class(target := _target(node), Callback):
            what = "a class that can be imported, a hydra.experimental.callback.Callback"
            raise RequestError(f"hydra.callbacks.{name}._target_={target}: expected {what}")
    verbose = OmegaConf.to_container(hydra.verbose) if OmegaConf.is_config(hydra.verbose) else hydra.verbose
    if not types.fits(verbose, bool | str | list[str]):
        raise RequestError(f"hydra.verbose={_shown(verbose)}: expected true, false, or the names of loggers")
    most = OmegaConf.select(hydra, "sweeper.max_batch_size")
    if most is not None and most < 1:
        raise RequestError(f"hydra.sweeper.max_batch_size={most}: expected a whole number of at least 1, or null")
    places = {
        "output_subdir": (hydra.output_subdir, "in that of the job, or null"),
        "sweep.subdir": (hydra.sweep._get_node("subdir")._value(), "in that of the sweep"),
    }
    if hydra.mode is not RunMode.MULTIRUN:
        _ = hydra.run.dir  # resolved before anything is started; that of a sweep's job has no meaning
    for key, (folder, where) in places.items():
        if folder is not None and (Path(folder).is_absolute() or ".." in Path(folder).parts):
            raise RequestError(f"hydra.{key}={folder}: expected the name of a folder {where}")


def check_search_path(override: Override) -> None:
    """Hydra only warns of a folder that is not there."""
    value = override.value()
    for place in value if isinstance(value, list) else [value]:
        scheme, _, path = str(place).partition("://")
        if scheme == "pkg":
            check_package("hydra.searchpath=", path)
        elif not (scheme == "file" and Path(path).is_dir()):
            raise RequestError(
                f"hydra.searchpath={_shown(place)}: there is no such folder; expected file:///folder or pkg://package"
            )


def check_package(given: str, name: str) -> None:
    """Raises `RequestError` where the configs of package `name`, which `given` asks for, cannot be read."""
    found = None
    with suppress(Exception):  # whatever the packages around it raise
        found = find_spec(name)
    if found is None or found.submodule_search_locations is None:
        raise RequestError(f"{given}pkg://{name}: there is no such package; expected one that can be imported")


def expected(kind: Any, name: str) -> str:
    """In words, the type of the field `name` of the dataclass `kind`; of what is no field, that it has fields."""
    hint = get_type_hints(kind).get(name, dict) if is_dataclass(kind) else dict
    words = [list(member.__members__) for member in types.members_of(hint) if isinstance(member, EnumMeta)]
    if words:
        return " or ".join(*words)
    return types.expected(dict if is_dataclass(hint) else hint)


def _class(target: str, kind: type) -> bool:
    found = None
    with suppress(RequestError):
        found = locate("", target)
    return isinstance(found, type) and issubclass(found, kind)


def _target(node: Any) -> str:
    return _shown(OmegaConf.select(node, "_target_") if isinstance(node, DictConfig) else None)


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
