"""The files of a run's folder, `outputs/runs/<identity>/<attempt>/`: their names, and how they are read and written."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import yaml

from sr_runner.checkpoint.stores import LocalStore, MlflowStore, RemoteStore
from sr_runner.files import open_own, own_folder, plain_json, read_file, write_file
from sr_runner.mlflow_server import tracking_uri
from sr_runner.tracking import journal
from sr_runner.tracking.journal import read_json

RUNS, CHECKPOINTS = "runs", "checkpoints"
"""Folders of the outputs; the second is also the default of `checkpoint.root`."""
RECORD = "run.json"
"""What determines the run's identity."""
CONFIG = "config.yaml"
STARTS = "starts.jsonl"
"""A line for every start of the run, resumes included (command, folder, versions), and one for how that ended."""
RESULT = "result.json"
IMAGES = "images.csv"
LOG = "run.log"
LOCK = "run.lock"
TRACKER = journal.IDS
DIFF = "start-{number}-{code}.diff"
"""What was not committed at that start, of sr-run's own code or of the current folder's repository."""
JOBS = "jobs.txt"
"""The scheduler's jobs that worked on the attempt, a line each."""
_END = "end"
"""The key that only a line about an end has."""

_STORES = {
    f"{package}.{kind.__name__}": kind
    for kind in (LocalStore, MlflowStore, RemoteStore)
    for package in ("sr_runner.checkpoint", "sr_runner.checkpoint.stores", kind.__module__)
}
"""As a config can name them."""


def begin(folder: Path, facts: Mapping[str, Any], config: str, start: Mapping[str, Any]) -> None:
    """Write what the run is started with, or goes on with; secrets are masked already."""
    _own(folder).mkdir(parents=True, exist_ok=True)
    write_file(folder / RECORD, json.dumps({"facts": facts}, indent=1))
    write_file(folder / CONFIG, config)
    _append(folder / STARTS, json.dumps(start))


def end(folder: Path, status: str, seconds: float, error: str = "") -> None:
    """Write down how the last start ended and how long it took, `error` in one line; secrets are masked already."""
    line = {_END: status, "time": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(seconds, 3)}
    _append(folder / STARTS, json.dumps(line | ({"error": error} if error else {})))


def starts(folder: Path) -> list[dict[str, Any]]:
    """What the run was started with, each time, oldest first; what cannot be read is left out."""
    return [line for line in _starts_and_ends(folder) if _END not in line]


def ended(folder: Path) -> dict[str, Any]:
    """How the last start ended, as `end` wrote it: `end`, `time`, `error`; empty where it goes on, or was killed."""
    lines = _starts_and_ends(folder)
    return lines[-1] if lines and _END in lines[-1] else {}


def seconds(folder: Path, step: int) -> float | None:
    """How long the starts took that brought the run to `step`, those left out that were killed or only looked at it
    again; None where that is not known of any."""
    lines = _starts_and_ends(folder)
    took = [
        ended["seconds"]
        for begun, ended in pairwise(lines)
        if _END in ended and _is_number(ended.get("seconds")) and _is_number(begun.get("step")) and begun["step"] < step
    ]
    return sum(took) if took else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _starts_and_ends(folder: Path) -> list[dict[str, Any]]:
    found = []
    for line in _lines(folder / STARTS):
        with suppress(ValueError, RecursionError):
            known = plain_json(line)
            if isinstance(known, dict):
                found.append(known)
    return found


def holder(folder: Path) -> str | None:
    """The process that works on the run (`process N on MACHINE`); None where its last start has ended, or its process
    is gone. Of one on another machine nobody knows here whether it lives: it counts."""
    if ended(folder):
        return None
    known = "\n".join(_lines(folder / LOCK))
    match = re.fullmatch(r"process ([0-9]{1,9}) on (.*)", known, re.DOTALL)
    return None if not known or (match and match[2] == platform.node() and not _lives(int(match[1]))) else known


def diffs(folder: Path) -> list[Path]:
    """What was not committed at any start of the run."""
    return sorted(folder.glob(DIFF.format(number="*", code="*")))


def head_of(diff: Path) -> list[str]:
    """The lines with `#` with which one of `diffs` begins: what it is, and what it lacks."""
    return list(takewhile(lambda line: line.startswith("# "), _lines(diff)))


def config(folder: Path) -> str:
    """The run's config as YAML; empty where there is none."""
    return "\n".join(_lines(folder / CONFIG))


class _Plain(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Numbers, text, lists and mappings."""


for _tag in ("binary", "set", "omap", "pairs"):
    _Plain.add_constructor(f"tag:yaml.org,2002:{_tag}", yaml.SafeLoader.construct_undefined)
_Plain.add_constructor("tag:yaml.org,2002:timestamp", yaml.SafeLoader.construct_yaml_str)


def plain_yaml(text: str) -> Any:
    """The config of a run, which anyone may have written: one that names the same thing twice, and so can stand for
    more than fits a memory, is none of ours. Raises `ValueError`."""
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _Plain)):
            raise ValueError("it has YAML aliases")
        return yaml.load(text, _Plain)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from error


def store(folder: Path, outputs: Path) -> str | None:
    """The folder or URL of the run's checkpoints by its config, as `stores.store_at` takes it; None where that is the
    one below its outputs (which may lie in `outputs` by now), none, or of a class of somebody's own."""
    try:
        known = plain_yaml(config(folder))
        where = known["checkpoint"]
        kind, root = str(where["store"]["_target_"]), where["root"]
    except (KeyError, TypeError, ValueError):
        return None
    if kind not in _STORES:
        return None
    if _STORES[kind] is MlflowStore:
        uri, experiment = (where["store"].get(key) for key in ("uri", "experiment"))
        if not isinstance(uri, str | None) or not isinstance(experiment, str | None):
            return None
        return f"mlflow:{tracking_uri(uri, outputs)}#{experiment or ''}"
    if not isinstance(root, str) or root == f"{known.get('outputs')}/{CHECKPOINTS}":
        return None
    begun = starts(folder)
    return root if "://" in root or not begun else str(Path(str(begun[-1].get("folder", ""))) / root)


def facts(folder: Path) -> dict[str, Any] | None:
    """What the run's identity was computed from; None where the folder has no record of it."""
    known = _record(folder, RECORD).get("facts")
    return known if isinstance(known, dict) else None


def tracker(folder: Path) -> dict[str, Any]:
    """The ids that the tracking server gave the run, `run_id` among them; empty before it has answered."""
    return _record(folder, TRACKER)


def jobs(folder: Path) -> list[str]:
    """The scheduler's jobs that worked on the attempt."""
    return _lines(folder / JOBS)


def add_job(folder: Path, key: str) -> None:
    """Write down, and flush to the disk, that the job `key` works on the attempt."""
    _append(folder / JOBS, key)


def _append(path: Path, line: str) -> None:
    opened = open_own(_own(path.parent) / path.name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with os.fdopen(opened, "a", encoding="utf-8") as file:
        file.write(f"{line}\n")
        file.flush()
        os.fsync(file.fileno())


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _lines(path: Path) -> list[str]:
    try:
        return read_file(_own(path.parent) / path.name).decode(errors="replace").splitlines()
    except OSError:
        return []


def _own(folder: Path) -> Path:
    """`folder`, unless it or that of its identity is a link. Raises `LinkError`."""
    return own_folder(folder.parents[1], folder)


def _record(folder: Path, name: str) -> dict[str, Any]:
    try:
        return read_json(_own(folder) / name)
    except OSError:
        return {}
