"""Classes and functions of one's own that a config names: whether their files are as they were."""

from __future__ import annotations

import hashlib
import inspect
import logging
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sr_runner.attempt.resume import Chosen
from sr_runner.config.targets import locate
from sr_runner.runs import folder as files
from sr_runner.runs.catalogue import Catalogue

log = logging.getLogger(__name__)

_INSTALLED = {Path(sysconfig.get_path(each)).resolve() for each in ("stdlib", "platstdlib", "purelib", "platlib")}


def digests(config: DictConfig) -> dict[str, str]:
    """By the name of each class or function of one's own in `config`, the digest of its file.

    Those of sr-run and of installed packages are left out: `starts.jsonl` has their versions.
    """
    return {name: hashlib.sha256(file.read_bytes()).hexdigest()[:12] for name, file in _own_files(config).items()}


def warn_of_changes(config: DictConfig, chosen: Chosen, catalogue: Catalogue) -> None:
    """One warning where a file differs from that of the last start of the run, or of the run that is forked. A resume
    goes on all the same: the code is no part of a run's identity."""
    if chosen.state is None:
        return
    # Of a fork that has not started, the checkpoint's attempt says what its weights were trained by.
    origin = catalogue.runs / chosen.parent if chosen.parent else None
    starts = files.starts(catalogue.folder(chosen.attempt)) or (files.starts(origin.parent) if origin else [])
    before: Any = starts[-1].get("code") if starts else None
    now, where = digests(config), _own_files(config)
    known = before if isinstance(before, dict) else {}
    changed = [f"{name} ({where[name]})" for name in now if known.get(name, now[name]) != now[name]]
    if changed:
        log.warning(
            "%s %s changed since %s was last started: what is trained so far comes from another version; "
            "trainer.resume=false starts a fresh attempt", ", ".join(changed), "have" if len(changed) > 1 else "has",
            chosen.parent or chosen.attempt,
        )  # fmt: skip


def _own_files(config: DictConfig) -> dict[str, Path]:
    found = {}
    for name in dict.fromkeys(_targets(OmegaConf.to_container(config, resolve=True))):
        try:
            file = inspect.getsourcefile(inspect.unwrap(locate("_target_", name)))
        except (OSError, TypeError, ValueError):  # built in, made by a call, or typed into a notebook
            continue
        path = Path(file or "").resolve()
        if name.partition(".")[0] != __name__.partition(".")[0] and path.is_file() and not _is_installed(path):
            found[name] = path
    return found


def _is_installed(path: Path) -> bool:
    return "site-packages" in path.parts or any(path.is_relative_to(folder) for folder in _INSTALLED)


def _targets(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        if isinstance(tree.get("_target_"), str):
            yield tree["_target_"]
        tree = list(tree.values())
    for inner in tree if isinstance(tree, list) else ():
        yield from _targets(inner)
