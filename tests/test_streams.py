"""Standard streams that nobody reads, or that cannot be written."""

from __future__ import annotations

import errno
import io
import os
import sys

import pytest

from sr_runner.errors import RunError
from sr_runner.streams import ReaderGone, standard_streams


class Failing(io.StringIO):
    """A stream whose every write and flush fails."""

    def __init__(self, error: OSError):
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    flush = write  # type: ignore[assignment]


def test_messages_that_cannot_be_written_are_lost_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Failing(OSError(errno.ENOSPC, "No space left")))
    monkeypatch.setattr(sys.stderr, "flush", lambda: None)
    with standard_streams():
        assert sys.stderr.write("lost") == 4
        sys.stderr.flush()


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (BrokenPipeError(), ReaderGone, "no reader any more"),
        (OSError(errno.ENOSPC, "No space left"), RunError, r"cannot be written to \(No space left\)"),
    ],
)
def test_output_that_cannot_be_written_is_an_error_of_its_own(
    monkeypatch: pytest.MonkeyPatch, error: OSError, kind: type[Exception], said: str
) -> None:
    stream = Failing(error)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(stream, "flush", lambda: None)
    with standard_streams(), pytest.raises(kind, match=said):
        sys.stdout.write("asked for")
    assert sys.stdout is stream


def test_what_a_closed_pipe_still_holds_is_dropped_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with standard_streams():
            sys.stdout.write("held in the buffer")
            os.close(reader)
        stream.write("goes nowhere, as Python's own flush at its end")
    assert stream.closed


def test_a_stream_that_was_closed_before_the_start_is_no_file_that_is_opened_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with standard_streams():
        assert sys.stdin is not None and sys.stdin.fileno() == 0
