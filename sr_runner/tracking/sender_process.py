"""The training process' end of the sender: starts it, passes on what it says, starts it again if it dies."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from sr_runner.files import open_own

logger = logging.getLogger(__name__)

_MODULE = "sr_runner.tracking.sender"
_ROOT = Path(__file__).resolve().parents[2]
_RESTARTS = 5
_GRACE = 2.0
"""Seconds that a sender has to end once it has to give up, before it is killed. All it holds is on the disk."""


def sender_command(*arguments: str) -> list[str]:
    """The command line of the sender. `-P` keeps the current folder, which may hold anything, out of the imports."""
    return [sys.executable, "-P", "-m", _MODULE, *arguments]


def sender_environment(uri: str) -> dict[str, str]:
    """The environment that the sender needs; the only place where credentials in `uri` are written to."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
    if "site-packages" not in _ROOT.parts:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), str(_ROOT)]))
    return environment


@dataclass
class Served:
    """A run that a sender serves."""

    folder: str
    system_metrics: bool
    ended: bool = False
    """Nothing more comes."""
    reports: dict[str, Any] = field(default_factory=dict)
    """The newest of what the sender reported of it: `run_id`, `experiment_id`, `trouble`, `done`."""
    done_with: threading.Event = field(default_factory=threading.Event)


class SenderProcess:
    """The sender of this process, for all runs that are recorded on one server.

    It starts with the first run and ends when none is left, unless that is a job of a sweep: another one may follow.
    Its standard input is its life line: when that closes, this process has died.
    """

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self.environment = environment
        self.process = os.getpid()
        """Who started it: a fork has its own."""
        self._folder = folder
        self._log = folder / "sender.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts = 0
        self._served: dict[str, Served] = {}
        self._lock = threading.RLock()
        self._hurry = threading.Event()
        self.is_over = False

    def begin(self, run_dir: Path, *, system_metrics: bool) -> Served:
        """Serves the run from now on."""
        with self._lock:
            before = self._served.get(str(run_dir))
            served = self._served[str(run_dir)] = Served(str(run_dir), system_metrics)
            if before is not None:  # it goes on before all of its earlier life is sent: they get there together
                before.reports, before.done_with = served.reports, served.done_with
            if self._process is None or self.is_over:
                self.is_over = False
                self._start()
            else:
                self._tell(*_words(served))
            return served

    def end(self, served: Served) -> None:
        """Tells the sender that nothing more comes of the run."""
        with self._lock:
            served.ended = True
            self._hurry.set()
            self._tell({"end": served.folder})

    def settle(self, served: Served, wait: float, *, stays: bool) -> bool:
        """After `end`: True when the sender has delivered everything of the run within `wait` seconds.

        It has nothing to do with the run afterwards. With no other run it ends, unless it `stays` for the next one.
        """
        self._wait(served, wait)
        delivered = bool(served.reports.get("done"))
        with self._lock:
            self._served.pop(served.folder, None)
            if self._served or stays:
                if not served.done_with.is_set():
                    self._tell({"drop": served.folder})
                return delivered
            self.is_over = True
        self._give_up(at_once=not served.done_with.is_set())
        return delivered

    def _start(self) -> None:
        try:
            self._spawn()
        except OSError as error:
            logger.warning("tracking: the sender could not be started (%s); points are kept in the journal", error)
            self._is_no_more()
            return
        self._tell(*(word for served in self._served.values() for word in _words(served)))

    def _is_no_more(self) -> None:
        self.is_over = True
        for served in self._served.values():
            served.done_with.set()

    def _spawn(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)  # that of a sweep is another's
        with os.fdopen(open_own(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as log:
            self._process = subprocess.Popen(
                sender_command(str(self._folder)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment,
                start_new_session=True,  # a Ctrl-C in the terminal is for the training process
            )
        threading.Thread(target=self._listen, args=(self._process,), name="tracking-reports", daemon=True).start()

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as stream:
            self._read_reports(stream)
        code = process.wait()
        with self._lock:
            left = [served for served in self._served.values() if not served.done_with.is_set()]
            if self.is_over or not left or self._restarts >= _RESTARTS:
                if left and not self.is_over:
                    logger.warning(
                        "tracking: the sender ended %d times; points are kept in the journal", self._restarts + 1
                    )
                self._is_no_more()  # last: nobody waits for this thread, which may end with the process
                return
            self._restarts += 1
            self._hurry.clear()
            if any(served.ended for served in left):
                self._hurry.set()
        logger.info("tracking: the sender ended (exit status %d); it is started again; see %s", code, self._log)
        self._hurry.wait(2.0**self._restarts)
        with self._lock:
            if not self.is_over:
                self._start()

    def _read_reports(self, stream: IO[bytes]) -> None:
        """Follows what a sender says until it ends: facts of a run are kept, messages go into the log."""
        for raw in stream:
            try:
                report = json.loads(raw)
            except ValueError:
                logger.debug("the sender wrote %r", raw)
                continue
            message, level, run = (report.pop(key, None) for key in ("message", "level", "run"))
            served = self._served.get(run)
            if served is not None:
                served.reports.update(report)
            if message:
                logger.log(logging.WARNING if level == "warning" else logging.INFO, "tracking: %s", message)
            if served is not None and "done" in report:
                self._restarts = 0
                served.done_with.set()

    def _tell(self, *words: Mapping[str, Any]) -> None:
        process = self._process
        if process is None or process.stdin is None:
            return
        with suppress(OSError, ValueError):  # the sender is gone; who starts it again tells it all
            process.stdin.write("".join(json.dumps(word) + "\n" for word in words).encode())
            process.stdin.flush()

    def _wait(self, served: Served, wait: float) -> None:
        deadline = time.monotonic() + wait
        left = wait
        while not served.done_with.wait(min(5.0, left)):
            left = deadline - time.monotonic()
            if left <= 0:
                return
            trouble = served.reports.get("trouble")
            doing = f"waiting for the server: {trouble}" if trouble else "sending the last points"
            logger.info("tracking: %s (up to %.0f s more)", doing, left)

    def _give_up(self, *, at_once: bool) -> None:
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            with suppress(OSError):  # a word that the sender did not live to hear
                process.stdin.close()
        if at_once and process.poll() is None:
            process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _words(served: Served) -> list[dict[str, Any]]:
    """All that a sender is told of a run."""
    begin = {"begin": served.folder, "system_metrics": served.system_metrics}
    return [begin, *([{"end": served.folder}] if served.ended else [])]


_senders: list[SenderProcess] = []


def sender_for(uri: str, folder: Path) -> SenderProcess:
    """The sender of this process for `uri`, whose log is in the folder where it was started first."""
    environment = sender_environment(uri)
    _senders[:] = [each for each in _senders if not each.is_over and each.process == os.getpid()]
    for sender in _senders:
        if sender.environment == environment:
            return sender
    _senders.append(SenderProcess(environment, folder))
    return _senders[-1]
