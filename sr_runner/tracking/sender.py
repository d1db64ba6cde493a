"""The process that brings a run's journal to the tracking server: `python -m sr_runner.tracking.sender RUN_DIR`.

Started by the training process, which holds the other end of its standard input: the line `finish` there means that
nothing more comes, an end without that line that the training process has died. It says what it has to say as one
JSON object a line on standard output. The server's URI comes in `$MLFLOW_TRACKING_URI`, so that credentials in it
stand in no file and no list of processes.

By hand: `--deliver RUN_DIR` sends what an ended run still owes the server.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO

from sr_runner.files import Busy, file_lock
from sr_runner.masking import MaskedStream, mask_logs, masked_text
from sr_runner.mlflow_server import Refused, Server, Unreachable, set_limits
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
    """What the sender knows of the training process: whether it lives, and whether it has reported that it is done."""

    def __init__(self, stream: IO[bytes] | None, limit: float) -> None:
        self._file = stream.fileno() if stream is not None else None
        self._parent = os.getppid()
        self._limit = limit
        self._heard = b""
        self.finished = stream is None
        self.deadline = time.monotonic() + limit if stream is None else None
        """When to give up, in `time.monotonic`'s seconds; None while the training process waits or trains."""

    @property
    def ended(self) -> bool:
        """Nothing more will be written to the journal."""
        return self.finished or self.deadline is not None

    @property
    def died(self) -> bool:
        """The training process is gone without having reported that it is done."""
        return self.deadline is not None and not self.finished

    @property
    def overdue(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def made_progress(self) -> None:
        """Puts off giving up where nobody else will bring away the rest."""
        if self._file is None:
            self.deadline = time.monotonic() + self._limit

    def wait(self, seconds: float) -> None:
        """Returns after `seconds`, or as soon as the training process says or is something new."""
        if self._file is None or self.deadline is not None:
            time.sleep(min(seconds, 1.0))
            return
        ready, _, _ = select.select([self._file], [], [], seconds)
        if ready:
            word = os.read(self._file, 4096)
            self._heard += word
            self.finished = self.finished or b"finish\n" in self._heard
            if not word:
                self._dies()
        elif os.getppid() != self._parent:
            self._dies()  # a forked child of it may keep the pipe open

    def _dies(self) -> None:
        self.deadline = time.monotonic() + self._limit


class Sender:
    """One life of the sender for one run."""

    def __init__(self, run_dir: Path, life: LifeLine, reports: TextIO, *, system_metrics: bool) -> None:
        self._run_dir = run_dir
        self._life = life
        self._reports = reports
        self._wants_system_metrics = system_metrics
        self._system_metrics: SystemMetrics | None = None
        self._failures = 0
        self._warned = False
        self._retried = -math.inf

    def report(self, message: str | None = None, *, level: str = "info", **facts: object) -> None:
        """Says something to the training process, if it is still there."""
        report: dict[str, object] = dict(facts)
        if message is not None:
            report |= {"message": masked_text(message), "level": level}
            logger.info("%s", message)
        with suppress(OSError, ValueError):
            self._reports.write(json.dumps(report) + "\n")
            self._reports.flush()

    def run(self, uri: str) -> bool:
        """Sends until everything is sent and the training process has ended; False if something had to be left."""
        from sr_runner.tracking.delivery import Delivery

        start = self._start()
        if start is None:
            return False
        delivery = Delivery(self._run_dir, Server(uri, Path(start["artifacts"])), start, self.report)
        drained = False
        while not drained and not self._life.overdue:
            was_ended = self._life.ended
            if was_ended and self._system_metrics is not None:
                self._system_metrics.stop()
            busy = self._work(delivery)
            drained = was_ended and not busy and not self._failures
            if busy:
                self._life.made_progress()
            if not drained:
                self._life.wait(0 if busy else self._pause())
        return self._end(delivery, drained)

    def _start(self) -> dict[str, Any] | None:
        """The journal's last start line, waited for where the disk is full; None where none comes."""
        journal = self._run_dir / JOURNAL
        while (start := last_life(journal)[0]) is None and not self._life.finished and not self._life.overdue:
            self._life.wait(_POLL)
        if start is None:
            self.report(f"{journal} has no start line: there is nothing to send", level="warning")
        return start

    def _work(self, delivery: Delivery) -> bool:
        """One part of the work, whose failure is noted and reported; whether there may be more right away."""
        from sr_runner.tracking.run_writer import RunGone

        try:
            busy = delivery.work()
            if self._wants_system_metrics and self._system_metrics is None and not self._life.ended:
                self._measure(delivery)
            if time.monotonic() - self._retried > _AGAIN:
                self._retried = time.monotonic()
                delivery.retry_left_over()
        except (Unreachable, Refused, OSError) as fault:
            self._trouble(str(fault))
            return False
        except RunGone as gone:
            self.report(
                f"run {gone} is no longer in MLflow; it is recorded there again, from its start", level="warning"
            )
            delivery.forget()
            return True
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

    def _trouble(self, reason: str) -> None:
        self._failures += 1
        logger.info("attempt %d failed: %s", self._failures, reason)
        self.report(trouble=reason)
        if self._failures == 2 and not self._warned:
            self._warned = True
            where = masked_text(os.environ.get("MLFLOW_TRACKING_URI", ""))
            self.report(
                f"{where} cannot be reached ({reason}); training goes on, the points are kept in "
                f"{self._run_dir / JOURNAL} and are sent when it is back",
                level="warning",
            )

    def _recovered(self) -> None:
        if self._failures:
            self.report(trouble=None)
        if self._warned:
            self._warned = False
            self.report("the tracking server is reachable again")
        self._failures = 0

    def _pause(self) -> float:
        """Seconds until the next look or try: longer and longer while the server is away, short at the end."""
        if self._life.ended:
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
                self.report(f"{JOURNAL} has no entry of the run's end: {reason}", level="warning")
                if self._life.died:
                    delivery.kill(int(time.time() * 1000))
        except (Unreachable, Refused, RunGone, OSError) as fault:
            logger.info("the end could not be recorded: %s", fault)
            return False
        if drained:
            self.report(done=True)
        return drained


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


@contextmanager
def _only_sender(run_dir: Path, life: LifeLine) -> Iterator[None]:
    """Waits for an earlier sender of the run, whose training process was killed, to end."""
    while True:
        try:
            with file_lock(run_dir / LOCK, wait=False):
                yield
                return
        except Busy:
            if life.overdue:
                raise
            life.wait(_BUSY_LOCK)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sr_runner.tracking.sender", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the run's folder")
    parser.add_argument("--deliver", action="store_true", help="send what is left of an ended run, and end")
    parser.add_argument("--system-metrics", action="store_true", help="measure the machine's load as well")
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
    try:
        with _only_sender(folder, life):
            sender = Sender(folder, life, reports, system_metrics=arguments.system_metrics)
            return 0 if sender.run(uri) else 1
    except Busy as holder:
        logger.error("%s is being sent by %s: expected nobody else to send it", folder / JOURNAL, holder)
        return 1


if __name__ == "__main__":
    sys.exit(main())
