"""The Orchestrator of an attempt, and where it starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sr_runner.attempt import scheduler
from sr_runner.attempt.build import Parts, policies
from sr_runner.attempt.resume import Chosen, spool_of
from sr_runner.checkpoint import CheckpointManager, Origin
from sr_runner.config import schema as configs
from sr_runner.signals import StopSignal
from sr_runner.training.orchestrator import Orchestrator
from sr_runner.training.result import Start


def orchestrate(
    parts: Parts,
    chosen: Chosen,
    facts: dict[str, Any],
    scratch: Path,
    stop: StopSignal,
    confirm: Callable[[], None] = lambda: None,
) -> tuple[Orchestrator, Start]:
    """The Orchestrator, ready to train, and where it starts. `confirm` raises where the attempt was taken over."""
    manager, job = None, scheduler.current()
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
        )
    origin = Origin(
        facts=facts, attempt=str(chosen.attempt), parent=chosen.parent, job=job.key if job is not None else None
    )
    return orchestrator_of(parts, stop, manager, origin), Start(chosen.state, fork=chosen.parent is not None)


def orchestrator_of(
    parts: Parts, stop: StopSignal, checkpoints: CheckpointManager | None, origin: Origin | None = None
) -> Orchestrator:
    """The Orchestrator of these parts; only the main process has `checkpoints`."""
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
        origin=origin,
    )
