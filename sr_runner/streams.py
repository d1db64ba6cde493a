"""The standard streams of a command, whatever they are connected to: a terminal that is closed while the command runs,
a pipe without a reader, a full disk, nothing at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from sr_runner.errors import RunError

DETAIL = {"detail": True}
"""`extra` of log lines that are for files, and not for a terminal."""


class ReaderGone(RunError):
    """Nobody reads standard output any more (`sr-eval ... | head`)."""


@contextmanager
def standard_streams() -> Iterator[None]:
    """Within, nothing that becomes of standard error matters: what cannot be written there is lost. Standard output
    raises `ReaderGone` or another `RunError` instead of `OSError`, so that nobody takes it for another file's.

    A stream that the process was started without (`>&-`) is the null device from now on: otherwise the next file that
    is opened would become it, and get what is printed.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        _open_missing(descriptor)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Output(before[0]), _Messages(before[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in before:
            try:
                stream.flush()
            except OSError:
                drop(stream)


def drop(stream: TextIO) -> None:
    """Have whatever is, and is still to be, written to `stream` go nowhere. Python would try again at its end, fail
    again, and make that the exit status."""
    with suppress(OSError, ValueError):  # of a stream that is no file
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _open_missing(descriptor: int) -> None:
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)
        os.set_inheritable(descriptor, True)


class _Messages:
    """A stream for messages. A run is not to fail for want of somebody who reads them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Output:
    """A stream for what was asked for: who does not get it has to learn of it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _explained():
            return self._stream.write(text)

    def flush(self) -> None:
        with _explained():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderGone("standard output has no reader any more") from error
    except OSError as error:
        raise RunError(f"standard output cannot be written to ({error.strerror})") from error
