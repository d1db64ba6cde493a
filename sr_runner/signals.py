"""Signals that ask a run to stop."""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

_REST = 0.15
"""The share of the grace that is kept for what comes after the last checkpoint."""
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_ECHO = 0.05
"""Seconds until a signal that came amid an import is looked at again."""
_OF_TERMINALS = (signal.SIGHUP, signal.SIGQUIT)
"""What a terminal sends when it is closed, or for Ctrl-\\. `nohup` and `trap '' HUP` have them ignored, on purpose."""

Handler = Callable[[int, FrameType | None], object]


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
    `Stopped` at once, or as soon as no module is being imported: there, whatever is imported may swallow it, and C++
    ends the process. A second Ctrl-C does not wait: it prints `last_words` and ends the process there and then.

    Who listened before gets it afterwards, by `hand_over`: what submitit does about a preemption is to have the job
    queued again and to end the process, which has to come after the checkpoint.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.grace_seconds: float | None = None
        """From the first signal on, the process ends within this time, whatever hangs; None: there is no limit."""
        self.last_words: Callable[[], str] = str
        """One line, without secrets, that is made in the midst of anything: it may take no lock."""
        self._deferred = 0
        self._received = 0.0
        self._signals: list[int] = []
        self._before: dict[int, Any] = {}
        self._is_echo = False
        self._timer: threading.Timer | None = None

    def install(self) -> StopSignal:
        """Listen, where Python allows it (only the main thread may). A terminal's signal that is ignored stays so."""
        if threading.current_thread() is threading.main_thread():
            for signum in STOPPING:
                if signum in _OF_TERMINALS and signal.getsignal(signum) is signal.SIG_IGN:
                    continue
                self._before[signum] = signal.signal(signum, self._receive)
        return self

    def uninstall(self) -> None:
        """Give the signals back to whoever listened before."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    def hand_over(self) -> None:
        """Tell whoever listened before of every signal that came, now that the checkpoint is there. It may raise or end
        the process."""
        if self._timer is not None:
            self._timer.cancel()
        with self.deferred():
            for signum in self._signals:
                handler = self._before.get(signum)
                if callable(handler) and handler is not signal.default_int_handler and not _is_ours(handler):
                    handler(signum, None)

    @property
    def requested(self) -> bool:
        return self.signum is not None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, signals are noted, not raised."""
        self.defer()
        try:
            yield
        finally:
            self._deferred -= 1

    def defer(self) -> None:
        """From now on, signals are noted, not raised."""
        self._deferred += 1

    def finish(self) -> None:
        """The work is done: from now on signals are noted, and end nothing any more."""
        self.defer()
        self.grace_seconds = None
        if self._timer is not None:
            self._timer.cancel()

    def note(self, signum: int) -> None:
        """Take `signum` as received: the grace begins, unless it has begun."""
        if self.signum is None:
            self._received = time.monotonic()
            if self.grace_seconds is not None:
                self._timer = threading.Timer(self.grace_seconds, self._end)
                self._timer.daemon = True
                self._timer.start()
        self.signum = signum

    @property
    def deadline(self) -> float | None:
        """Until when (of `time.monotonic`) a checkpoint can be written: what is left of the grace is for the rest."""
        if self.signum is None or self.grace_seconds is None:
            return None
        return self._received + self.grace_seconds * (1 - _REST)

    def within(self, seconds: float) -> float:
        """`seconds`, or the fewer that the grace leaves."""
        if self.signum is None or self.grace_seconds is None:
            return seconds
        return min(seconds, max(0.0, self._received + self.grace_seconds - time.monotonic() - 0.5))

    def raise_if_requested(self) -> None:
        if self.signum is not None:
            raise Stopped(self.signum)

    def _end(self) -> None:
        log.error("trainer.grace_seconds=%s are over: ended where it was. What was committed stays", self.grace_seconds)
        with suppress(BaseException):  # such as the exit of a handler that has requeued the job
            self.hand_over()
        os._exit(128 + (self.signum or 0))

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and signum == signal.SIGINT:
            with suppress(Exception):
                # Past Python's streams, which may be amid a line, and only where it is taken at once.
                if select.select([], [2], [], 0)[1]:
                    os.write(2, self.last_words().encode()[: select.PIPE_BUF])
            os._exit(128 + signum)
        if self._is_echo:
            self._is_echo = False
        elif signum not in self._signals:
            self._signals.append(signum)
        self.note(self.signum or signum)
        if self._deferred:
            return
        if _imports(frame):
            echo = threading.Timer(_ECHO, self._send_again)
            echo.daemon = True
            echo.start()
            return
        raise Stopped(self.signum or signum)

    def _send_again(self) -> None:
        if self._before:
            self._is_echo = True
            os.kill(os.getpid(), signal.SIGTERM)


def ignore() -> None:
    """From now on, no signal stops this process."""
    _answer_all(signal.SIG_IGN)


def exit_with(status: int) -> None:
    """From now on, when all is done, a signal ends this process at once with the exit status that it has anyway."""
    _answer_all(lambda signum, frame: os._exit(status))


def _answer_all(answer: Handler | signal.Handlers) -> None:
    if threading.current_thread() is threading.main_thread():
        for signum in STOPPING:
            signal.signal(signum, answer)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _is_ours(handler: object) -> bool:
    return isinstance(getattr(handler, "__self__", None), StopSignal)
