"""What is recorded of a run when it starts or goes on: the files of its folder, and what the tracker gets."""

from __future__ import annotations

import platform
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sr_runner.attempt import scheduler
from sr_runner.attempt.build import Parts
from sr_runner.attempt.resume import Chosen
from sr_runner.config import schema as configs
from sr_runner.config.identity import flatten
from sr_runner.masking import masked
from sr_runner.runs import folder as files
from sr_runner.tracking import RunRecord, SweepParent
from sr_runner.training.device import device_name


def record(
    parts: Parts, chosen: Chosen, folder: Path, facts: dict[str, Any], overrides: list[str], sweep: SweepParent | None
) -> RunRecord:
    """Write `run.json`, `config.yaml` and `overrides.txt` into the run's folder; return what the tracker records."""
    write_record(parts, chosen, folder, facts, overrides)
    plain = OmegaConf.to_container(parts.config, resolve=True)
    # How this process was started is no property of the run: a resume would contradict what the first start recorded.
    passing = ("trainer.resume", "trainer.allow_changes")
    flat = flatten(masked(plain))
    params = {key: str(value) for key, value in flat.items() if key not in passing}
    tags = {
        "sr_run.identity": chosen.attempt.identity,
        "sr_run.host": platform.node(),
        "sr_run.device": device_name(parts.device),
        "sr_run.status": "running",
    } | _git_tags()
    if chosen.parent:
        tags["sr_run.forked_from"] = chosen.parent
    return RunRecord(
        run_dir=folder,
        attempt=str(chosen.attempt),
        run_name=parts.config.tracker.get("run_name") or str(chosen.attempt.identity),
        params=params,
        tags=tags,
        dataset=dict(parts.data.summary()) | {"digest": parts.data.fingerprint},
        parent=sweep,
    )


def write_record(parts: Parts, chosen: Chosen, folder: Path, facts: dict[str, Any], overrides: list[str]) -> None:
    """The files of the run's folder that say what was started."""
    files.begin(folder, facts, configs.as_yaml(parts.config), masked(overrides), chosen.parent)
    scheduler.remember(folder)


def _git_tags() -> dict[str, str]:
    """The commit of the code in the current folder, where it is a repository."""
    git = partial(subprocess.run, capture_output=True, text=True, timeout=10, check=True)
    try:
        commit = git(["git", "rev-parse", "HEAD"]).stdout.strip()
        dirty = bool(git(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip())
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit, "sr_run.git_commit": commit + ("+changes" if dirty else "")}
