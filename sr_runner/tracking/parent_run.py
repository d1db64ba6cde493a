"""The run of the tracking server that the jobs of a sweep are nested below. Only the sender's process imports it.

`sweep.json` in the sweep's folder keeps, beside what others keep there: `parent_tag` (the value of the tag by which the
parent is found again), `parent_experiment_id` and `parent_run_id`. It is only written under `parent.lock`.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path

from sr_runner.files import file_lock
from sr_runner.mlflow_server import Server
from sr_runner.tracking.journal import read_json, write_json

SWEEP_TAG = "sr_run.sweep"
_FILE = "sweep.json"
_LOCK = "parent.lock"


def parent_run_id(server: Server, experiment_id: str, folder: Path, name: str, start_time: int) -> str:
    """The id of the parent run of the sweep in `folder`: made by the first job that asks, found by the others."""
    with file_lock(folder / _LOCK):
        sweep = read_json(folder / _FILE)
        run = server.run(sweep["parent_run_id"]) if "parent_run_id" in sweep else None
        if run is None:
            sweep.setdefault("parent_tag", uuid.uuid4().hex)
            sweep["parent_experiment_id"] = experiment_id
            write_json(folder / _FILE, sweep)
            run = server.tagged_run(experiment_id, SWEEP_TAG, sweep["parent_tag"], name=name, start_time=start_time)
            sweep["parent_run_id"] = run.info.run_id
            write_json(folder / _FILE, sweep)
        run_id: str = run.info.run_id
        server.restore(run)
        if run.info.status != "RUNNING":
            server.ask(lambda client: client.update_run(run_id, status="RUNNING"))
        return run_id


def close_parent_run(server: Server, folder: Path, status: str) -> None:
    """Gives the parent run its end; does nothing where the sweep has none. Raises `Unreachable` and `Refused`."""
    with file_lock(folder / _LOCK):
        sweep = read_json(folder / _FILE)
        run_id = sweep.get("parent_run_id")
        if run_id is None and "parent_tag" in sweep:
            found = server.runs(sweep["parent_experiment_id"], SWEEP_TAG, sweep["parent_tag"])
            run_id = found[0].info.run_id if found else None
        if run_id is not None:
            server.ask(lambda client: client.set_terminated(run_id, status, int(time.time() * 1000)))
