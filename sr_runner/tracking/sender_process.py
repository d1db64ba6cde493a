"""The training process' end of the sender: starts it, passes on what it says, starts it again if it dies."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
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


class SenderProcess:
    """One sender for one run, alive from `start` to `settle`.

    Its standard input is its life line: when that closes without a report of the end, the training process has died.
    """

    def __init__(self, run_dir: Path, uri: str, options: Sequence[str] = ()) -> None:
        self._command = sender_command(*options, str(run_dir))
        self._environment = sender_environment(uri)
        self._log = run_dir / "sender.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts = 0
        self._finishing = threading.Event()
        self._ended = threading.Event()
        self.reports: dict[str, Any] = {}
        """The newest of what the sender reported of itself: `run_id`, `experiment_id`, `trouble`, `done`."""

    def start(self) -> None:
        try:
            self._spawn()
        except OSError as error:
            logger.warning("tracking: the sender could not be started (%s); points are kept in the journal", error)
            self._ended.set()

    def leave(self) -> None:
        """Tells the sender that nothing more comes."""
        self._finishing.set()
        self._tell(b"finish\n")

    def settle(self, wait: float) -> bool:
        """After `leave`: True when the sender has delivered everything within `wait` seconds; it has ended then."""
        self._wait(wait)
        self._give_up()
        return bool(self.reports.get("done"))

    def _spawn(self) -> None:
        with os.fdopen(open_own(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment,
                start_new_session=True,  # a Ctrl-C in the terminal is for the training process
            )
        threading.Thread(target=self._listen, args=(self._process,), name="tracking-reports", daemon=True).start()

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as stream:
            _read_reports(stream, self.reports)
        code = process.wait()
        if self._finishing.is_set() or self._restarts >= _RESTARTS:
            self._ended.set()
            if not self.reports.get("done") and not self._finishing.is_set():
                logger.warning("tracking: the sender ended %d times; points are kept in the journal", _RESTARTS + 1)
            return
        self._restarts += 1
        logger.info("tracking: the sender ended (exit status %d); it is started again; see %s", code, self._log)
        self._finishing.wait(2.0**self._restarts)
        self.start()
        if self._finishing.is_set():
            self._tell(b"finish\n")

    def _tell(self, word: bytes) -> None:
        process = self._process
        if process is None or process.stdin is None:
            return
        with suppress(OSError, ValueError):  # the sender is gone
            process.stdin.write(word)
            process.stdin.flush()

    def _wait(self, wait: float) -> None:
        deadline = time.monotonic() + wait
        left = wait
        while not self._ended.wait(min(5.0, left)):
            left = deadline - time.monotonic()
            if left <= 0:
                return
            trouble = self.reports.get("trouble")
            doing = f"waiting for the server: {trouble}" if trouble else "sending the last points"
            logger.info("tracking: %s (up to %.0f s more)", doing, left)

    def _give_up(self) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None and not self.reports.get("done"):
            process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._ended.wait(_GRACE)
        if process.stdin is not None:
            with suppress(OSError):  # a word that the sender did not live to hear
                process.stdin.close()


def _read_reports(stream: IO[bytes], reports: dict[str, Any]) -> None:
    """Follows what a sender says until it ends: facts go into `reports`, messages into the log."""
    for raw in stream:
        try:
            report = json.loads(raw)
        except ValueError:
            logger.debug("the sender wrote %r", raw)
            continue
        message = report.pop("message", None)
        level = report.pop("level", "info")
        reports.update(report)
        if message:
            logger.log(logging.WARNING if level == "warning" else logging.INFO, "tracking: %s", message)
