"""The files of a run's folder, `outputs/runs/<identity>/<attempt>/`: their names, and how they are read and written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sr_runner.files import open_own, own_folder, read_file, write_file
from sr_runner.tracking import journal
from sr_runner.tracking.journal import read_json

RECORD = "run.json"
"""What the run was started with: what determines its identity, its overrides, the checkpoint that it is forked from."""
CONFIG = "config.yaml"
OVERRIDES = "overrides.txt"
RESULT = "result.json"
IMAGES = "images.csv"
LOG = "run.log"
LOCK = "run.lock"
TRACKER = journal.IDS
JOBS = "jobs.txt"
"""The scheduler's jobs that worked on the attempt, a line each."""


def begin(folder: Path, facts: Mapping[str, Any], config: str, overrides: Sequence[str], parent: str | None) -> None:
    """Write what the run was started with; secrets are masked already."""
    record = {"facts": facts, "overrides": list(overrides), "parent": parent}
    _own(folder).mkdir(parents=True, exist_ok=True)
    write_file(folder / RECORD, json.dumps(record, indent=1))
    write_file(folder / CONFIG, config)
    write_file(folder / OVERRIDES, "".join(f"{override}\n" for override in overrides))


def facts(folder: Path) -> dict[str, Any] | None:
    """What the run's identity was computed from; None where the folder has no record of it."""
    known = _record(folder, RECORD).get("facts")
    return known if isinstance(known, dict) else None


def tracker(folder: Path) -> dict[str, Any]:
    """The ids that the tracking server gave the run, `run_id` among them; empty before it has answered."""
    return _record(folder, TRACKER)


def jobs(folder: Path) -> list[str]:
    """The scheduler's jobs that worked on the attempt."""
    try:
        return read_file(_own(folder) / JOBS).decode(errors="replace").splitlines()
    except OSError:
        return []


def add_job(folder: Path, key: str) -> None:
    """Write down, and flush to the disk, that the job `key` works on the attempt."""
    opened = open_own(_own(folder) / JOBS, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with os.fdopen(opened, "a", encoding="utf-8") as file:
        file.write(f"{key}\n")
        file.flush()
        os.fsync(file.fileno())


def _own(folder: Path) -> Path:
    """`folder`, unless it or that of its identity is a link. Raises `LinkError`."""
    return own_folder(folder.parents[1], folder)


def _record(folder: Path, name: str) -> dict[str, Any]:
    try:
        return read_json(_own(folder) / name)
    except OSError:
        return {}
