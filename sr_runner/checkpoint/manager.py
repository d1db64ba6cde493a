"""The Checkpoint Manager: the training state of one attempt, saved and restored."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sr_runner.checkpoint.format import DamagedError, Name
from sr_runner.checkpoint.reader import Reader, read_manifest
from sr_runner.checkpoint.retention import Info, Policy, doomed
from sr_runner.checkpoint.snapshot import HostSnapshot
from sr_runner.checkpoint.spool import Spool
from sr_runner.checkpoint.state import TrainingState
from sr_runner.checkpoint.stores import Store
from sr_runner.checkpoint.writer import Write, Writer
from sr_runner.config.settings import CheckpointSettings
from sr_runner.errors import RunError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveReport:
    """What one save cost."""

    step: int
    stall_seconds: float
    """What the train step waited: for an earlier write to end, and for the snapshot."""
    write_seconds: float
    """Serialising, hashing, writing and flushing in the background, up to the commit."""


class CheckpointManager:
    """Saves without stopping the train step, restores the newest good state, and applies retention.

    `save` copies the state to host memory and returns; a background thread (`Writer`) serialises, hashes and stores it.
    A write that fails with `OSError` is logged at once: the state goes into the spool, a folder of this machine, if
    there is one, the older checkpoints stay and the next save tries again, until `max_failures` in a row.
    """

    def __init__(
        self,
        store: Store,
        attempt: str,
        *,
        keep: Sequence[Policy] = (),
        scratch: Path,
        spool: Store | None = None,
        max_failures: int | None = CheckpointSettings.max_failures,
        when_busy: str = CheckpointSettings.when_busy,
        should_stop: Callable[[], bool] = lambda: False,
        confirm: Callable[[], None] = lambda: None,
    ):
        """`attempt` is `<identity>/<attempt>`; `scratch` a local folder for downloads.

        `when_busy`: a save that finds an earlier write under way waits for it ("wait"), or takes a second snapshot
        that is written next, unless a still newer one replaces it first ("replace"). Once `should_stop`, nothing waits
        for a store any more but `save_by`. `confirm` is called before every commit and raises where this process must
        not write any more (see `Lease`).
        """
        self.store = store
        self.attempt = attempt
        self._keep = tuple(keep)
        self._scratch = scratch
        self._reader = Reader(store, attempt, scratch, spool)
        self._spool = Spool(spool, attempt) if spool is not None else None
        self._max_failures = max_failures
        self._replaces = when_busy == "replace"
        self._should_stop = should_stop
        self._confirm = confirm
        self._on_saved: Callable[[SaveReport], None] = lambda report: None
        self._on_failure: Callable[[int, int], None] = lambda step, in_a_row: None
        self._writer = Writer(self._write)
        self._known: dict[int, Info] | None = None
        self._failures = 0
        self._last_failure = ""
        self._fatal: BaseException | None = None
        self._given_up = False
        self.saved: int | None = None
        """The newest step that this process has committed, in the store or in the spool."""

    def steps(self) -> list[int]:
        """The steps that have a committed checkpoint, ascending."""
        return self._reader.steps()

    def restore(self, step: int | None = None, *, own: bool = True) -> TrainingState | None:
        """The newest good state (or exactly that of `step`): see `Reader.restore`."""
        return self._reader.restore(step, own=own)

    # -- save ------------------------------------------------------------------------------------------------------

    def prepare(
        self,
        state: TrainingState,
        *,
        on_saved: Callable[[SaveReport], None] = lambda report: None,
        on_failure: Callable[[int, int], None] = lambda step, in_a_row: None,
    ) -> None:
        """Before training: allocate the snapshot's memory, remove what killed writes left, and bring what had to be
        spooled into the store.

        `on_saved` is called from the background just before each commit (so that what it records is never missing for
        a checkpoint that exists), `on_failure` with the step and the number of failures in a row.
        """
        self._on_saved, self._on_failure = on_saved, on_failure
        self._writer.allocate(state)
        try:
            self.store.clean(self.attempt)
        except OSError as error:
            log.warning("leftovers of killed writes in %s could not be removed: %s", self.store.url, error)
        if self._spool is not None and self._spool.steps():
            self._writer.run(partial(self._empty, self._spool))

    def save(self, state: TrainingState, *, wait: bool = False) -> bool:
        """Snapshot `state` and write it in the background; with `wait`, return once it is committed (or failed).

        False where that had to wait for an earlier write and the process was asked to stop meanwhile.
        """
        started = time.perf_counter()
        if not self._replaces and not self.idle():
            return False
        self.check()
        self._writer.submit(state, started)
        if wait:
            self.wait()
        return True

    def save_by(self, state: TrainingState, deadline: float | None, *, again: bool = True) -> None:
        """Save `state` and return by `deadline` (of `time.monotonic`; None: whenever it is committed).

        For the end of a process that has to stop. Where the store takes too long, as one that hangs does, the
        state goes into the spool instead. Without `again`, `state` is what is being written already.
        """
        if deadline is None or self._spool is None:
            if self._writer.idle_by(deadline) and again:
                self.save(state)
                self._writer.idle_by(deadline)
            return
        write: Write | None = None
        if self._writer.idle_by(_share(deadline, 1 / 3)):
            self.check()
            if not again:
                return
            write = self._writer.submit(state, time.perf_counter())
            if self._writer.idle_by(_share(deadline, 2 / 3)):
                return
        self._writer.drop_waiting()
        self._given_up = True
        log.warning("%s does not answer: step %d goes into the spool", self.store.url, state.step)
        write = write or Write.of(state, HostSnapshot())  # an earlier snapshot is still being written
        spooling = threading.Thread(target=self._into_spool, args=(write,), name="checkpoint-spool", daemon=True)
        spooling.start()
        spooling.join(max(0.0, deadline - time.monotonic()))

    def wait(self) -> None:
        """Until nothing is being written. Raises what made writing impossible."""
        self._writer.idle_by(None)
        self.check()

    def idle(self) -> bool:
        """Wait until nothing is being written, or until the process is asked to stop: then False."""
        while not self._writer.idle_by(time.monotonic() + 0.1):
            if self._should_stop():
                return False
        return True

    def finish(self) -> bool:
        """At the end of a run: wait as `idle` does. Raises `RunError` if the last checkpoint could not be written."""
        if not self.idle():
            return False
        self.check()
        if self._last_failure:
            raise RunError(
                f"the last checkpoint could not be written: {self._last_failure}. "
                "The same command with trainer.resume=true goes on from the newest one that there is"
            )
        return True

    def check(self) -> None:
        """Raise, on the caller's thread, what ended writing for good. Costs nothing where all is well."""
        if self._fatal is not None:
            raise self._fatal

    def close(self, deadline: float | None = None) -> None:
        """Wait for the last write, whatever became of it, but not past `deadline` (of `time.monotonic`)."""
        if not self._given_up:
            self._writer.idle_by(deadline)

    # -- on the writer's thread ------------------------------------------------------------------------------------

    def _write(self, write: Write) -> None:
        state = write.state
        name = self._name(state.step)
        started = time.perf_counter()

        def before_commit() -> None:
            self._confirm()
            self._on_saved(SaveReport(state.step, write.stall, time.perf_counter() - started))

        try:
            write.put(self.store, name, before_commit)
            self.saved = state.step
            self._failures, self._last_failure = 0, ""
            self._retain(Info(state.step, time.time(), dict(state.metrics)))
            if self._spool is not None:
                self._spool.drop(state.step)
        except OSError as error:
            self._failed(write, error)
        except BaseException as error:
            self._fatal = error
            log.error(
                "checkpoint %s could not be written: %s", name, error if isinstance(error, RunError) else repr(error)
            )

    def _failed(self, write: Write, error: OSError) -> None:
        self._failures += 1
        kept = self._into_spool(write)
        self._last_failure = f"{error}{f' (it is kept in {kept})' if kept else ''}"
        log.warning(
            "checkpoint %s could not be written (%s): %d in a row. Training goes on, older checkpoints stay%s",
            self._name(write.state.step), error, self._failures, f"; this one is kept as {kept}" if kept else "",
        )  # fmt: skip
        self._on_failure(write.state.step, self._failures)
        if self._max_failures is not None and self._failures >= self._max_failures:
            self._fatal = RunError(
                f"{self._failures} checkpoints in a row could not be written; the last: {self._last_failure}"
            )

    def _into_spool(self, write: Write) -> str:
        """Where the checkpoint is kept on this machine; "" where it is not."""
        kept = self._spool.keep(write.state.step, write.put) if self._spool is not None else ""
        if kept:
            self.saved = write.state.step
        return kept

    def _empty(self, spool: Spool) -> None:
        try:
            spool.bring_home(self.store, self._scratch, self._confirm)
        except RunError as error:
            self._fatal = error

    def _retain(self, newest: Info) -> None:
        """Apply the policies after a commit. Failing to delete is no reason to fail."""
        if self._known is None:
            self._known = {step: self._info(step) for step in self.steps()}
        else:
            self._forget_deleted(newest.step)
        self._known[newest.step] = newest
        for step in doomed(list(self._known.values()), self._keep):
            name = self._name(step)
            try:
                with suppress(FileNotFoundError):  # somebody else deleted it
                    self.store.delete(name)
                del self._known[step]
            except OSError as error:
                log.warning("old checkpoint %s could not be deleted: %s", name, error)

    def _forget_deleted(self, newest: int) -> None:
        """Count no more on what somebody else has deleted since the commit before. `sr-ckpt prune` leaves the newest
        one: where that is gone, a warning says so."""
        assert self._known is not None
        try:
            there = {*self.steps(), newest}
        except OSError:
            return
        last = max(self._known, default=newest)
        if last not in there:
            log.warning(
                "somebody else has deleted the newest checkpoint of %s, that of step %d; that of step %d is there now",
                self.attempt, last, newest,
            )  # fmt: skip
        self._known = {step: info for step, info in self._known.items() if step in there}

    def _info(self, step: int) -> Info:
        try:
            manifest = read_manifest(self.store, self._name(step), self._scratch)
        except (DamagedError, OSError):
            return Info(step)
        return Info(step, manifest.created, manifest.metrics)

    def _name(self, step: int) -> str:
        return str(Name.of(self.attempt, step))


def _share(deadline: float, part: float) -> float:
    """The moment at which `part` of the time until `deadline` is over."""
    now = time.monotonic()
    return now + (deadline - now) * part
