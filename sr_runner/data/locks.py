"""Locks between processes that end with the process that holds them, however that ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(path: Path, *, waiting: str) -> Iterator[bool]:
    """Hold the lock on the file `path`, made if need be; logs `waiting` where another process holds it.

    Gives False where the file system has no locks: then nobody is kept out. Raises `OSError` where `path` cannot be
    made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as lock:
        yield _acquire(lock.fileno(), waiting)


def _acquire(lock: int, waiting: str) -> bool:
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info(waiting)
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        logger.warning("No locks on this file system: processes that start together may do the same work.")
        return False
    return True
