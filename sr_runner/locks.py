"""Locks between processes that the system lets go of when their holder dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


class Busy(Exception):
    """Another process holds the lock."""


@contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds the exclusive lock on the file `path`, which is made if need be and stays.

    Raises `Busy` where it is held by another process and `wait` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise Busy(str(path)) from None
        yield
    finally:
        os.close(file)


@contextmanager
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
