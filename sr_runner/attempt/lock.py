"""One process per attempt: on this machine by a lock, among machines by a lease in the store."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path

from sr_runner.attempt.build import Parts
from sr_runner.checkpoint import Lease
from sr_runner.checkpoint.lease import in_use
from sr_runner.errors import RequestError
from sr_runner.files import Busy, file_lock, own_folder
from sr_runner.runs.catalogue import Attempt, Catalogue
from sr_runner.runs.folder import LOCK
from sr_runner.signals import StopSignal

_PATIENCE = 10.0
"""Twice the seconds that a store which hangs is waited for when the lease is given up; of a stopping signal's grace,
half of what is left."""


class AttemptLock(ExitStack):
    """What this process holds until it is done with its run."""

    def __init__(self, parts: Parts, catalogue: Catalogue, stop: StopSignal):
        super().__init__()
        self._parts, self._catalogue, self._stop = parts, catalogue, stop
        self._lease: Lease | None = None

    def hold(self, attempt: Attempt, fresh: bool) -> None:
        """Make `attempt` this process's own. Raises `RequestError` that names the process which has it already, or a
        link in the place of its folder."""
        folder = own_folder(self._catalogue.runs, self._catalogue.folder(attempt))
        try:
            self.enter_context(file_lock(folder / LOCK, wait=False))
        except Busy as holder:
            raise RequestError(in_use(str(attempt), holder)) from None
        store, seconds = self._parts.store, self._parts.checkpoint.lease_seconds
        if store is not None and seconds is not None:
            lease = Lease(store, str(attempt), seconds, fresh=fresh, patience=lambda: self._stop.within(_PATIENCE) / 2)
            self._lease = self.enter_context(lease)

    def hold_again(self, folder: Path) -> None:
        """Somebody has deleted the run's folder, and with it the file that was locked."""
        with suppress(Busy, OSError):
            self.enter_context(file_lock(folder / LOCK, wait=False))

    def confirm(self) -> None:
        """Raises `RunError` where the attempt is another process's by now."""
        if self._lease is not None:
            self._lease.confirm()
