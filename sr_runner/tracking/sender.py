"""The process that brings journals of runs to the tracking server: `python -m sr_runner.tracking.sender FOLDER`.

Started by the process that trains, which holds the other end of its standard input and says there, in one JSON object
a line, which runs there are: `{"begin": RUN_DIR, "system_metrics": true}`, `{"end": RUN_DIR}` when nothing more comes
of one, `{"drop": RUN_DIR}` when it is to be left as it is. That this input ends means that the process is gone, and
with it every run of which no end was said. The sender answers in the same way on its standard output, each time with
the `run` it speaks of. The server's URI comes in `$MLFLOW_TRACKING_URI`, so that credentials in it stand in no file and
no list of processes; FOLDER, where its log is, tells people in such a list whose sender it is.

By hand: `--deliver RUN_DIR` sends what an ended run still owes the server.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import os
import select
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from sr_runner.files import Busy, file_lock
from sr_runner.masking import MaskedStream, mask_logs, masked_text
from sr_runner.mlflow_server import Denied, Refused, Server, Unreachable, set_limits
from sr_runner.tracking.journal import JOURNAL, LOCK, SYSTEM, read_lines

if TYPE_CHECKING:
    from sr_runner.tracking.delivery import Delivery
    from sr_runner.tracking.system_metrics import SystemMetrics

logger = logging.getLogger("sr_runner.tracking.sender")

_POLL = 5.0
"""Seconds between looks at the journal. A request costs tens of milliseconds of a core that may be training."""
_POLL_AT_THE_END = 1.0
_SLOWEST = 10.0
_ORPHAN_SECONDS = 20.0
_DELIVER_SECONDS = 60.0
_AGAIN = 300.0
"""Seconds after which lines that were set aside are tried again."""
_BUSY_LOCK = 0.2


class LifeLine:
    """What the sender hears of the process that started it, on `stream`. Without one, there is no such process."""

    def __init__(self, stream: IO[bytes] | None, limit: float) -> None:
        self._file = stream.fileno() if stream is not None else None
        self._parent = os.getppid()
        self._limit = limit
        self._heard = b""
        self.deadline = time.monotonic() + limit if stream is None else None
        """When to give up, in `time.monotonic`'s seconds; None while the process lives."""

    @property
    def closed(self) -> bool:
        """Nothing more will be heard."""
        return self.deadline is not None

    @property
    def overdue(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def made_progress(self) -> None:
        """Puts off giving up where nobody else will bring away the rest."""
        if self._file is None:
            self.deadline = time.monotonic() + self._limit

    def wait(self, seconds: float) -> list[dict[str, Any]]:
        """Returns after `seconds`, or as soon as the process says or is something new: what it said."""
        if self._file is None or self.closed:
            time.sleep(min(seconds, 1.0))
            return []
        ready, _, _ = select.select([self._file], [], [], seconds)
        if ready:
            heard = os.read(self._file, 65536)
            *words, self._heard = (self._heard + heard).split(b"\n")
            if not heard:
                self._close()
            return [json.loads(word) for word in words]
        if os.getppid() != self._parent:
            self._close()  # a forked child of it may keep the pipe open
        return []

    def _close(self) -> None:
        self.deadline = time.monotonic() + self._limit


Tell = Callable[[dict[str, object]], None]
"""Takes a report: a `message` with its `level`, facts, or both, and the `run` that they are about."""


@dataclass(frozen=True)
class OtherServer:
    """What is to be known of a server that is not the run's own."""

    notes: str
    """The folder in that of the run for the server's ids, and for how far it has the run."""
    artifacts: Path
    """As `Server` takes it."""


class Reach:
    """Whether people were told that the server is away; once is enough for all runs."""

    told = False


class Sender:
    """What is done for one run. `finished`: nothing more will be written to its journal."""

    def __init__(
        self, run_dir: Path, uri: str, life: LifeLine, tell: Tell, *, system_metrics: bool = False,
        finished: bool = False, reach: Reach | None = None, other: OtherServer | None = None,
    ) -> None:  # fmt: skip
        self._run_dir = run_dir
        self._other = other
        self._notes = run_dir / other.notes if other is not None else run_dir
        self._uri = uri
        self._life = life
        self._tell = tell
        self._wants_system_metrics = system_metrics
        self._system_metrics: SystemMetrics | None = None
        self._reach = reach or Reach()
        self._lock = ExitStack()
        self._is_held = False
        self._delivery: Delivery | None = None
        self._failures = 0
        self._retried = -math.inf
        self.finished = finished
        self.due = time.monotonic()
        """When to go on, in `time.monotonic`'s seconds."""

    @property
    def has_sent(self) -> bool:
        """The server lacked something that it has now."""
        return self._delivery is not None and self._delivery.has_sent

    @property
    def ended(self) -> bool:
        """Nothing more will be written to the journal."""
        return self.finished or self._life.closed

    def step(self) -> bool | None:
        """Does the next part of the work. None where there is or may come more; at the end, whether all is sent."""
        try:
            return self._step()
        except OSError as fault:  # somebody deletes the run's folder
            self._trouble(str(fault))
            self.due = time.monotonic() + self._pause()
            return False if self._life.overdue else None

    def _step(self) -> bool | None:
        if not self._is_held and not self._hold():
            self.due = time.monotonic() + _BUSY_LOCK
            return False if self._life.overdue else None
        if self._delivery is None:
            from sr_runner.tracking.delivery import Delivery

            journal, was_ended = self._run_dir / JOURNAL, self.ended
            start, _ = last_life(journal)
            if start is None and not was_ended:  # the disk may be full
                self.due = time.monotonic() + _POLL
                return None
            if start is None:
                self.report(f"{journal} has no start line: there is nothing to send", level="warning")
                return False
            if self._other is not None:  # to which the ids of the run's own mean nothing
                start |= {"run_id": None, "experiment_id": None, "artifacts": str(self._other.artifacts)}
                start |= {key: first_start(journal, start)[key] for key in ("time", "run_name")}
            server = Server(self._uri, Path(start["artifacts"]))
            self._delivery = Delivery(self._run_dir, server, start, self.report, notes=self._notes)
        was_ended = self.ended
        if was_ended:
            self._stop_measuring()
        if self._life.overdue and self._failures:
            return False
        busy = self._work(self._delivery)
        drained = was_ended and not busy and not self._failures
        if busy:
            self._life.made_progress()
        if drained or self._life.overdue:
            return self._end(self._delivery, drained)
        self.due = time.monotonic() + (0.0 if busy else self._pause())
        return None

    def close(self) -> None:
        """Lets go of the run."""
        self._stop_measuring()
        self._lock.close()

    def _hold(self) -> bool:
        """Waits, from step to step, for an earlier sender of the run, whose training process was killed, to end."""
        try:
            self._lock.enter_context(file_lock(self._notes / LOCK, wait=False))
            self._is_held = True
        except Busy as holder:
            if self._life.overdue:
                self._trouble(f"it is being sent by {holder}: expected nobody else to send it")
        return self._is_held

    def report(self, message: str | None = None, *, level: str = "info", **facts: object) -> None:
        """Says something to whoever started this, if it is still there."""
        report: dict[str, object] = {"run": str(self._run_dir), **facts}
        if message is not None:
            report |= {"message": masked_text(message), "level": level}
            logger.info("%s: %s", self._run_dir, message)
        with suppress(OSError, ValueError):
            self._tell(report)

    def _work(self, delivery: Delivery) -> bool:
        """One part of the work, whose failure is noted and reported; whether there may be more right away."""
        from sr_runner.tracking.run_writer import RunGone

        try:
            busy = delivery.work()
            if self._wants_system_metrics and self._system_metrics is None and not self.ended:
                self._measure(delivery)
            if time.monotonic() - self._retried > _AGAIN:
                self._retried = time.monotonic()
                delivery.retry_left_over()
        except (Unreachable, Refused, OSError) as fault:
            self._trouble(str(fault), denied=isinstance(fault, Denied))
            return False
        except RunGone as gone:
            self.report(
                f"run {gone} is no longer in MLflow; it is recorded there again, from its start", level="warning"
            )
            delivery.forget()
            return True
        except Exception as fault:  # of one run's: the others are to get there
            logger.exception("%s", self._run_dir)
            self._trouble(repr(fault))
            return False
        self._recovered()
        return busy

    def _measure(self, delivery: Delivery) -> None:
        """Starts the system metrics once it is known at which step they go on."""
        from sr_runner.tracking.system_metrics import SystemMetrics

        try:
            self._system_metrics = SystemMetrics(self._run_dir / SYSTEM, delivery.next_system_step())
        except (ImportError, OSError) as error:
            self._wants_system_metrics = False
            self.report(f"no system metrics: {error}", level="warning")

    def _stop_measuring(self) -> None:
        if self._system_metrics is not None:
            self._system_metrics.stop()
            self._system_metrics = None

    def _trouble(self, reason: str, *, denied: bool = False) -> None:
        self._failures += 1
        logger.info("%s: attempt %d failed: %s", self._run_dir, self._failures, reason)
        self.report(trouble=reason)
        if self._failures == 2 and not self._reach.told:
            self._reach.told = True
            where = masked_text(os.environ.get("MLFLOW_TRACKING_URI", ""))
            what, when = f"cannot be reached ({reason})", "is back"
            if denied:
                what, when = f"refuses: {reason}", "takes them"
            self.report(
                f"{where} {what}; training goes on, the points are kept in {self._run_dir / JOURNAL} and are sent when "
                f"it {when}", level="warning",
            )  # fmt: skip

    def _recovered(self) -> None:
        if self._failures:
            self.report(trouble=None)
        if self._reach.told:
            self._reach.told = False
            self.report("the tracking server takes points again")
        self._failures = 0

    def _pause(self) -> float:
        """Seconds until the next look or try: longer and longer while the server is away, short at the end."""
        if self.ended:
            return _POLL_AT_THE_END
        return min(_SLOWEST, 2.0 ** (self._failures - 1)) if self._failures else _POLL

    def _end(self, delivery: Delivery, drained: bool) -> bool:
        from sr_runner.tracking.run_writer import RunGone

        try:
            if drained and delivery.retry_left_over():
                drained = False
                self.report(trouble="the server does not take some files")
            _, finished = last_life(self._run_dir / JOURNAL)
            if not finished:
                reason = "that was killed, or the journal has lost its end; a resume adds what the checkpoint holds"
                if self._other is None:
                    self.report(f"{JOURNAL} has no entry of the run's end: {reason}", level="warning")
                if not self.finished:
                    delivery.kill(int((self._run_dir / JOURNAL).stat().st_mtime * 1000))
            if drained and delivery.has_sent:
                delivery.mark()
        except (Unreachable, Refused, RunGone, OSError) as fault:
            logger.info("the end could not be recorded: %s", fault)
            return False
        return drained


def serve(life: LifeLine, senders: dict[Path, Sender], make: Callable[[Path, bool], Sender]) -> bool:
    """Goes on until nothing more is heard and every run is done with; whether all of all of them is sent.

    `senders` are those known from the start, `make` one for a run folder, with or without system metrics.
    """
    all_sent = True
    while senders or not life.closed:
        pause = min((each.due for each in senders.values()), default=math.inf) - time.monotonic()
        for word in life.wait(min(max(0.0, pause), _POLL)):
            kind, folder = next((kind, Path(word[kind])) for kind in ("begin", "end", "drop") if kind in word)
            if kind == "end" and folder in senders:
                senders[folder].finished, senders[folder].due = True, time.monotonic()
            elif kind != "end" and (old := senders.pop(folder, None)) is not None:
                old.close()
            if kind == "begin":
                senders[folder] = make(folder, bool(word.get("system_metrics")))
        if not senders:
            continue
        folder, sender = min(senders.items(), key=lambda each: each[1].due)  # the one that waits longest
        if (life.closed or sender.due <= time.monotonic()) and (done := sender.step()) is not None:
            sender.close()
            sender.report(done=done)
            del senders[folder]
            all_sent &= done
    return all_sent


Copied = Literal["copied", "up to date", "not all of it"]
"""What became of a copy. Up to date: nothing had to be sent."""


def copy(run_dir: Path, uri: str, artifacts: Path, tell: Tell, *, was_killed: bool) -> Copied:
    """Brings what the journal in `run_dir` holds to the server `uri`, beside the run's own.

    What the run has there is not sent again, whoever brought it. A database at `uri` keeps files in `artifacts`. A run
    that has no end in its journal goes on, or `was_killed`.
    """
    set_limits()
    life, other = LifeLine(None, _DELIVER_SECONDS), OtherServer(copy_notes(uri), artifacts)
    sender = Sender(run_dir, uri, life, tell, finished=not was_killed, other=other)
    if not serve(life, {run_dir: sender}, lambda folder, _: sender):
        return "not all of it"
    return "copied" if sender.has_sent else "up to date"


def copy_notes(uri: str) -> str:
    """The folder in that of a run where it stands what `copy` brought to `uri`."""
    return f"copy-{hashlib.sha256(masked_text(uri).encode()).hexdigest()[:12]}"


def last_life(journal: Path) -> tuple[dict[str, Any] | None, bool]:
    """The journal's last start line, None where there is none, and whether a finish line follows it."""
    start: dict[str, Any] | None = None
    finished = False
    for line in read_lines(journal):
        if line.kind == "start":
            start, finished = line.event or start, False
        elif line.kind == "finish":
            finished = True
    return start, finished


def first_start(journal: Path, otherwise: dict[str, Any]) -> dict[str, Any]:
    """The journal's first start line: a run begins when it was started first, and keeps the name that it got then."""
    lines = (line.event for line in read_lines(journal) if line.kind == "start")
    return next((event for event in lines if event is not None), otherwise)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sr_runner.tracking.sender", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder of the run, or of what the runs belong to")
    parser.add_argument("--deliver", action="store_true", help="send what is left of an ended run, and end")
    arguments = parser.parse_args(argv)
    if arguments.deliver and not (arguments.folder / JOURNAL).is_file():
        parser.error(f"{arguments.folder}: expected the folder of a run, with {JOURNAL} in it")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Exit status 0: all is sent; 1: something is left in the journal."""
    arguments = _arguments(argv)
    os.nice(5)  # never in the way of the training
    sys.stderr = MaskedStream(sys.stderr)
    reports, sys.stdout = sys.stdout, sys.stderr  # MLflow prints links
    mask_logs()
    set_limits()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    folder = arguments.folder.absolute()
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        raise SystemExit("set MLFLOW_TRACKING_URI to where the run is to be recorded")
    life = LifeLine(None, _DELIVER_SECONDS) if arguments.deliver else LifeLine(sys.stdin.buffer, _ORPHAN_SECONDS)
    reach = Reach()

    def tell(report: dict[str, object]) -> None:
        reports.write(json.dumps(report) + "\n")
        reports.flush()

    def make(run_dir: Path, system_metrics: bool, finished: bool = False) -> Sender:
        return Sender(run_dir, uri, life, tell, system_metrics=system_metrics, finished=finished, reach=reach)

    senders = {folder: make(folder, False, True)} if arguments.deliver else {}
    return 0 if serve(life, senders, make) else 1


if __name__ == "__main__":
    sys.exit(main())
