"""Records a run in MLflow without MLflow in the training process: a journal on disk, and a sender that reads it."""

from __future__ import annotations

import getpass
import logging
import shlex
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sr_runner.errors import RequestError
from sr_runner.files import LinkError
from sr_runner.masking import masked, masked_text
from sr_runner.mlflow_server import (
    ARTIFACTS,
    EXPERIMENT,
    Server,
    attempt_of,
    given_by_environment,
    measures_by_environment,
    tracking_uri,
    ui_hint,
)
from sr_runner.tracking.journal import (
    IDS,
    JOURNAL,
    SENT,
    SYSTEM,
    JournalWriter,
    Line,
    finished_at,
    fits_journals,
    line_from,
    metrics_event,
    read_json,
    read_lines,
    read_sent,
)
from sr_runner.tracking.sender_process import SenderProcess, Served, sender_command, sender_for
from sr_runner.tracking.tracker import RunRecord, Status

logger = logging.getLogger(__name__)


class MlflowTracker:
    """A `Tracker` whose server is MLflow: a tracking server, or a database that MLflow's client opens itself.

    `uri` is MLflow's tracking URI; without one `$MLFLOW_TRACKING_URI` counts, and without that the SQLite file
    `outputs/mlflow.db`, whose artifacts go to `outputs/artifacts`. `run_name` overrides the name the run brings.
    `system_metrics` adds the load of CPU, memory, disk, network and GPU every 10 s
    (`$MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`), unless it is false, or None and
    `$MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING` is. `nested` puts the jobs of a sweep below the run that stands for it.
    Raises `RequestError` for a URI that MLflow has no store for, and for a variable that is neither.
    """

    def __init__(
        self,
        *,
        uri: str | None = None,
        experiment: str = EXPERIMENT,
        run_name: str | None = None,
        outputs: str | Path = "outputs",
        system_metrics: bool | None = None,
        nested: bool = False,
    ) -> None:
        for key, name in (("experiment", experiment), ("run_name", "run" if run_name is None else run_name)):
            if not name or not name.strip():
                raise RequestError(f"tracker.{key}={name!r} is empty: expected a name.")
            if masked_text(name) != name:
                raise RequestError(
                    f"tracker.{key}={masked_text(name)}: expected a name without a secret, as it is shown"
                )
        self._outputs = Path(outputs).absolute()
        self._uri = tracking_uri(uri, self._outputs)
        self._experiment = experiment
        self._run_name = run_name
        self._system_metrics = measures_by_environment() if system_metrics is None else system_metrics
        self._nested = nested
        self._lock = threading.Lock()
        self._journal: JournalWriter | None = None
        self._sender: SenderProcess | None = None
        self._served: Served | None = None
        self._is_job = False
        self._run_dir = Path()
        self._ids: dict[str, Any] = {}
        self._logged: dict[str, set[int]] = {}
        self._last: dict[str, int] = {}
        self._warned = False
        self._delivered: bool | None = None
        self._finished_at: int | None = None
        self._lost = 0

    @property
    def run_id(self) -> str | None:
        run_id: str | None = self._fact("run_id")
        return run_id

    def attempt_of(self, run_id: str) -> str | None:
        """Asks the server; the one place where this process imports MLflow, before it trains."""
        return attempt_of(run_id, Server(self._uri, self._outputs / ARTIFACTS))

    def start(self, run: RunRecord) -> None:
        """Opens the journal in `run.run_dir`, reads what it holds already, and starts the sender.

        Raises `RequestError` where the journal cannot be written from the start. Later, points wait in memory.
        """
        self._run_dir = run.run_dir.absolute()
        if (system := self._run_dir / SYSTEM).is_symlink():
            raise LinkError(system)  # to the sender it would be a server that cannot be reached
        try:
            self._journal = self._open_journal()
        except OSError as error:
            raise RequestError(
                f"{self._run_dir / JOURNAL} cannot be written ({error.strerror}), and a run is recorded there: "
                "expected a file that can be written; tracker=none records nothing"
            ) from error
        self._finished_at = finished_at(self._run_dir / JOURNAL)
        self._ids = self._known_ids(run)
        stands_for_sweep = run.sweep == run.run_dir
        self._is_job = run.sweep is not None and not stands_for_sweep
        self._append(self._start_event(run))
        self._take_up(run)
        self._sender = sender_for(self._uri, (run.sweep or self._run_dir).absolute())
        measures = self._system_metrics and not stands_for_sweep  # which does not compute
        self._served = self._sender.begin(self._run_dir, system_metrics=measures)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends the values to the journal: some 10 µs, and nothing of it depends on the server."""
        with self._lock:
            fresh = {key: value for key, value in metrics.items() if self._is_new(key, step)}
            if fresh:
                self._finished_at = None
                self._append(metrics_event(step, fresh))

    def picture(self, step: int, key: str, image: Path) -> None:
        """Appends the picture to the journal. The file has to stay where it is: it is sent later."""
        with self._lock:
            if self._is_new(f"picture {key}", step):
                name = {"step": step, "key": key, "file": self._relative(image), "id": str(uuid.uuid4())}
                self._append({"event": "picture", **name})

    def tag(self, tags: Mapping[str, str]) -> None:
        with self._lock:
            self._append({"event": "tags", "tags": masked(tags)})

    def artifact(self, path: Path) -> None:
        with self._lock:
            self._append({"event": "artifact", "file": self._relative(path)})

    def state(self) -> dict[str, Any]:
        """The ids, and the metric lines that the server had not confirmed when it was asked last."""
        with self._lock:
            journal = self._started()
            sent = read_sent(self._run_dir)
            offset = sent["sent"] if sent and sent["run_id"] == self.run_id else 0
            lines = [*read_lines(journal.path, offset), *(line_from(raw.rstrip(b"\n")) for raw in journal.unwritten)]
            return {
                "tracking_uri": masked_text(self._uri),
                "experiment_id": self._fact("experiment_id"),
                "run_id": self.run_id,
                "pending": [line.raw.decode(errors="replace") for line in lines if line.kind == "metrics"],
            }

    def sync(self) -> None:
        with self._lock:
            if self._delivered is not None:
                return
            try:
                self._started().sync()
            except OSError as error:
                self._warn(error)

    def finish(self, status: Status, tags: Mapping[str, str] | None = None, wait: float | None = 30.0) -> bool:
        """Closes the journal with `status` and gives the sender up to `wait` seconds to bring the rest to MLflow; None:
        until `settle`."""
        if self._delivered is not None:
            return self._delivered
        # A run that was only looked at again has ended when it did.
        ended = {"time": self._finished_at} if status == "FINISHED" and self._finished_at is not None else {}
        with self._lock:
            self._append({"event": "finish", "status": status, "tags": masked(tags or {}), **ended})
        self.sync()
        if lost := len(self._started().unwritten):
            logger.warning("tracking: %s cannot be written; %d entries are lost", self._run_dir / JOURNAL, lost)
        self._delivered = False
        self._lost = lost
        if self._sender is not None and self._served is not None:
            self._sender.end(self._served)
        with self._lock:
            self._started().close()
        if wait is not None:
            return self._settle(wait)
        _unsettled.append(self)
        for _ in range(len(_unsettled)):
            tracker = _unsettled.popleft()
            if tracker._is_settled or len(_unsettled) >= _MOST_UNSETTLED:
                tracker._settle(0)
            else:
                _unsettled.append(tracker)
        return False

    @property
    def _is_settled(self) -> bool:
        return self._served is None or self._served.done_with.is_set()

    def _settle(self, wait: float) -> bool:
        if self._sender is not None and self._served is not None:
            self._delivered = self._sender.settle(self._served, wait, stays=self._is_job) and not self._lost
        if not self._delivered:
            logger.warning("tracking: %s", self._what_is_left())
        return bool(self._delivered)

    def ui_hint(self, runs: Sequence[Path] = ()) -> tuple[str, str]:
        ids: list[str | None] = [read_json(folder / IDS).get("run_id") for folder in runs]
        return ui_hint(self._uri, self._fact("experiment_id"), *ids or [self.run_id])

    def _start_event(self, run: RunRecord) -> dict[str, Any]:
        given = given_by_environment(self._experiment)
        event: dict[str, Any] = {
            "event": "start",
            "attempt": run.attempt,
            "experiment": self._experiment,
            "experiment_id": given.experiment_id,
            "run_name": masked_text(self._run_name or run.run_name),
            "resumed_at": run.resumed_at,
            "run_id": self._ids.get("run_id") or (given.run_id if not self._is_job else None),
            "artifacts": str(self._outputs / ARTIFACTS),
            "params": masked(run.params),
            "tags": {**_who_and_what(), **masked(run.tags)},
        }
        if run.dataset is not None:
            event["dataset"] = masked(run.dataset)
        if run.sweep is not None and self._nested and run.sweep != run.run_dir:
            event["below"] = str(run.sweep.absolute())
        return event

    def _open_journal(self) -> JournalWriter:
        """The journal, less a half written last line; and no notes of what was sent that it does not fit."""
        journal = JournalWriter(self._run_dir / JOURNAL)
        if journal.cut:
            logger.warning("tracking: the half written end of %s, %d bytes, is cut off", journal.path, journal.cut)
        notes = self._run_dir / SENT
        if notes.exists() and not ((sent := read_sent(self._run_dir)) and fits_journals(sent, self._run_dir)):
            logger.warning(
                "tracking: %s is not what it was when it was sent; all that it holds is sent again", journal.path
            )
            notes.unlink()
        return journal

    def _take_up(self, run: RunRecord) -> None:
        """Learns which points the journal holds, and adds those that only the checkpoint holds."""
        state = run.state or {}
        saved = pending if isinstance(pending := state.get("pending"), list) else []
        lines = [line_from(raw.encode(errors="replace")) for raw in saved if isinstance(raw, str)]
        lacking = [line for line in lines if not self._started().holds(line)]
        events = [event for line in lacking if (event := line.event) and event["event"] == "metrics"]
        first = min([run.resumed_at, *(event["step"] for event in events)])
        self._logged = _points_from(read_lines(self._started().path), first)
        added = 0
        for event in events:
            step, values = event["step"], event["values"]
            missing = {key: value for key, value in values.items() if step not in self._logged.get(key, ())}
            if missing:
                self._append({**event, "values": missing})
                added += len(missing)
            for key in missing:
                self._logged.setdefault(key, set()).add(step)
        if added:
            logger.warning("tracking: the journal lacked %d points that the checkpoint holds; they are added", added)
        if damaged := len(saved) - len(lines) + len(lacking) - len(events):
            logger.warning("tracking: %d damaged lines in the checkpoint are passed over", damaged)

    def _known_ids(self, run: RunRecord) -> dict[str, Any]:
        """The ids that an earlier life was given, if it spoke to the same server."""
        for ids in (read_json(self._run_dir / IDS), run.state or {}):
            if isinstance(ids.get("run_id"), str) and ids.get("tracking_uri") == masked_text(self._uri):
                return dict(ids)
        return {}

    def _fact(self, name: str) -> Any:
        reported = self._served.reports if self._served is not None else {}
        return reported.get(name) or self._ids.get(name)

    def _is_new(self, key: str, step: int) -> bool:
        if self._last.get(key) == step or step in self._logged.get(key, ()):
            return False
        self._last[key] = step
        return True

    def _append(self, event: Mapping[str, Any]) -> None:
        if self._delivered is not None:
            logger.debug("came after the end: %s", event)
            return
        try:
            self._started().append(event)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("tracking: %s cannot be written (%s); points wait in memory", self._run_dir / JOURNAL, error)

    def _started(self) -> JournalWriter:
        if self._journal is None:
            raise RuntimeError("start() has not been called")
        return self._journal

    def _relative(self, path: Path) -> str:
        path = path.absolute()
        return str(path.relative_to(self._run_dir)) if path.is_relative_to(self._run_dir) else str(path)

    def _what_is_left(self) -> str:
        offset = read_sent(self._run_dir).get("sent", 0)
        left = sum(1 for _ in read_lines(self._started().path, offset))
        trouble = self._fact("trouble")
        uri = shlex.quote(masked_text(self._uri))
        command = f"MLFLOW_TRACKING_URI={uri} {shlex.join(sender_command('--deliver', str(self._run_dir)))}"
        return (
            f"{left} entries are not in MLflow yet{f' ({trouble})' if trouble else ''}. They are kept in "
            f"{self._started().path} and get there at the next resume, or with: {command}"
        )


_unsettled: deque[MlflowTracker] = deque()
_MOST_UNSETTLED = 100
"""Where the server is away, what is one too many is left in its journal: each holds a file open in the sender."""


def settle(wait: float) -> bool:
    """Gives the senders of all runs that this process finished without waiting up to `wait` seconds; False where
    something did not get to the server."""
    deadline, all_delivered = time.monotonic() + wait, True
    while _unsettled:
        all_delivered &= _unsettled.popleft()._settle(max(0.0, deadline - time.monotonic()))
    return all_delivered


def _points_from(lines: Iterable[Line], step: int) -> dict[str, set[int]]:
    """Per key the steps from `step` on that the lines hold already; pictures under `picture <key>`."""
    found: dict[str, set[int]] = {}
    for line in lines:
        at = line.step
        if at is None or at < step or (event := line.event) is None:
            continue
        keys = event["values"] if event["event"] == "metrics" else [f"picture {event['key']}"]
        for key in keys:
            found.setdefault(key, set()).add(at)
    return found


def _who_and_what() -> dict[str, str]:
    """The tags that MLflow's own `start_run` would set."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"  # a container's user id without a name
    return {"mlflow.user": user, "mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": "LOCAL"}
