"""Where log lines go: the terminal, and a file per run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from logging.handlers import MemoryHandler
from pathlib import Path

from sr_runner.files import open_own, written_anew
from sr_runner.masking import mask_logs
from sr_runner.streams import DETAIL
from sr_runner.training.progress import BarSafeHandler

_SHORT = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
_WARNING = logging.Formatter("%(asctime)s %(levelname)s: %(message)s", "%H:%M:%S")
_FULL = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")


class _ByLevel(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return (_WARNING if record.levelno >= logging.WARNING else _SHORT).format(record)


def to_console(only: Sequence[str] = ()) -> None:
    """Log to standard error, above a running progress bar; with `only`, beside warnings no more than what these loggers
    say. Calling it again changes no more than that."""
    mask_logs()
    root = logging.getLogger()
    _speak()
    logging.captureWarnings(True)
    if not any(isinstance(handler, BarSafeHandler) for handler in root.handlers):
        handler = BarSafeHandler()
        handler.setFormatter(_ByLevel())
        handler.addFilter(lambda record: record.name != "py.warnings" and not hasattr(record, *DETAIL))
        root.addHandler(handler)
    for each in root.handlers if only else ():
        if isinstance(each, BarSafeHandler):
            each.addFilter(lambda record: record.name in only or _matters(record))


def _speak() -> None:
    """Say what sr-run says by itself, or more where `hydra.verbose` asks for it."""
    ours = logging.getLogger("sr_runner")
    asked = logging.DEBUG in (logging.getLogger().level, ours.level)
    ours.setLevel(logging.DEBUG if asked else logging.INFO)


def _matters(record: logging.LogRecord) -> bool:
    """Beside what a sweep says, which tells of a job that failed itself."""
    is_failure = record.name == "sr_runner.attempt.execute" and record.levelno >= logging.ERROR
    return record.levelno >= logging.WARNING and not is_failure


def remember() -> None:
    """Keep all log lines from now on for the next `to_file`: a run's parts log before it has a folder."""
    mask_logs()
    _remembered()
    _speak()
    # Where no file comes (the request was wrong), it drops them from time to time.
    logging.getLogger().addHandler(MemoryHandler(20_000, logging.CRITICAL + 1, target=logging.NullHandler()))


def _remembered() -> list[logging.LogRecord]:
    """What was kept; from now on nothing is."""
    root = logging.getLogger()
    memories = [handler for handler in root.handlers if isinstance(handler, MemoryHandler)]
    for memory in memories:
        root.removeHandler(memory)
    return [record for memory in memories for record in memory.buffer]


def to_nowhere() -> None:
    """Nothing on standard error, for a process whose main process logs for it."""
    logging.captureWarnings(True)
    logging.getLogger().addHandler(logging.NullHandler())


class LogFile(logging.Handler):
    """Appends to a file. Where somebody deletes that meanwhile, it is written anew, with all that it held."""

    def __init__(self, path: Path):
        self._path = path
        self._file = open_own(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        super().__init__()  # which has it closed at the end
        self.on_deleted: Callable[[], None] = lambda: None
        """Called once the file is there again."""
        self.setFormatter(_FULL)

    def keep(self) -> None:
        """See to it that the file is there."""
        with suppress(OSError), self.lock or nullcontext():
            if not self._path.exists():
                self._file = written_anew(self._path, self._file)
                self.on_deleted()

    def emit(self, record: logging.LogRecord) -> None:
        self.keep()
        try:
            os.write(self._file, f"{self.format(record)}\n".encode(errors="replace"))
        except OSError:  # a full disk: what is logged stands on standard error as well
            self.handleError(record)

    def close(self) -> None:
        super().close()
        os.close(self._file)


@contextmanager
def to_file(path: Path) -> Iterator[LogFile]:
    """Append all log lines to `path` as well, those since `remember` first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler, root = LogFile(path), logging.getLogger()
    for record in _remembered():
        handler.handle(record)
    root.addHandler(handler)
    try:
        yield handler
    finally:
        root.removeHandler(handler)
        handler.close()
