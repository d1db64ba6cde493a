"""Signals that ask a run to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(SystemExit):
    """The run was stopped by a signal, in good order. Exit status 128+N.

    A `SystemExit`, so that a sweep ends with it instead of going on to the next job.
    """

    def __init__(self, signum: int):
        super().__init__(128 + signum)
        self.signum = signum


class StopSignal:
    """Remembers the first stopping signal.

    While training it is only noted, and the loop stops at the next safe point; before and after that it raises
    `Stopped` at once. A second Ctrl-C does not wait: it ends the process there and then.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._deferred = False

    def install(self) -> StopSignal:
        """Listen, where Python allows it (only the main thread may)."""
        if threading.current_thread() is threading.main_thread():
            for signum in STOPPING:
                signal.signal(signum, self._receive)
        return self

    @property
    def requested(self) -> bool:
        return self.signum is not None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, signals are noted, not raised."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def raise_if_requested(self) -> None:
        if self.signum is not None:
            raise Stopped(self.signum)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and signum == signal.SIGINT:
            os._exit(128 + signum)
        self.signum = self.signum or signum
        if not self._deferred:
            raise Stopped(self.signum)
