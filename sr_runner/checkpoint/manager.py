"""The Checkpoint Manager: the training state of one attempt, saved and restored."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sr_runner.checkpoint import codec, format, tensors
from sr_runner.checkpoint.format import Blob, DamagedError, Manifest
from sr_runner.checkpoint.retention import Info, Policy, doomed
from sr_runner.checkpoint.snapshot import HostSnapshot
from sr_runner.checkpoint.spool import Spool, steps_of
from sr_runner.checkpoint.stores import Store
from sr_runner.errors import RunError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingState:
    """Everything that a run is at one step."""

    step: int
    model: Mapping[str, torch.Tensor]
    """The weights for inference (EMA where it is on), by parameter name."""
    training: Mapping[str, Any]
    """A tree of everything else: tensors and plain data, anywhere in it."""
    config: str
    """The run's config as YAML, secrets masked."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What `model.safetensors` says about its network."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The evaluation at this step, for retention."""


@dataclass(frozen=True)
class SaveReport:
    """What one save cost."""

    step: int
    stall_seconds: float
    """What the train step waited: for an earlier write to end, and for the snapshot."""
    write_seconds: float
    """Serialising, hashing, writing and flushing in the background, up to the commit."""


@dataclass
class _Write:
    """A checkpoint on its way into the store."""

    state: TrainingState
    snapshot: HostSnapshot
    tensors: Mapping[str, torch.Tensor]
    rest: dict[str, Any]
    stall: float


class CheckpointManager:
    """Saves without stopping the train step, restores the newest good state, and applies retention.

    `save` copies the state to host memory and returns; a background thread serialises, hashes and stores it. A write
    that fails with `OSError` is reported at once: the state goes into the spool, a folder of this machine, if there
    is one, the older checkpoints stay and the next save tries again, until `max_failures` in a row.
    """

    def __init__(
        self,
        store: Store,
        attempt: str,
        *,
        keep: Sequence[Policy],
        scratch: Path,
        spool: Store | None = None,
        max_failures: int | None = 3,
        when_busy: str = "wait",
        should_stop: Callable[[], bool] = lambda: False,
        confirm: Callable[[], None] = lambda: None,
        on_saved: Callable[[SaveReport], None] = lambda report: None,
        on_failure: Callable[[int, int], None] = lambda step, in_a_row: None,
    ):
        """`attempt` is `<identity>/<attempt>`; `scratch` a local folder for downloads.

        `when_busy`: a save that finds an earlier write under way waits for it ("wait"), or takes a second snapshot
        that is written next, unless a still newer one replaces it first ("replace"). Once `should_stop`, nothing waits
        for a store any more but `save_by`. `confirm` is called before every
        commit and raises where this process must not write any more (see `Lease`). `on_saved` is called from the
        background just before the commit (so that what it records is never missing for a checkpoint that exists),
        `on_failure` with the step and the number of failures in a row.
        """
        self.store = store
        self.attempt = attempt
        self._keep = tuple(keep)
        self._scratch = scratch
        self._spool = Spool(spool, attempt) if spool is not None else None
        self._max_failures = max_failures
        self._replaces = when_busy == "replace"
        self._should_stop = should_stop
        self._confirm = confirm
        self._on_saved = on_saved
        self._on_failure = on_failure
        self._free = [HostSnapshot()]
        self._thread: threading.Thread | None = None
        self._waiting: _Write | None = None
        self._lock = threading.Lock()
        self._known: dict[int, Info] | None = None
        self._failures = 0
        self._last_failure = ""
        self._fatal: BaseException | None = None
        self._given_up = False

    # -- restore ---------------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """The steps that have a committed checkpoint, ascending."""
        return steps_of(self.store, self.attempt)

    def restore(self, step: int | None = None, *, own: bool = True) -> TrainingState | None:
        """The newest good state (or exactly that of `step`), or None where no checkpoint was ever committed.

        A damaged checkpoint is named in the log with the file and the reason, and quarantined, unless the attempt is
        not `own`: somebody else may be writing there, whose affair that is. Raises `RunError` where there are
        checkpoints and none is good: starting from scratch would hide the loss.
        """
        try:
            candidates = self._candidates(step)
            for candidate, store in candidates:
                name = f"{self.attempt}/step-{candidate:08d}"
                try:
                    return read(store.get(name, self._scratch), candidate)
                except DamagedError as damage:
                    kept = f" It is kept as {store.quarantine(name, str(damage))}" if own else ""
                    log.error("checkpoint %s is damaged: %s.%s", name, damage, kept)
                except FileNotFoundError:
                    if own:
                        raise
                    log.warning("checkpoint %s has just been deleted by its own run", name)
        except OSError as error:
            raise RunError(f"{self.store.url} cannot be read: {error}. Nothing was started") from error
        if not candidates:
            return None
        raise RunError(
            f"none of the {len(candidates)} checkpoints of {self.attempt} in {self.store.url} is intact (see above). "
            "Nothing was started. They are kept there as damaged-*; trainer.resume=false starts a fresh attempt, "
            "trainer.resume=<id or path> takes another run"
        )

    def _candidates(self, step: int | None) -> list[tuple[int, Store]]:
        """Steps and where they are, newest first. What the store has counts before the spool's copy of it."""
        stored = dict.fromkeys(self.steps(), self.store)
        spooled = dict.fromkeys(self._spool.steps(), self._spool.store) if self._spool is not None else {}
        everywhere = spooled | stored
        if step is not None:
            return [(step, everywhere.get(step, self.store))]
        found = sorted(everywhere.items(), reverse=True)
        if found and found[0][0] not in stored:
            log.warning("the newest checkpoint of %s is still in the spool: %s", self.attempt, found[0][1].url)
        return found

    # -- save ------------------------------------------------------------------------------------------------------

    def prepare(self, state: TrainingState) -> None:
        """Allocate the snapshot's memory before training, so that the first save costs what the others do; clear what
        killed writes left, and bring home what had to be spooled."""
        self._free[0].take(_split(state)[0])
        try:
            self.store.clean(self.attempt)
        except OSError as error:
            log.warning("leftovers of killed writes in %s could not be removed: %s", self.store.url, error)
        if self._spool is not None and self._spool.steps():
            self._start(self._bring_home)

    def save(self, state: TrainingState, *, wait: bool = False) -> bool:
        """Snapshot `state` and write it in the background; with `wait`, return once it is committed (or failed).

        False where that had to wait for an earlier write and the process was asked to stop meanwhile.
        """
        started = time.perf_counter()
        if not self._replaces and not self.idle():
            return False
        self.check()
        write = self._taken(state, started)
        with self._lock:
            if self._thread is not None:
                self._waiting = write
            else:
                self._start(lambda: self._write_all(write))
        if wait:
            self.wait()
        return True

    def save_by(self, state: TrainingState, deadline: float | None, *, again: bool = True) -> None:
        """Save `state` and return by `deadline` (of `time.monotonic`; None: whenever it is committed).

        For the end of a process that was told to stop. Where the store takes too long, as one that hangs does, the
        state goes into the spool instead. Without `again`, `state` is what is being written already.
        """
        if deadline is None or self._spool is None:
            if self._idle_by(deadline) and again:
                self.save(state)
                self._idle_by(deadline)
            return
        if self._idle_by(_share(deadline, 1 / 3)):
            self.check()
            if not again:
                return
            write = self._taken(state, time.perf_counter())
            with self._lock:
                self._start(lambda: self._write_all(write))
            if self._idle_by(_share(deadline, 2 / 3)):
                return
        else:
            with self._lock:
                self._waiting = None
            flat, rest = _split(state)
            snapshot = HostSnapshot()  # the other one is still being read
            write = _Write(state, snapshot, snapshot.take(flat), rest, 0.0)
        self._given_up = True
        log.warning("%s does not answer: step %d goes into the spool", self.store.url, state.step)
        spooling = threading.Thread(target=self._into_spool, args=(write,), name="checkpoint-spool", daemon=True)
        spooling.start()
        spooling.join(max(0.0, deadline - time.monotonic()))

    def wait(self) -> None:
        """Until nothing is being written. Raises what made writing impossible."""
        self._idle_by(None)
        self.check()

    def idle(self) -> bool:
        """Wait until nothing is being written, or until the process is asked to stop: then False."""
        while not self._idle_by(time.monotonic() + 0.1):
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
            self._idle_by(deadline)

    def _taken(self, state: TrainingState, started: float) -> _Write:
        flat, rest = _split(state)
        with self._lock:
            replaced, self._waiting = self._waiting, None
            if replaced is not None:
                log.info("step %d was not written: step %d replaces it", replaced.state.step, state.step)
                snapshot = replaced.snapshot
            else:
                snapshot = self._free.pop() if self._free else HostSnapshot()
        tensors = snapshot.take(flat)
        return _Write(state, snapshot, tensors, rest, time.perf_counter() - started)

    def _start(self, job: Callable[[], None]) -> None:
        # A daemon: a store that hangs must not keep a process that was told to stop.
        self._thread = threading.Thread(target=job, name="checkpoint", daemon=True)
        self._thread.start()

    def _idle_by(self, deadline: float | None) -> bool:
        """Wait until nothing is being written, at most until `deadline`; whether that is so."""
        while (thread := self._thread) is not None:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                return False
            with self._lock:
                if self._thread is thread:
                    self._thread = None
        return True

    def _write_all(self, write: _Write) -> None:
        """`write`, and then whatever has come to wait meanwhile."""
        following: _Write | None = write
        while following is not None:
            self._write(following)
            with self._lock:
                self._free.append(following.snapshot)
                following, self._waiting = self._waiting, None
                if following is None:
                    self._thread = None

    def _write(self, write: _Write) -> None:
        state = write.state
        name = f"{self.attempt}/step-{state.step:08d}"
        started = time.perf_counter()

        def before_commit() -> None:
            self._confirm()
            self._on_saved(SaveReport(state.step, write.stall, time.perf_counter() - started))

        try:
            self._put(self.store, name, write, before_commit)
            self._failures, self._last_failure = 0, ""
            self._retain(Info(state.step, time.time(), dict(state.metrics)))
            if self._spool is not None:
                self._spool.drop(state.step)
        except OSError as error:
            self._failures += 1
            kept = self._into_spool(write)
            self._last_failure = f"{error}{f' (it is kept in {kept})' if kept else ''}"
            log.warning(
                "checkpoint %s could not be written (%s): %d in a row. Training goes on, older checkpoints stay%s",
                name, error, self._failures, f"; this one is kept as {kept}" if kept else "",
            )  # fmt: skip
            self._on_failure(state.step, self._failures)
            if self._max_failures is not None and self._failures >= self._max_failures:
                self._fatal = RunError(
                    f"{self._failures} checkpoints in a row could not be written; the last: {self._last_failure}"
                )
        except BaseException as error:
            self._fatal = error
            log.error(
                "checkpoint %s could not be written: %s", name, error if isinstance(error, RunError) else repr(error)
            )

    @staticmethod
    def _put(store: Store, name: str, write: _Write, before_commit: Callable[[], None] = lambda: None) -> None:
        files = _files(write.state, write.tensors, write.rest)
        # Hashing runs beside writing: both leave the interpreter's lock alone, and the manifest needs both.
        with ThreadPoolExecutor(1, thread_name_prefix="checkpoint-hash") as hasher:
            hashing = hasher.submit(format.digest, files)

            def digests() -> Mapping[str, tuple[int, str]]:
                result = hashing.result()
                before_commit()
                return result

            store.put(name, [*files, format.seal(write.state.step, write.state.metrics, digests)])

    def _into_spool(self, write: _Write) -> str:
        """Where the checkpoint is kept on this machine; "" where it is not."""
        if self._spool is None:
            return ""
        return self._spool.keep(write.state.step, lambda store, name: self._put(store, name, write))

    def _bring_home(self) -> None:
        assert self._spool is not None
        try:
            self._spool.bring_home(self.store, self._scratch, self._confirm)
        except RunError as error:
            self._fatal = error
        finally:
            with self._lock:
                self._thread = None

    def _retain(self, newest: Info) -> None:
        """Apply the policies after a commit. Failing to delete is no reason to fail."""
        if self._known is None:
            self._known = {step: self._info(step) for step in self.steps()}
        self._known[newest.step] = newest
        for step in doomed(list(self._known.values()), self._keep):
            try:
                self.store.delete(f"{self.attempt}/step-{step:08d}")
                del self._known[step]
            except OSError as error:
                log.warning("old checkpoint step-%08d of %s could not be deleted: %s", step, self.attempt, error)

    def _info(self, step: int) -> Info:
        try:
            manifest = read_manifest(self.store, f"{self.attempt}/step-{step:08d}", self._scratch)
        except (DamagedError, OSError):
            return Info(step)
        return Info(step, manifest.created, manifest.metrics)


def _share(deadline: float, part: float) -> float:
    """The moment at which `part` of the time until `deadline` is over."""
    now = time.monotonic()
    return now + (deadline - now) * part


def read(folder: Path, step: int | None = None) -> TrainingState:
    """The state in a checkpoint's folder. Raises `DamagedError` (see `format.load`)."""
    manifest, data = format.load(folder, expected_step=step)
    parsed: dict[str, dict[str, torch.Tensor]] = {}
    metadata: dict[str, str] = {}
    for file in (format.MODEL, format.TRAINING):
        try:
            parsed[file], meta = tensors.parse(data.pop(file))
        except tensors.TensorFileError as error:
            raise DamagedError(f"{file}: {error}") from error
        metadata |= meta if file == format.MODEL else {}
    try:
        state = codec.unflatten(json.loads(data[format.STATE]), parsed[format.TRAINING])
        config = bytes(data[format.CONFIG]).decode()
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedError(f"{format.STATE} does not fit the other files: {error}") from error
    return TrainingState(manifest.step, parsed[format.MODEL], state, config, metadata, manifest.metrics)


def read_manifest(store: Store, name: str, scratch: Path) -> Manifest:
    return Manifest.read(store.get(name, scratch, only=[format.MANIFEST]))


def _split(state: TrainingState) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """All tensors of a state under unique names (`model:` or `training:` first), and its plain data."""
    training, rest = codec.flatten(state.training)
    flat = {f"model:{name}": tensor for name, tensor in state.model.items()}
    return flat | {f"training:{name}": tensor for name, tensor in training.items()}, rest


def _files(state: TrainingState, snapshot: Mapping[str, torch.Tensor], rest: dict[str, Any]) -> list[Blob]:
    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in snapshot.items() if name.startswith(prefix)}

    model = tensors.TensorFile.of(part("model:"), {"format": "pt"} | dict(state.metadata))
    training = tensors.TensorFile.of(part("training:"))
    return [
        Blob(format.MODEL, model.chunks),
        Blob(format.TRAINING, training.chunks),
        Blob.of(format.STATE, json.dumps(rest, indent=1).encode() + b"\n"),
        Blob.of(format.CONFIG, state.config.encode()),
    ]
