"""What the first process of a run tells the others, and what those do."""

from __future__ import annotations

import socket
from dataclasses import dataclass, fields
from pathlib import Path

from sr_runner import device as devices
from sr_runner.assembly import orchestrator_of
from sr_runner.attempts import Chosen
from sr_runner.checkpoint import TrainingState
from sr_runner.errors import RequestError
from sr_runner.orchestrator import Result, Start
from sr_runner.parts import Parts
from sr_runner.signals import StopSignal
from sr_runner.tracking import RunRecord

_FAR = 1_000_003
"""Between the seeds of two processes: what a network draws (dropout) is to differ, while samples come from `seed`."""


@dataclass(frozen=True)
class Followed:
    """What came of a run, as the other processes know it."""

    identity: str
    attempt: str
    folder: Path
    result: Result


def lead(parts: Parts, chosen: Chosen, folder: Path) -> None:
    """Tell the others where the run starts. They may have neither the store nor the files of the weights."""
    if parts.world.size == 1:
        return
    state = chosen.state
    parts.world.tell(
        {
            "attempt": str(chosen.attempt),
            "folder": str(folder),
            "fork": chosen.parent is not None,
            "images": parts.data.fingerprint,
            "networks": {name: learner.network.state_dict() for name, learner in parts.learners.items()},
            "state": None if state is None else {field.name: getattr(state, field.name) for field in fields(state)},
        }
    )


def follow(parts: Parts, stop: StopSignal) -> Followed:
    """Train along with the first process, which calls `lead`, `Orchestrator.train`, and all the rest."""
    world = parts.world
    world.tell()  # it has prepared the images: what it fetched and decoded need not be done twice
    parts.data.prepare(progress=False)
    told = world.tell()
    if told["images"] != parts.data.fingerprint:
        raise RequestError(
            f"data: the training images of process {world.rank}, on {socket.gethostname()}, are not those of process 0:"
            " every machine needs the same"
        )
    devices.seed_everything(parts.config.seed + _FAR * world.rank)
    for name, learner in parts.learners.items():
        learner.network.load_state_dict(told["networks"][name])
    orchestrator = orchestrator_of(parts, stop, checkpoints=None)
    state = TrainingState(**told["state"]) if told["state"] is not None else None
    folder, attempt = Path(told["folder"]), told["attempt"]
    run = RunRecord(run_dir=folder, attempt=attempt, run_name=attempt, params={})
    result = orchestrator.train(run, Start(state, fork=told["fork"]))
    return Followed(attempt.partition("/")[0], attempt, folder, result)
