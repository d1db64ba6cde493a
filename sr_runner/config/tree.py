"""Files of a config tree as they are written: what is wrong with one's own, and in which of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sr_runner.config.identity import flatten

_RECIPES = "experiment"
"""The group whose files hold keys of the whole config."""


@dataclass(frozen=True)
class File:
    """An option's file; of the config itself where `group` is empty."""

    path: Path
    group: str
    content: Mapping[str, Any]
    is_base: bool
    """Only another option of its group asks for it."""

    def __str__(self) -> str:
        here = Path.cwd()
        return str(self.path.relative_to(here) if self.path.is_relative_to(here) else self.path)

    @property
    def bases(self) -> list[str]:
        """The options of its group that it is based on."""
        return [each for each in self._defaults if isinstance(each, str)]

    @property
    def choices(self) -> Iterator[tuple[str, Any]]:
        """What it chooses, as it says it: `("override /model", "edsr")`."""
        for each in self._defaults:
            if isinstance(each, Mapping):
                yield from ((str(name), option) for name, option in each.items())

    def find(self, key: str) -> str | None:
        """The whole key, as a command line has it, of the first `key` in the file or its defaults; None without one."""
        below = "" if self.group == _RECIPES else self.group.replace("/", ".")
        for each in flatten({name: value for name, value in self.content.items() if name != "defaults"}, below):
            words = each.split(".")
            if key in words:
                return ".".join(words[: words.index(key) + 1])
        return key if any(name.endswith(f"/{key}") for name, _ in self.choices) else None

    @property
    def _defaults(self) -> list[Any]:
        found = self.content.get("defaults")
        return found if isinstance(found, list) else []


def read(folders: Sequence[Path], wanted: Sequence[tuple[str, Any]]) -> list[File]:
    """The files of the options `wanted` (group and name), and those that they are based on, in the first of `folders`
    that has them."""
    files: dict[Path, File] = {}
    bases: list[tuple[str, Any]] = []
    for group, option in itertools.chain(wanted, bases):  # which grow meanwhile
        path = next((path for folder in folders if (path := folder / group / f"{option}.yaml").is_file()), None)
        if path is not None and path not in files:
            content: Any = None
            with suppress(Exception):  # what cannot be read, Hydra explains
                content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
            files[path] = File(path, group, content if isinstance(content, dict) else {}, (group, option) in bases)
            bases += [(group, base) for base in files[path].bases]
    return list(files.values())


def without_package(files: Sequence[File]) -> str | None:
    """One sentence for the first recipe whose keys would come below `experiment`; what another is based on may."""
    for file in files:
        text = file.path.read_text(encoding="utf-8", errors="replace")
        if file.group == _RECIPES and file.content and not file.is_base and not re.search(r"(?m)^#\s*@package\s", text):
            return f"{file}: expected the line '# @package _global_' at its top: its keys are those of a whole config"
    return None


def not_overridden(group: str, files: Sequence[File]) -> str | None:
    """One sentence for the first recipe that adds an option of `group`, which has one already."""
    for file in files:
        for name, option in file.choices:
            if file.group == _RECIPES and re.fullmatch(rf"(override )?/?{re.escape(group)}", name):
                return f"{file}: '{name}: {option}' in its defaults: expected 'override /{group}: {option}'"
    return None
