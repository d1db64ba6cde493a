"""One process per attempt: on this machine by a lock, among machines by a lease in the store."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sr_runner.attempt.build import Parts
from sr_runner.checkpoint import Lease
from sr_runner.errors import RequestError
from sr_runner.files import open_own, own_folder, read_file
from sr_runner.runs.catalogue import Attempt, Catalogue
from sr_runner.runs.folder import LOCK
from sr_runner.signals import StopSignal


class Holding(ExitStack):
    """What this process holds until it is done with its run."""

    def __init__(self, parts: Parts, catalogue: Catalogue, stop: StopSignal):
        super().__init__()
        self._parts, self._catalogue, self._stop = parts, catalogue, stop
        self._lease: Lease | None = None

    def hold(self, attempt: Attempt, fresh: bool) -> None:
        """Make `attempt` this process's own. Raises `RequestError` where another one has it."""
        self.enter_context(held(self._catalogue.folder(attempt), f"run {attempt}"))
        store, seconds = self._parts.store, self._parts.checkpoint.lease_seconds
        if store is not None and seconds is not None:
            lease = Lease(store, str(attempt), seconds, fresh=fresh, patience=lambda: self._stop.within(_PATIENCE) / 2)
            self._lease = self.enter_context(lease)

    def confirm(self) -> None:
        """Raises `RunError` where the attempt is another process's by now."""
        if self._lease is not None:
            self._lease.confirm()


log = logging.getLogger(__name__)

_PATIENCE = 10.0
"""Twice the seconds that a store which hangs is waited for when the lease is given up; of a stopping signal's grace,
half of what is left."""


@contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Hold the attempt in `folder` for this process; the kernel lets go of it when the process dies, however it dies.

    Raises `RequestError` that names the host and the process of the one who holds it already, or a link in its place.
    """
    own_folder(folder.parents[1], folder).mkdir(parents=True, exist_ok=True)
    with os.fdopen(open_own(folder / LOCK, os.O_RDWR | os.O_CREAT), "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                log.debug("%s cannot be locked (%s): only the lease in the store decides", folder, error)
                yield
                return
            raise RequestError(
                f"{what} is in use by {_holder(folder)}: two processes cannot train one run. Wait for it or stop it; "
                "trainer.resume=false starts an attempt of its own"
            ) from error
        file.truncate(0)
        file.write(json.dumps({"host": platform.node(), "pid": os.getpid()}))
        file.flush()
        yield


def _holder(folder: Path) -> str:
    try:
        holder = json.loads(read_file(folder / LOCK))
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
