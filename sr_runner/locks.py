"""Locks between processes that the system lets go of when their holder dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sr_runner.files import open_own

logger = logging.getLogger(__name__)


class Busy(Exception):
    """Another process holds the lock."""


@contextmanager
def file_lock(path: Path, *, wait: bool = True, waiting: str = "") -> Iterator[bool]:
    """Holds the exclusive lock on the file `path`, which is made if need be and stays.

    Logs `waiting` where another process holds it, or raises `Busy` if `wait` is false. Gives False where the file
    system has no locks: then nobody is kept out. Raises `OSError` where `path` cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(open_own(path, os.O_WRONLY | os.O_CREAT), "wb") as file:
        exclusive = True
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise Busy(str(path)) from None
                logger.info(waiting or f"Waiting for the process that holds {path}.")
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            logger.warning("No locks on this file system: processes that start together may do the same work.")
            exclusive = False
        yield exclusive
