"""The two ways in which a request can end without a traceback.

Everything else that is raised is a failure of the run itself (exit status 1, traceback in the run's log).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def printable(text: str) -> str:
    """`text` in one line that a terminal takes for nothing but text: what is no visible character (line ends, ESC,
    bidirectional overrides, ...) is escaped as in Python."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


_LONGEST = 1000


class Lines(Exception):
    """An error whose arguments are the lines of its message. What they quote of names and files of others begins no
    line of its own, and is cut where it is long."""

    def __str__(self) -> str:
        lines = [printable(str(line)) for line in self.args]
        return "\n".join(line if len(line) <= _LONGEST else f"{line[:400]} ... {line[-500:]}" for line in lines)


class RequestError(Lines, ValueError):
    """What was asked for cannot be done: a message of a line or two, exit status 2, nothing was started.

    The message names the config key, quotes the value, and says what was expected. Parts that are built from plain
    arguments may raise it or a plain `ValueError`; the command line treats both alike while it builds them.
    """


class RunError(Lines, RuntimeError):
    """The run cannot go on for a reason outside the code (no good checkpoint, ...): exit status 1, no traceback."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the choice closest to `word`, or an empty string where none is close."""
    by_letters = {choice.casefold(): choice for choice in reversed([*choices])}
    close = difflib.get_close_matches(word.casefold(), by_letters, n=1, cutoff=0.6)
    return f" Did you mean '{by_letters[close[0]]}'?" if close else ""


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    """Raises `RequestError`, which lists them, where `value` is none of `choices`."""
    *others, last = choices
    if value not in (*others, last):
        raise RequestError(f"{key}={value}: expected {', '.join(others)} or {last}.{nearest(value, (*others, last))}")
