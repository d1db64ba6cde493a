"""What the store could not be given, on this machine's own disk, until it can."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sr_runner.checkpoint import format
from sr_runner.checkpoint.format import Blob, DamagedError, Name
from sr_runner.checkpoint.stores import Store, steps_of

log = logging.getLogger(__name__)


class Spool:
    """Holds the newest checkpoint of one attempt that has not reached the store."""

    def __init__(self, store: Store, attempt: str):
        """`store` is a folder on this machine."""
        self.store, self._attempt = store, attempt

    def steps(self) -> list[int]:
        return steps_of(self.store, self._attempt)

    def keep(self, step: int, put: Callable[[Store, str], None]) -> str:
        """Keep the checkpoint that `put` writes into a store under a name, and none older; where it is.

        "" where that failed as well, which is logged.
        """
        name = str(Name.of(self._attempt, step))
        try:
            put(self.store, name)
            self.drop(step - 1)
        except OSError as error:
            log.warning("%s could not be spooled either: %s", name, error)
            return ""
        return f"{self.store.url}/{name}"

    def drop(self, up_to: int) -> None:
        """Remove what has done its duty, since a checkpoint of `up_to` or later is safe."""
        for step in self.steps():
            if step <= up_to:
                with suppress(OSError):
                    self.store.delete(str(Name.of(self._attempt, step)))

    def bring_home(self, home: Store, scratch: Path, confirm: Callable[[], None]) -> None:
        """Copy what an earlier process left here into `home`, if it is newer than what is there.

        `confirm` raises where this process must not write there.
        """
        try:
            newest = max(self.steps(), default=-1)
            if newest > max(steps_of(home, self._attempt), default=-1):
                name = str(Name.of(self._attempt, newest))
                folder = self.store.get(name, scratch)
                confirm()
                home.put(name, [Blob.of_file(folder / file) for file in (*format.FILES, format.MANIFEST)])
                log.info("checkpoint %s, which had been spooled, is in %s now", name, home.url)
            self.drop(newest)
        except (OSError, DamagedError) as error:
            log.warning("what is spooled in %s could not be brought to %s: %s", self.store.url, home.url, error)
