"""The Checkpoint Manager: the training state of one attempt, saved and restored."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sr_runner.checkpoint import codec, format, tensors
from sr_runner.checkpoint.format import Blob, DamagedError, Manifest, Name
from sr_runner.checkpoint.retention import Info, Policy, doomed
from sr_runner.checkpoint.snapshot import HostSnapshot
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


class CheckpointManager:
    """Saves without stopping the train step, restores the newest good state, and applies retention.

    `save` copies the state to host memory and returns; one background thread serialises, hashes and stores it. A
    write that fails with `OSError` is reported at once and costs nothing but that checkpoint: the older ones stay
    and the next save tries again, until `max_failures` in a row.
    """

    def __init__(
        self,
        store: Store,
        attempt: str,
        *,
        keep: Sequence[Policy],
        scratch: Path,
        max_failures: int = 3,
        on_saved: Callable[[SaveReport], None] = lambda report: None,
        on_failure: Callable[[int, int], None] = lambda step, in_a_row: None,
    ):
        """`attempt` is `<identity>/<attempt>`; `scratch` a local folder for downloads.

        `on_saved` is called from the background just before the commit (so that what it records is never missing
        for a checkpoint that exists), `on_failure` with the step and the number of failures in a row.
        """
        self.store = store
        self.attempt = attempt
        self._keep = tuple(keep)
        self._scratch = scratch
        self._max_failures = max_failures
        self._on_saved = on_saved
        self._on_failure = on_failure
        self._snapshot = HostSnapshot()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._in_flight: Future[None] | None = None
        self._known: dict[int, Info] | None = None
        self._failures = 0
        self._fatal: BaseException | None = None
        self._lock = threading.Lock()

    # -- restore ---------------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """The steps that have a committed checkpoint, ascending."""
        names = (Name.parse(text) for text in self.store.list(f"{self.attempt}/"))
        return sorted(name.step for name in names if name is not None)

    def restore(self, step: int | None = None) -> TrainingState | None:
        """The newest good state (or exactly that of `step`), or None where no checkpoint was ever committed.

        A damaged checkpoint is named in the log with the file and the reason, and quarantined. Raises `RunError`
        where there are checkpoints and none is good: starting from scratch would hide the loss.
        """
        try:
            candidates = [step] if step is not None else self.steps()[::-1]
            for candidate in candidates:
                name = f"{self.attempt}/step-{candidate:08d}"
                try:
                    return read(self.store.get(name, self._scratch), candidate)
                except DamagedError as damage:
                    moved = self.store.quarantine(name, str(damage))
                    log.error("checkpoint %s is damaged: %s. It is kept as %s", name, damage, moved)
        except OSError as error:
            raise RunError(f"{self.store.url} cannot be read: {error}. Nothing was started") from error
        if not candidates:
            return None
        raise RunError(
            f"none of the {len(candidates)} checkpoints of {self.attempt} in {self.store.url} is intact (see above). "
            "Nothing was started. They are kept there as damaged-*; trainer.resume=false starts a fresh attempt, "
            "trainer.resume=<id or path> takes another run"
        )

    # -- save ------------------------------------------------------------------------------------------------------

    def prepare(self, state: TrainingState) -> None:
        """Allocate the snapshot's memory before training, so that the first save costs what the others do."""
        self._snapshot.take(_split(state)[0])
        try:
            self.store.clean(self.attempt)
        except OSError as error:
            log.warning("leftovers of killed writes in %s could not be removed: %s", self.store.url, error)

    def save(self, state: TrainingState, *, wait: bool = False) -> None:
        """Snapshot `state` and write it in the background; with `wait`, return once it is committed (or failed)."""
        started = time.perf_counter()
        self.wait()
        flat, rest = _split(state)
        snapshot = self._snapshot.take(flat)
        stall = time.perf_counter() - started
        self._in_flight = self._writer.submit(self._write, state, snapshot, rest, stall)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until nothing is being written. Raises what made writing impossible."""
        if self._in_flight is not None:
            self._in_flight.result()
            self._in_flight = None
        self.check()

    def check(self) -> None:
        """Raise, on the caller's thread, what ended writing for good. Costs nothing where all is well."""
        if self._fatal is not None:
            raise self._fatal

    def close(self) -> None:
        """Wait for the last write, whatever became of it."""
        self._writer.shutdown(wait=True)

    def _write(
        self, state: TrainingState, snapshot: Mapping[str, torch.Tensor], rest: dict[str, Any], stall: float
    ) -> None:
        name = f"{self.attempt}/step-{state.step:08d}"
        started = time.perf_counter()

        def digests_before_commit() -> Mapping[str, tuple[int, str]]:
            result = hashing.result()
            self._on_saved(SaveReport(state.step, stall, time.perf_counter() - started))
            return result

        try:
            files = _files(state, snapshot, rest)
            # Hashing runs beside writing: both leave the interpreter's lock alone, and the manifest needs both.
            with ThreadPoolExecutor(1, thread_name_prefix="checkpoint-hash") as hasher:
                hashing = hasher.submit(format.digest, files)
                self.store.put(name, [*files, format.seal(state.step, state.metrics, digests_before_commit)])
            self._failures = 0
            self._retain(Info(state.step, time.time(), dict(state.metrics)))
        except OSError as error:
            self._failures += 1
            log.warning(
                "checkpoint %s could not be written (%s): %d in a row. Training goes on, older checkpoints stay",
                name, error, self._failures,
            )  # fmt: skip
            self._on_failure(state.step, self._failures)
            if self._failures >= self._max_failures:
                self._fatal = RunError(f"{self._failures} checkpoints in a row could not be written; the last: {error}")
        except BaseException as error:
            self._fatal = error
            log.error("checkpoint %s could not be written: %r", name, error)

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
    except (ValueError, KeyError, TypeError, RecursionError) as error:
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
