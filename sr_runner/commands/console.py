"""How the small tools begin and end. Imports nothing heavy, so that their help pages come at once."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence

from sr_runner.errors import RequestError, RunError


def run_command(name: str, page: str, words: Sequence[str], work: Callable[[], None]) -> int:
    """The exit status of `work`: 0, 2 (wrong request), 1 (failed), 130 (Ctrl-C); messages go to standard error.

    `--help` among the `words` shows the `page` instead, and so do no words at all.
    """
    if not words or any(word in ("-h", "--help", "help") for word in words):
        sys.stdout.write(page)
        return 0 if words else 2
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        work()
        sys.stdout.flush()
    except RequestError as error:
        return _tell(name, error, 2)
    except (RunError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # `sr-eval ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
            return 0
        return _tell(name, error, 1)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _tell(name: str, error: Exception, status: int) -> int:
    sys.stderr.write(f"{name}: {error}\n")
    return status
