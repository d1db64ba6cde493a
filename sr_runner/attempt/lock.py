"""One process per attempt: on this machine by a lock, among machines by a lease in the store."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from sr_runner.attempt.build import Parts
from sr_runner.checkpoint import Lease
from sr_runner.checkpoint.lease import InUse, in_use
from sr_runner.files import Busy, file_lock, own_folder
from sr_runner.runs.catalogue import Attempt, Catalogue
from sr_runner.runs.folder import LOCK
from sr_runner.signals import StopSignal

log = logging.getLogger(__name__)

_LOOK_EVERY = 1.0  # seconds
_PATIENCE = 10.0
"""Twice the seconds that a store which hangs is waited for when the lease is given up; of a stopping signal's grace,
half of what is left."""


class AttemptLock(ExitStack):
    """What this process holds until it is done with its run."""

    def __init__(self, parts: Parts, catalogue: Catalogue, stop: StopSignal, *, waits: bool = False):
        """With `waits`, a run that another process has is waited for."""
        super().__init__()
        self._parts, self._catalogue, self._stop, self._waits = parts, catalogue, stop, waits
        self._lease: Lease | None = None

    def hold(self, attempt: Attempt, fresh: bool) -> None:
        """Make `attempt` this process's own. Raises `InUse` that names the process which has it already, or
        `RequestError` for a link in the place of its folder."""
        folder, is_first_look = own_folder(self._catalogue.runs, self._catalogue.folder(attempt)), True
        while True:
            try:
                self._take(attempt, folder, fresh)
                return
            except InUse as error:
                if not self._waits:
                    raise
                if is_first_look:
                    log.warning("%s. This job waits", str(error).partition(":")[0])
            is_first_look = False
            time.sleep(_LOOK_EVERY)

    def _take(self, attempt: Attempt, folder: Path, fresh: bool) -> None:
        with ExitStack() as taken:
            try:
                taken.enter_context(file_lock(folder / LOCK, wait=False))
            except Busy as holder:
                raise in_use(str(attempt), holder) from None
            store, seconds = self._parts.store, self._parts.checkpoint.lease_seconds
            if store is not None and seconds is not None:
                lease = Lease(
                    store, str(attempt), seconds, fresh=fresh, patience=lambda: self._stop.within(_PATIENCE) / 2
                )
                self._lease = taken.enter_context(lease)
            self.enter_context(taken.pop_all())

    def hold_again(self, folder: Path) -> None:
        """Somebody has deleted the run's folder, and with it the file that was locked."""
        with suppress(Busy, OSError):
            self.enter_context(file_lock(folder / LOCK, wait=False))

    def confirm(self) -> None:
        """Raises `RunError` where the attempt is another process's by now."""
        if self._lease is not None:
            self._lease.confirm()
