"""Locks between processes that the system lets go of when their holder dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from sr_runner.files import open_own

logger = logging.getLogger(__name__)

_LONGEST = 200
"""Bytes that are read of what a lock's file says."""


class Busy(Exception):
    """Another process holds the lock: which one, says the message."""


@contextmanager
def file_lock(path: Path, *, wait: bool = True, waiting: str = "") -> Iterator[bool]:
    """Holds the exclusive lock on the file `path`, which is made if need be, says who holds it, and stays.

    Logs `waiting` where another process holds it, or raises `Busy` if `wait` is false. Gives False where the file
    system has no locks: then nobody is kept out. Raises `OSError` where `path` cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(open_own(path, os.O_RDWR | os.O_CREAT), "r+b", buffering=0) as file:
        exclusive = True
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise Busy(file.read(_LONGEST).decode(errors="replace") or "another process") from None
                logger.info(waiting or f"Waiting for the process that holds {path}.")
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            _warn_once()
            exclusive = False
        if exclusive:
            with suppress(OSError):  # a full disk is no reason not to hold it
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()}".encode())
        yield exclusive


@cache
def _warn_once() -> None:
    logger.warning("No locks on this file system: processes that start together may do the same work.")
