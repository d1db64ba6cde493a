"""Where log lines go: the terminal, and a file per run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sr_runner.progress import BarSafeHandler

_SHORT = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
_WARNING = logging.Formatter("%(asctime)s %(levelname)s: %(message)s", "%H:%M:%S")
_FULL = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")


class _ByLevel(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return (_WARNING if record.levelno >= logging.WARNING else _SHORT).format(record)


def to_console() -> None:
    """Log to standard error, above a running progress bar. Calling it again changes nothing."""
    root = logging.getLogger()
    logging.getLogger("sr_runner").setLevel(logging.INFO)
    logging.captureWarnings(True)
    if not any(isinstance(handler, BarSafeHandler) for handler in root.handlers):
        handler = BarSafeHandler()
        handler.setFormatter(_ByLevel())
        handler.addFilter(lambda record: record.name != "py.warnings")  # those are for the file
        root.addHandler(handler)


@contextmanager
def to_file(path: Path) -> Iterator[None]:
    """Append all log lines to `path` as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(_FULL)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
