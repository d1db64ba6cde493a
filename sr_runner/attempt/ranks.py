"""What the main process of a run broadcasts to its peers, and what those do."""

from __future__ import annotations

import socket
from pathlib import Path

from sr_runner.attempt.build import Parts
from sr_runner.attempt.report import Outcome
from sr_runner.attempt.resume import Chosen
from sr_runner.checkpoint import TrainingState
from sr_runner.errors import RequestError
from sr_runner.signals import StopSignal
from sr_runner.tracking import RunRecord
from sr_runner.training import device as devices

_SEED_STRIDE = 1_000_003
"""Between the seeds of two processes: what a network draws (dropout) is to differ, while samples come from `seed`."""


def broadcast_start(parts: Parts, chosen: Chosen, folder: Path) -> None:
    """Broadcast where the run starts. The peers may have neither the store nor the files of the weights."""
    if parts.world.size == 1:
        return
    state = chosen.state
    parts.world.broadcast(
        {
            "attempt": str(chosen.attempt),
            "folder": str(folder),
            "fork": chosen.parent is not None,
            "images": parts.data.fingerprint,
            "networks": {name: learner.network.state_dict() for name, learner in parts.learners.items()},
            "state": None if state is None else vars(state),
        }
    )


def train_as_peer(parts: Parts, stop: StopSignal) -> Outcome:
    """Train along with the main process, which calls `broadcast_start`, `Orchestrator.train`, and all the rest."""
    world = parts.world
    world.broadcast()  # it has prepared the images: what it fetched and decoded need not be done twice
    parts.data.prepare(progress=False)
    start = world.broadcast()
    if start["images"] != parts.data.fingerprint:
        raise RequestError(
            f"data: the training images of process {world.rank}, on {socket.gethostname()}, are not those of process 0:"
            " every machine needs the same"
        )
    devices.seed_everything(parts.config.seed + _SEED_STRIDE * world.rank)
    for name, learner in parts.learners.items():
        learner.network.load_state_dict(start["networks"][name])
    orchestrator = parts.orchestrator(stop)
    state = TrainingState(**start["state"]) if start["state"] is not None else None
    folder, attempt = Path(start["folder"]), start["attempt"]
    run = RunRecord(run_dir=folder, attempt=attempt, run_name=attempt, params={})
    with stop.deferred():
        result = orchestrator.train(run, state, fork=start["fork"])
        stop.defer()  # see `execute`
    return Outcome(attempt.partition("/")[0], attempt, folder, None, result.step, dict(result.metrics), None)
