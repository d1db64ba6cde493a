"""What the orchestrator asks of a tracker, and the tracker that records nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Status = Literal["FINISHED", "FAILED", "KILLED"]
"""How a run ended, in MLflow's words: FINISHED all steps done, FAILED by an error, KILLED by a signal."""


SWEEP_TAG = "sr_run.sweep"
"""On the jobs of a sweep and on the run that stands for it: the name of its folder. A job of two sweeps has both."""


@dataclass(frozen=True)
class RunRecord:
    """All that a tracker gets to know about a run when it starts or goes on."""

    run_dir: Path
    """The folder of this attempt; pictures and artifacts lie below it."""
    attempt: str
    """`<identity>/<attempt>`: unique. Everything recorded under one attempt is one run of the tracking server."""
    run_name: str
    params: Mapping[str, str]
    """What runs are compared by: `optimizer.lr` -> `0.0001`."""
    tags: Mapping[str, str] = field(default_factory=dict)
    dataset: Mapping[str, Any] | None = None
    """What the run trains on: `name`, `source` and `digest`; every other key is kept as the data set's profile."""
    resumed_at: int = 0
    """The step that was restored from a checkpoint; 0 for a run that starts afresh."""
    state: Mapping[str, Any] | None = None
    """What `Tracker.state` gave when that checkpoint was written."""
    sweep: Path | None = None
    """The folder of the sweep that the run is a job of; its own where it stands for the sweep."""


class Tracker(Protocol):
    """Records one run. No call blocks on a server and none raises because the server is down.

    One point per key and step: where a resumed run comes by a step that was logged before it was killed, the first
    value stands. The order of calls is `start`, any number of the others, `finish`.
    """

    @property
    def run_id(self) -> str | None:
        """The tracking server's id of the run; None until the server has answered for the first time."""

    def start(self, run: RunRecord) -> None:
        """Opens the record of `run`, or goes on with it."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records one value per key for `step`. NaN and the infinities are values like any other."""

    def picture(self, step: int, key: str, image: Path) -> None:
        """Shows the PNG `image`, a file below the run's folder that is not written to again, under `key` at `step`."""

    def artifact(self, path: Path) -> None:
        """Keeps a copy of the file `path` among the run's artifacts, in the folder that it has below that of the run;
        given again, replaces it."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold for the record to go on elsewhere; plain JSON, goes into `RunRecord.state`."""

    def sync(self) -> None:
        """Returns when all that was recorded so far is on the disk: before a checkpoint is committed."""

    def finish(self, status: Status, tags: Mapping[str, str] | None = None, wait: float | None = 30.0) -> bool:
        """Closes the record and waits up to `wait` seconds until the server has it all; False where it does not. With
        None it does not wait: the process does so once, for all its runs."""

    def attempt_of(self, run_id: str) -> str | None:
        """`<identity>/<attempt>` of the run with this id at the server; None where it has no such run."""

    def tag(self, tags: Mapping[str, str]) -> None:
        """Sets tags of the run, in the place of earlier ones of the same names."""

    def ui_hint(self, runs: Sequence[Path] = ()) -> tuple[str, str] | None:
        """The command that opens a viewer (may be empty) and the address of this run in it, or of the comparison of
        those in the folders `runs`; None without a viewer."""


class NoTracker:
    """Records nothing and imports nothing. Takes the keys of the other trackers, so that overrides of them compose."""

    def __init__(self, **keys_of_others: object) -> None:
        self.run_id: str | None = None

    def start(self, run: RunRecord) -> None: ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def picture(self, step: int, key: str, image: Path) -> None: ...

    def artifact(self, path: Path) -> None: ...

    def state(self) -> dict[str, Any]:
        return {}

    def sync(self) -> None: ...

    def finish(self, status: Status, tags: Mapping[str, str] | None = None, wait: float | None = 30.0) -> bool:
        return True

    def attempt_of(self, run_id: str) -> str | None:
        return None

    def tag(self, tags: Mapping[str, str]) -> None: ...

    def ui_hint(self, runs: Sequence[Path] = ()) -> tuple[str, str] | None:
        return None
