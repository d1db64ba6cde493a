"""From the parts and the attempt to a run: its record, and the Orchestrator that trains it."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from sr_runner.attempt import scheduler as jobs
from sr_runner.attempt.build import Parts, policies
from sr_runner.attempt.resume import Chosen, spool_of
from sr_runner.checkpoint import CheckpointManager
from sr_runner.config import schema as configs
from sr_runner.config.identity import flatten
from sr_runner.masking import masked, masked_override
from sr_runner.runs.catalogue import RECORD
from sr_runner.signals import StopSignal
from sr_runner.tracking import RunRecord, SweepParent
from sr_runner.training.orchestrator import Orchestrator, Start


def record(
    parts: Parts, chosen: Chosen, folder: Path, facts: dict[str, Any], overrides: list[str], sweep: SweepParent | None
) -> RunRecord:
    """Write `run.json`, `config.yaml` and `overrides.txt` into the run's folder; what the tracker is told."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = [masked_override(override) for override in overrides]
    (folder / RECORD).write_text(json.dumps({"facts": facts, "overrides": shown, "parent": chosen.parent}, indent=1))
    jobs.remember(folder)
    (folder / "config.yaml").write_text(configs.as_yaml(parts.config))
    (folder / "overrides.txt").write_text("".join(f"{override}\n" for override in shown))
    plain = OmegaConf.to_container(parts.config, resolve=True)
    # How this process was started is no property of the run: a resume would contradict what the first start recorded.
    passing = ("trainer.resume", "trainer.allow_changes")
    flat = flatten(masked(plain))
    params = {key: str(value) for key, value in flat.items() if key not in passing}
    device = torch.cuda.get_device_name(parts.device) if parts.device.type == "cuda" else "cpu"
    tags = {
        "sr_run.identity": chosen.attempt.identity,
        "sr_run.host": platform.node(),
        "sr_run.device": device,
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


def _git_tags() -> dict[str, str]:
    """The commit of the code in the current folder, where it is a repository."""
    git = partial(subprocess.run, capture_output=True, text=True, timeout=10, check=True)
    try:
        commit = git(["git", "rev-parse", "HEAD"]).stdout.strip()
        dirty = bool(git(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip())
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit, "sr_run.git_commit": commit + ("+changes" if dirty else "")}


def orchestrate(
    parts: Parts,
    chosen: Chosen,
    facts: dict[str, Any],
    scratch: Path,
    stop: StopSignal,
    confirm: Callable[[], None] = lambda: None,
) -> tuple[Orchestrator, Start]:
    """The Orchestrator, ready to train, and where it starts. `confirm` raises where the attempt was taken over."""
    manager, job = None, jobs.current()
    if parts.store is not None:
        manager = CheckpointManager(
            parts.store,
            str(chosen.attempt),
            keep=policies(parts.checkpoint),
            scratch=scratch,
            spool=spool_of(parts),
            max_failures=parts.checkpoint.max_failures,
            when_busy=parts.checkpoint.when_busy,
            should_stop=lambda: stop.requested,
            confirm=confirm,
            on_saved=lambda report: orchestrator.saved(report),
            on_failure=lambda step, in_a_row: orchestrator.save_failed(step, in_a_row),
        )
    kept = {"facts": facts, "attempt": str(chosen.attempt), "parent": chosen.parent}
    orchestrator = orchestrator_of(parts, stop, manager, kept | ({"job": job.key} if job is not None else {}))
    return orchestrator, Start(chosen.state, fork=chosen.parent is not None)


def orchestrator_of(
    parts: Parts, stop: StopSignal, checkpoints: CheckpointManager | None, facts: dict[str, Any] | None = None
) -> Orchestrator:
    """The Orchestrator of these parts; of several processes the first alone has `checkpoints`."""
    return Orchestrator(
        objective=parts.objective,
        learners=parts.learners,
        data=parts.data,
        tracker=parts.tracker,
        checkpoints=checkpoints,
        settings=parts.trainer,
        save_every=parts.checkpoint.every,
        device=parts.device,
        stop=stop,
        world=parts.world,
        config=configs.as_yaml(parts.config),
        facts=facts,
    )
